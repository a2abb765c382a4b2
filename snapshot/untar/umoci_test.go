// SPDX-License-Identifier: Apache-2.0

package untar_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim.dev/snapshot"
)

// Random images, as tools make them, look through the overlay as umoci unpacks them: the same names, owners, modes, times, contents,
// attributes and devices.
func TestLikeUmoci(t *testing.T) {
	if _, err := exec.LookPath("umoci"); err != nil {
		t.Skip("umoci is not installed (hack/deps)")
	}
	s, compared, whiteouts := newStore(t), 0, 0
	for seed := range uint64(15) {
		g := &generator{rand.New(rand.NewPCG(seed, 2)), []string{"a", "b", "c", "d", "e", "f"}}
		m := newModel()
		var keys []snapshot.Key
		var archives [][]byte
		for range 2 + g.IntN(3) {
			archives = append(archives, orderly(t, g.layer(t, m)))
			keys = s.add(t, keys, archives[len(archives)-1])
		}
		want := filepath.Join(t.TempDir(), "rootfs")
		cmd := exec.CommandContext(t.Context(), "umoci", "raw", "unpack", "--keep-dirlinks", "--image", layout(t, archives)+":latest", want)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("seed %d: umoci: %v: %s\n%s", seed, err, out, list(t, archives))
		}
		f, err := s.View(t.Context(), keys)
		if err != nil {
			t.Fatal(err)
		}
		got := read(t, fmt.Sprintf("/proc/self/fd/%d/", f.Fd()))
		_ = f.Close()
		tree := read(t, want)
		tree[""] = got[""] // umoci makes the root itself; TestMetadata has its entry
		if diff := compare(got, tree); diff != "" {
			t.Fatalf("seed %d:\n%s%s", seed, diff, list(t, archives))
		}
		compared += len(got)
		whiteouts += strings.Count(list(t, archives), ".wh.")
	}
	if compared < 100 || whiteouts < 5 {
		t.Errorf("%d names, %d whiteouts: too few to say anything", compared, whiteouts)
	}
	t.Logf("%d names, %d whiteouts", compared, whiteouts)
}

// orderly leaves out of an archive what tools do not make and others take differently: names that come twice, links, and whiteouts of
// what the same layer has; and enters the directories above each.
func orderly(t *testing.T, archive []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, r := tar.NewWriter(&b), tar.NewReader(bytes.NewReader(archive))
	seen := map[string]byte{".": tar.TypeDir}
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Clean(h.Name)
		shown := strings.Replace(name, ".wh.", "", 1)
		if seen[shown] != 0 || h.Typeflag == tar.TypeLink || h.Typeflag == tar.TypeSymlink || strings.HasSuffix(name, ".wh..opq") {
			continue
		}
		if !directories(t, w, filepath.Dir(name), seen) {
			continue
		}
		seen[shown] = h.Typeflag
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// directories makes entries for the directories above one, unless something else is in their way.
func directories(t *testing.T, w *tar.Writer, dir string, seen map[string]byte) bool {
	t.Helper()
	if kind, ok := seen[dir]; ok {
		return kind == tar.TypeDir
	}
	if !directories(t, w, filepath.Dir(dir), seen) {
		return false
	}
	seen[dir] = tar.TypeDir
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o750, Uid: 7, ModTime: time.Unix(1e9, 0)}); err != nil {
		t.Fatal(err)
	}
	return true
}

// layout writes an OCI layout with one image.
func layout(t *testing.T, archives [][]byte) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	blob := func(mediaType string, b []byte) v1.Descriptor {
		d := digest.FromBytes(b)
		write("blobs/sha256/"+d.Encoded(), b)
		return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
	}
	encode := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	config := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: v1.RootFS{Type: "layers"}}
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest}
	m.SchemaVersion = 2
	for _, a := range archives {
		m.Layers = append(m.Layers, blob(v1.MediaTypeImageLayer, a))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(a))
	}
	m.Config = blob(v1.MediaTypeImageConfig, encode(config))
	top := blob(v1.MediaTypeImageManifest, encode(m))
	top.Annotations = map[string]string{v1.AnnotationRefName: "latest"}
	index := v1.Index{Manifests: []v1.Descriptor{top}}
	index.SchemaVersion = 2
	write("index.json", encode(index))
	write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return dir
}
