// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim.dev/image"
	"crishim.dev/image/registry/registrytest"
	"crishim.dev/internal/errs"
)

// layoutFiles are the files of an OCI layout with the image, by name.
func layoutFiles(t testing.TB, img *registrytest.Image, annotations map[string]string) map[string][]byte {
	t.Helper()
	index := v1.Index{MediaType: v1.MediaTypeImageIndex}
	index.SchemaVersion = 2
	index.Manifests = []v1.Descriptor{{MediaType: v1.MediaTypeImageManifest, Digest: registrytest.DigestOf(img.Manifest), Size: int64(len(img.Manifest)), Annotations: annotations}}
	b, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": b}
	for _, blob := range append(img.Blobs, img.Config, img.Manifest) {
		files["blobs/sha256/"+strings.TrimPrefix(registrytest.Digest(blob), "sha256:")] = blob
	}
	return files
}

// savedFiles are the files of a docker-archive.
func savedFiles(t testing.TB, img *registrytest.Image, tags ...string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{"config.json": img.Config}
	m := []map[string]any{{"Config": "config.json", "RepoTags": tags, "Layers": []string{}}}
	for _, l := range img.Tars {
		name := registrytest.Digest(l)[7:] + "/layer.tar"
		files[name] = l
		m[0]["Layers"] = append(m[0]["Layers"].([]string), name)
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	files["manifest.json"] = b
	return files
}

func writeDir(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range files {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func writeTar(t testing.TB, files map[string][]byte, pack func(testing.TB, []byte) []byte) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, body := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	out := b.Bytes()
	if pack != nil {
		out = pack(t, out)
	}
	p := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(p, out, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestImport(t *testing.T) {
	img := simple(t, "high")
	named := map[string]string{"io.containerd.image.name": "docker.io/library/app:v1", v1.AnnotationRefName: "v1"}
	layout, saved := layoutFiles(t, img, named), savedFiles(t, img, "app:v1")
	for name, path := range map[string]string{
		"OCI layout":                writeDir(t, layout),
		"OCI archive":               writeTar(t, layout, nil),
		"OCI archive, gzip":         writeTar(t, layout, registrytest.Gzip),
		"OCI archive, zstd":         writeTar(t, layout, registrytest.Zstd),
		"docker-archive":            writeTar(t, saved, nil),
		"docker-archive, gzip":      writeTar(t, saved, registrytest.Gzip),
		"docker-archive, unpacked":  writeDir(t, saved),
		"OCI layout, reference":     writeDir(t, layoutFiles(t, img, map[string]string{v1.AnnotationRefName: "app:v1"})),
		"OCI layout, name is given": writeDir(t, layoutFiles(t, img, map[string]string{v1.AnnotationRefName: "v1"})),
	} {
		t.Run(name, func(t *testing.T) {
			n := open(t, t.TempDir(), nil)
			got, err := n.Import(t.Context(), path, image.ImportOptions{Name: "app:v1"})
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 1 || got[0].ID != img.ID() || !slices.Equal(got[0].RepoTags, []string{"docker.io/library/app:v1"}) {
				t.Errorf("got %+v", got)
			}
			i, err := n.Resolve("app:v1")
			if err != nil {
				t.Fatal(err)
			}
			if s := n.read(t, i, "etc/motd"); s != "high" {
				t.Errorf("motd: %q", s)
			}
			n.clean(t)
		})
	}
}

func TestImportOfBrokenArchives(t *testing.T) {
	img := simple(t, "x")
	n := open(t, t.TempDir(), nil)
	change := func(files map[string][]byte, f func(map[string][]byte)) map[string][]byte { f(files); return files }
	blob := func(b []byte) string { return "blobs/sha256/" + registrytest.Digest(b)[7:] }
	outside := filepath.Join(t.TempDir(), "layer")
	if err := os.WriteFile(outside, img.Tars[0], 0o600); err != nil {
		t.Fatal(err)
	}
	linked := writeDir(t, change(savedFiles(t, img), func(m map[string][]byte) { delete(m, registrytest.Digest(img.Tars[0])[7:]+"/layer.tar") }))
	link := filepath.Join(linked, registrytest.Digest(img.Tars[0])[7:])
	if err := errors.Join(os.MkdirAll(link, 0o755), os.Symlink(outside, link+"/layer.tar")); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		path string
		kind error
	}{
		"missing":    {filepath.Join(t.TempDir(), "none"), os.ErrNotExist},
		"empty":      {writeTar(t, nil, nil), errs.Invalid},
		"text":       {writeDirFile(t, "hello, this is no archive"), errs.Invalid},
		"no blob":    {writeTar(t, change(layoutFiles(t, img, nil), func(m map[string][]byte) { delete(m, blob(img.Blobs[0])) }), nil), os.ErrNotExist},
		"wrong blob": {writeTar(t, change(layoutFiles(t, img, nil), func(m map[string][]byte) { m[blob(img.Blobs[0])] = make([]byte, len(img.Blobs[0])) }), nil), errs.Invalid},
		"wrong layer": {writeTar(t, change(savedFiles(t, img), func(m map[string][]byte) {
			m[registrytest.Digest(img.Tars[0])[7:]+"/layer.tar"] = img.Tars[1]
		}), nil), errs.Invalid},
		"link out": {linked, nil},
		"device":   {"/dev/null", errs.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := n.Import(t.Context(), tt.path, image.ImportOptions{})
			if err == nil {
				t.Fatal("imported")
			}
			if tt.kind != nil {
				wantKind(t, err, tt.kind)
			}
		})
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Import(cancelled, writeTar(t, savedFiles(t, img), registrytest.Gzip), image.ImportOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if len(n.List()) != 0 {
		t.Errorf("listed: %v", n.List())
	}
	n.clean(t)
}

func writeDirFile(t testing.TB, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}
