// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"crishim.dev/image/registry/registrytest"
	"crishim.dev/internal/errs"
)

// crioStore lays out what CRI-O keeps of images, by name.
func crioStore(t *testing.T, images map[string]*registrytest.Image) string {
	t.Helper()
	root := t.TempDir()
	var list, layers []map[string]any
	write := func(name string, b []byte) {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for name, img := range images {
		id, parent := img.ID()[7:], ""
		for i, archive := range img.Tars {
			layer := fmt.Sprintf("%s%d", id[:60], i)
			diff := filepath.Join(root, "overlay", layer, "diff")
			if err := os.MkdirAll(diff, 0o755); err != nil {
				t.Fatal(err)
			}
			tar := exec.CommandContext(t.Context(), "tar", "-x", "-C", diff)
			tar.Stdin = bytes.NewReader(archive)
			if out, err := tar.CombinedOutput(); err != nil {
				t.Fatalf("tar: %v: %s", err, out)
			}
			var split bytes.Buffer
			in, err := asm.NewInputTarStream(bytes.NewReader(archive), storage.NewJSONPacker(&split), storage.NewDiscardFilePutter())
			if err == nil {
				_, err = io.Copy(io.Discard, in)
			}
			if err != nil {
				t.Fatal(err)
			}
			write("overlay-layers/"+layer+".tar-split.gz", registrytest.Gzip(t, split.Bytes()))
			layers = append(layers, map[string]any{"id": layer, "parent": parent, "diff-digest": registrytest.Digest(archive)})
			parent = layer
		}
		write("overlay-images/"+id+"/="+base64.StdEncoding.EncodeToString([]byte(img.ID())), img.Config)
		list = append(list, map[string]any{"id": id, "names": []string{name}, "digest": registrytest.Digest(img.Manifest), "layer": parent})
	}
	for name, v := range map[string]any{"overlay-images/images.json": list, "overlay-layers/layers.json": layers} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		write(name, b)
	}
	return root
}

func TestImportFromCRIO(t *testing.T) {
	n := open(t, t.TempDir(), nil)
	a, b := simple(t, "from CRI-O"), simple(t, "damaged")
	root := crioStore(t, map[string]*registrytest.Image{"docker.io/library/a:v1": a, "reg.example/b:v2": b})
	damaged := filepath.Join(root, "overlay", b.ID()[7:67]+"1", "diff/etc/motd")
	if err := os.WriteFile(damaged, []byte("DAMAGED"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, failed, err := n.ImportCRIO(t.Context(), root)
	if err != nil || len(got) != 1 || len(failed) != 1 || !strings.Contains(failed[0].Error(), "reg.example/b:v2") {
		t.Fatalf("%+v, %v, %v", got, failed, err)
	}
	i, err := n.Resolve("a:v1")
	if err != nil || i.ID != a.ID() || !slices.Equal(i.RepoDigests, []string{"docker.io/library/a@" + registrytest.Digest(a.Manifest)}) {
		t.Fatalf("%+v, %v", i, err)
	}
	if s := n.read(t, i, "etc/motd"); s != "from CRI-O" {
		t.Errorf("motd %q", s)
	}
	n.clean(t)
	if err := os.WriteFile(filepath.Join(root, "overlay-layers/layers.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.ImportCRIO(t.Context(), root); err == nil {
		t.Error("a broken list was read")
	}
	_, failed, err = n.ImportCRIO(t.Context(), crioStore(t, map[string]*registrytest.Image{"x:1": registrytest.NewImage(t, nil, nil, nil)}))
	if err != nil || len(failed) > 0 {
		t.Errorf("an image without layers: %v, %v", failed, err)
	}
	if _, _, err := n.ImportCRIO(t.Context(), t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no CRI-O: %v, want %v", err, errs.NotFound)
	}
}
