// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/config"
	"crishim.dev/image"
	"crishim.dev/image/registry"
	"crishim.dev/launch"
	"crishim.dev/proto/admin"
	"crishim.dev/server"
	"crishim.dev/snapshot"
)

// imageAdapter shows the image store in CRI's terms.
type imageAdapter struct{ store *image.Store }

// registryOptions say how registries are asked.
func registryOptions(c config.Image) registry.Options {
	return registry.Options{
		CertsDir: c.CertsDir, UserAgent: "crishim/" + semver(version), AuthFile: c.AuthFile, MirrorsOnly: c.MirrorsOnly,
		MirrorCredentials: c.MirrorCredentials, Rate: c.Bandwidth, MinRate: c.MinRate, StallTime: time.Duration(c.StallTime),
	}
}

// Pull implements server.Images.
func (a imageAdapter) Pull(ctx context.Context, ref string, auth *cri.AuthConfig) (string, error) {
	var login *image.Auth
	if auth != nil {
		login = &image.Auth{
			Username: auth.GetUsername(), Password: auth.GetPassword(), Auth: auth.GetAuth(), ServerAddress: auth.GetServerAddress(),
			IdentityToken: auth.GetIdentityToken(), RegistryToken: auth.GetRegistryToken(),
		}
	}
	img, err := a.store.Pull(ctx, ref, login)
	return img.ID, err
}

// Resolve implements server.Images.
func (a imageAdapter) Resolve(ref string) (server.Image, error) {
	img, err := a.store.Resolve(ref)
	if err != nil {
		return server.Image{}, err
	}
	return criImage(img), nil
}

// List implements server.Images.
func (a imageAdapter) List() []server.Image {
	list := a.store.List()
	out := make([]server.Image, 0, len(list))
	for _, img := range list {
		out = append(out, criImage(img))
	}
	return out
}

// Remove implements server.Images.
func (a imageAdapter) Remove(ctx context.Context, ref string) error { return a.store.Remove(ctx, ref) }

// Stored lists the images with the disk space that each takes in the admin service's terms.
func (a imageAdapter) Stored() []*admin.StoredImage {
	var out []*admin.StoredImage
	for _, i := range a.store.Disk() {
		out = append(out, &admin.StoredImage{Id: i.ID, RepoTags: i.RepoTags, RepoDigests: i.RepoDigests, Size: i.Size, Shared: i.Shared, Pinned: i.Pinned})
	}
	return out
}

// Pulls lists the pulls under way in the admin service's terms.
func (a imageAdapter) Pulls() []*admin.Pull {
	var out []*admin.Pull
	for _, p := range a.store.Pulls() {
		pull := &admin.Pull{Reference: p.Reference, Since: p.Since.UnixNano()}
		for _, l := range p.Layers {
			pull.Layers = append(pull.Layers, &admin.PullLayer{Digest: l.Digest, Size: l.Size, Fetched: l.Fetched, Done: l.Done})
		}
		out = append(out, pull)
	}
	return out
}

// Usage implements server.Images.
func (a imageAdapter) Usage(ctx context.Context) (images, containers *cri.FilesystemUsage, err error) {
	i, c, err := a.store.Usage(ctx)
	if err != nil {
		return nil, nil, err
	}
	now := time.Now().UnixNano()
	usage := func(u image.FSUsage) *cri.FilesystemUsage {
		return &cri.FilesystemUsage{
			Timestamp: now, FsId: &cri.FilesystemIdentifier{Mountpoint: u.MountPoint},
			UsedBytes: &cri.UInt64Value{Value: u.Bytes}, InodesUsed: &cri.UInt64Value{Value: u.Inodes},
		}
	}
	return usage(i), usage(c), nil
}

// criImage translates an image; its user is a number or a name, without the group.
func criImage(img image.Image) server.Image {
	out := &cri.Image{
		Id: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests, Size: img.Size, Pinned: img.Pinned,
		Spec: &cri.ImageSpec{Image: img.ID},
	}
	user, _, _ := strings.Cut(img.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.Uid = &cri.Int64Value{Value: uid}
	} else {
		out.Username = user
	}
	return server.Image{CRI: out, Info: func() map[string]string {
		b, err := json.Marshal(map[string]any{"imageSpec": map[string]any{
			"config": img.Config, "architecture": img.Architecture, "os": img.OS, "layers": img.Layers,
		}})
		if err != nil { // strings and maps of strings only
			return nil
		}
		return map[string]string{"info": string(b)}
	}}
}

// writableLayer tells what a container's writable layer takes, nil when it was removed meanwhile or not measured yet.
// It names the same mount point as ImageFsInfo does (KUBELET.md 33).
func writableLayer(snaps *snapshot.Store, mount string) func(id string) *cri.FilesystemUsage {
	return func(id string) *cri.FilesystemUsage {
		u, err := snaps.Usage(id)
		if err != nil {
			return nil
		}
		return &cri.FilesystemUsage{
			Timestamp: u.At.UnixNano(), FsId: &cri.FilesystemIdentifier{Mountpoint: mount},
			UsedBytes: &cri.UInt64Value{Value: u.Bytes}, InodesUsed: &cri.UInt64Value{Value: u.Inodes},
		}
	}
}

// rlimits are the configured limits of containers in the kernel's terms.
func rlimits(l config.Limits) []launch.Rlimit {
	size := func(n int64) uint64 {
		if n < 0 {
			return unix.RLIM_INFINITY
		}
		return uint64(n)
	}
	out := []launch.Rlimit{{Resource: unix.RLIMIT_CORE, Soft: size(l.Core), Hard: size(l.Core)}}
	if l.NoFile != 0 {
		out = append(out, launch.Rlimit{Resource: unix.RLIMIT_NOFILE, Soft: l.NoFile, Hard: l.NoFile})
	}
	nproc := l.NProc
	if nproc == 0 {
		nproc = unix.RLIM_INFINITY
	}
	out = append(out, launch.Rlimit{Resource: unix.RLIMIT_NPROC, Soft: nproc, Hard: nproc})
	if l.MemLock != 0 {
		out = append(out, launch.Rlimit{Resource: unix.RLIMIT_MEMLOCK, Soft: size(l.MemLock), Hard: size(l.MemLock)})
	}
	return out
}

// handlers are the configured runtime handlers; each is shim itself, as own describes it, under another name.
func handlers(configured map[string]config.Handler, own server.Handler) []server.Handler {
	var out []server.Handler
	for _, name := range slices.Sorted(maps.Keys(configured)) {
		own.Name = name
		out = append(out, own)
	}
	return out
}
