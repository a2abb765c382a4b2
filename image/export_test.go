// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"crishim.dev/image"
	"crishim.dev/image/registry/registrytest"
	"crishim.dev/internal/errs"
)

// What is exported and imported elsewhere is the same image, by id, names and content.
func TestExport(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	img := simple(t, "high")
	img = registrytest.NewImage(t, append(img.Tars, img.Tars[0]), nil, nil) // one layer twice
	reg.Push(t, "app", "v", img)
	reg.Push(t, "app", "w", img)
	n.pull(t, reg.Host+"/app:w", nil)
	want := n.pull(t, reg.Host+"/app:v", nil)
	var b bytes.Buffer
	if err := n.Export(t.Context(), want.ID, &b); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	other := open(t, t.TempDir(), nil)
	if _, err := other.Import(t.Context(), path, image.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := other.Resolve(want.ID)
	if err != nil || !slices.Equal(got.RepoTags, want.RepoTags) || !slices.Equal(got.Layers, want.Layers) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if s := other.read(t, got, "etc/motd"); s != "low" {
		t.Errorf("motd: %q", s)
	}
	if err := os.WriteFile(filepath.Join(n.snap.FSDir(want.Layers[1]), "etc/motd"), []byte("HIGH"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Export(t.Context(), want.ID, &b); err == nil {
		t.Error("a changed layer was exported")
	}
	wantKind(t, n.Export(t.Context(), "unknown", &b), errs.NotFound)
}
