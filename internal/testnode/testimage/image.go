// SPDX-License-Identifier: Apache-2.0

package testimage

import (
	"fmt"
	"os"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Image is one image or index and every name it is served under.
type Image struct {
	Refs []string
	// Image is nil when Index is set.
	Image v1.Image
	Index v1.ImageIndex
}

// The names of our own images.
const (
	Busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
	Nginx   = "registry.k8s.io/e2e-test-images/nginx:1.14-2"
	// Layers is a three-layer image with whiteouts, an opaque directory and a file replaced by a directory.
	Layers = "localhost/test/layers:1"
	// Mixed stores its layers with gzip, zstd and not at all.
	Mixed = "localhost/test/mixed:1"
	// Volumes declares VOLUME /data (seeded, owned by 33) and /empty.
	Volumes = "localhost/test/volumes:1"
	// Configured sets everything an image's configuration can: env, entrypoint, cmd, workdir, user, labels, stop signal.
	Configured = "localhost/test/configured:1"
	// Capable has /capable/cat with CAP_NET_RAW as a file capability.
	Capable = "localhost/test/capable:1"
	// Multi is an index of this machine's platform and others.
	Multi = "localhost/test/multi:1"
	// Links has /out/absolute and /out/relative, links to Outside that would lead there on a host.
	Links = "localhost/test/links:1"
	// Outside is a path that no host has.
	Outside = "/outside-of-any-container"
	// Bare has one layer without a command.
	Bare = "localhost/test/bare:1"
)

// Build makes an OCI image of layers (bottom first) and a configuration.
func Build(arch string, config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, l := range layers {
		var err error
		if img, err = mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{Created: v1.Time{Time: epoch()}}}); err != nil {
			return nil, fmt.Errorf("append layer: %w", err)
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read image configuration: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Created, file.Config = "linux", arch, v1.Time{Time: epoch()}, config
	if img, err = mutate.ConfigFile(img, file); err != nil {
		return nil, fmt.Errorf("set image configuration: %w", err)
	}
	return img, nil
}

// set collects images and keeps the first error.
type set struct {
	src    Source
	base   v1.Layer
	images []Image
	err    error
}

func (s *set) layer(c Compression, files ...File) v1.Layer {
	l, err := Layer(c, files...)
	if err != nil && s.err == nil {
		s.err = err
	}
	return l
}

// add makes an image and names it.
func (s *set) add(config v1.Config, layers []v1.Layer, refs ...string) v1.Image {
	if s.err != nil {
		return nil
	}
	img, err := Build(s.src.Arch, config, layers...)
	if err != nil {
		s.err = fmt.Errorf("build image %s: %w", refs[0], err)
	}
	if len(refs) > 0 {
		s.images = append(s.images, Image{Refs: refs, Image: img})
	}
	return img
}

// on is the base with one layer of files more.
func (s *set) on(files ...File) []v1.Layer {
	if len(files) == 0 {
		return []v1.Layer{s.base}
	}
	return []v1.Layer{s.base, s.layer(Gzip, files...)}
}

// All makes the stand-ins for the conformance suite and our own images.
func All(src Source) ([]Image, error) {
	files, err := baseFiles(src)
	if err != nil {
		return nil, err
	}
	s := &set{src: src}
	s.base = s.layer(Gzip, files...)
	if err := s.conformance(); err != nil {
		return nil, err
	}
	if err := s.own(); err != nil {
		return nil, err
	}
	return s.images, s.err
}

// env is the PATH that upstream's images set.
func env() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
}

// conformance makes what critest pulls by name.
func (s *set) conformance() error {
	const staging = "gcr.io/k8s-staging-cri-tools/"
	shell := v1.Config{Env: env(), Cmd: []string{"sh"}}
	s.add(shell, s.on(), Busybox, "docker.io/library/busybox:latest", "registry.k8s.io/e2e-test-images/busybox:1.29-4")
	web := v1.Config{
		Env: env(), Entrypoint: []string{"nginx"}, Cmd: []string{"-g", "daemon off;"},
		ExposedPorts: map[string]struct{}{"80/tcp": {}}, StopSignal: "SIGQUIT",
	}
	s.add(web, s.on(File{Name: "etc/nginx/port", Body: []byte("80\n")}), Nginx)
	s.add(web, s.on(File{Name: "etc/nginx/port", Body: []byte("12003\n")}), staging+"hostnet-nginx-"+s.src.Arch)
	s.add(v1.Config{Env: env(), Cmd: []string{"httpd", "-DFOREGROUND"}}, s.on(File{Name: "etc/httpd.conf"}), "registry.k8s.io/e2e-test-images/httpd:2.4.39-4")
	probe, err := os.ReadFile(s.src.Probe)
	if err != nil {
		return fmt.Errorf("read probe: %w", err)
	}
	s.add(v1.Config{Env: env(), Entrypoint: []string{"/nnp"}}, s.on(File{Name: "nnp", Mode: 0o4755, Body: probe}), "registry.k8s.io/e2e-test-images/nonewprivs:1.3")

	mark := func(name string) []v1.Layer { return s.on(File{Name: name, Body: []byte(name + "\n")}) }
	for _, name := range []string{"test-image-1", "test-image-2", "test-image-3", "test-image-latest", "test-image-digest"} {
		s.add(shell, mark(name), staging+name+":latest")
	}
	s.add(shell, mark("test-image-tags"), staging+"test-image-tags:1", staging+"test-image-tags:2", staging+"test-image-tags:3")
	s.add(shell, mark("test-image-tag"), staging+"test-image-tag:test", staging+"test-image-tag:all")
	for name, user := range map[string]string{"uid": "1002", "username": "www-data", "uid-group": "1003:users", "username-group": "www-data:100"} {
		files := []File{}
		if name == "uid-group" {
			files = append(files, File{Name: "etc/group", Body: []byte(group + "users:x:100:\n")})
		}
		c := shell
		c.User = user
		s.add(c, s.on(append(files, File{Name: "user", Body: []byte(user + "\n")})...), staging+"test-image-user-"+name+":latest")
	}
	s.add(v1.Config{Env: env(), Cmd: []string{"sh"}, User: "1000"}, s.on(
		File{Name: "etc/passwd", Body: []byte(passwd + "default-user:x:1000:1000:Linux User,,,:/home/default-user:/bin/sh\n")},
		File{Name: "etc/group", Body: []byte(group + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")},
		File{Name: "home/default-user/", Dir: true, UID: 1000, GID: 1000}), staging+"test-image-predefined-group:latest")
	pause := s.layer(Gzip, File{Name: "pause", Mode: 0o755, Body: probe})
	for _, version := range []string{"3.1", "3.6", "3.7", "3.8", "3.9", "3.10", "3.10.1"} {
		refs := []string{"registry.k8s.io/pause:" + version}
		if version == "3.9" {
			refs = append(refs, "k8s.gcr.io/pause:3.9")
		}
		s.add(v1.Config{Env: env(), Entrypoint: []string{"/pause"}}, []v1.Layer{pause, s.layer(Gzip, File{Name: "version", Body: []byte(version)})}, refs...)
	}
	slices.SortFunc(s.images, func(a, b Image) int { return slices.Compare(a.Refs, b.Refs) })
	return s.err
}

// own makes the images that only our tests use.
func (s *set) own() error {
	shell := v1.Config{Env: env(), Cmd: []string{"sh"}}
	second := s.layer(Gzip,
		File{Name: "tree/", Dir: true}, File{Name: "tree/kept", Body: []byte("2")}, File{Name: "tree/removed", Body: []byte("2")},
		File{Name: "tree/opaque/", Dir: true}, File{Name: "tree/opaque/below", Body: []byte("2")},
		File{Name: "tree/gone/", Dir: true}, File{Name: "tree/gone/inside", Body: []byte("2")},
		File{Name: "tree/becomes-dir", Body: []byte("2")}, File{Name: "tree/becomes-file/", Dir: true}, File{Name: "tree/becomes-file/x", Body: []byte("2")},
		File{Name: "tree/link", Link: "tree/kept"}, File{Name: "tree/changed", Body: []byte("2"), UID: 33, GID: 33, Mode: 0o640})
	third := s.layer(Gzip,
		File{Name: "tree/", Dir: true, Mode: 0o750}, File{Name: "tree/.wh.removed"}, File{Name: "tree/.wh.gone"},
		File{Name: "tree/opaque/", Dir: true}, File{Name: "tree/opaque/.wh..wh..opq"}, File{Name: "tree/opaque/above", Body: []byte("3")},
		File{Name: "tree/becomes-dir/", Dir: true}, File{Name: "tree/becomes-dir/x", Body: []byte("3")}, File{Name: "tree/becomes-file", Body: []byte("3")},
		File{Name: "tree/changed", Body: []byte("3"), UID: 1, GID: 2, Mode: 0o600}, File{Name: "tree/symlink", Symlink: "/tree/kept"})
	s.add(shell, []v1.Layer{s.base, second, third}, Layers)
	s.add(shell, []v1.Layer{
		s.base, s.layer(Zstd, File{Name: "zstd", Body: []byte("zstd")}), s.layer(Plain, File{Name: "plain", Body: []byte("plain")}),
	}, Mixed)
	volumes := shell
	volumes.Volumes = map[string]struct{}{"/data": {}, "/empty": {}}
	s.add(volumes, s.on(File{Name: "data/", Dir: true, UID: 33, GID: 33, Mode: 0o750}, File{Name: "data/seed", UID: 33, GID: 33, Body: []byte("seed")}), Volumes)
	s.add(v1.Config{
		Env: append(env(), "FROM_IMAGE=image", "BOTH=image"), Entrypoint: []string{"probe", "args", "entrypoint"}, Cmd: []string{"cmd"},
		WorkingDir: "/work/dir", User: "www-data", StopSignal: "SIGUSR1", Labels: map[string]string{"who": "test"},
	}, s.on(File{Name: "configured"}), Configured)
	cat, err := os.ReadFile(s.src.Busybox)
	if err != nil {
		return fmt.Errorf("read busybox: %w", err)
	}
	// With CAP_NET_RAW as a file capability: struct vfs_cap_data, revision 2, effective.
	const netRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	s.add(shell, s.on(File{Name: "capable/", Dir: true}, File{Name: "capable/cat", Mode: 0o755, Body: cat, Xattrs: map[string]string{"security.capability": netRaw}}), Capable)
	s.add(shell, s.on(File{Name: "out/", Dir: true}, File{Name: "out/absolute", Symlink: Outside}, File{Name: "out/relative", Symlink: "../../../../.." + Outside}), Links)
	s.add(v1.Config{}, []v1.Layer{s.layer(Gzip, File{Name: "only", Body: []byte("only")})}, Bare)
	return s.multi(shell)
}

// multi makes an index whose first entries are other platforms'.
func (s *set) multi(config v1.Config) error {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range []string{"s390x", "arm64", "amd64"} {
		img, err := Build(arch, config, s.on(File{Name: "arch", Body: []byte(arch)})...)
		if err != nil {
			return fmt.Errorf("build image %s: %w", Multi, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	s.images = append(s.images, Image{Refs: []string{Multi}, Index: index})
	return s.err
}
