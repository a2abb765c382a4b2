// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crishim.dev/e2e/kit"
)

// An image goes out into an archive and comes back the same; what changed on disk is found.
func TestImageExportImportVerify(t *testing.T) {
	n := node(t)
	ref := small(t, n)
	id, err := pull(t, n, ref)
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	if out, err := n.Shim(kit.Context(t), "image", "export", ref, archive); err != nil {
		t.Fatal(out, err)
	}
	if out, err := n.Shim(kit.Context(t), "image", "remove", id); err != nil {
		t.Fatal(out, err)
	}
	out, err := n.Shim(kit.Context(t), "image", "import", archive)
	if err != nil || !strings.HasPrefix(out, id+" "+ref) {
		t.Fatalf("imported %q, %v; want %s %s", out, err, id, ref)
	}
	if out, err := n.Shim(kit.Context(t), "image", "verify", ref); err != nil || !strings.Contains(out, "ok ") {
		t.Errorf("%s %v", out, err)
	}
	damaged := 0
	err = filepath.WalkDir(filepath.Join(n.Root, "snapshots/layers"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "name" {
			damaged++
			err = os.WriteFile(path, []byte("localhost/other"), 0o600)
		}
		return err
	})
	if err != nil || damaged == 0 {
		t.Fatalf("damaged %d files, %v", damaged, err)
	}
	if out, err := n.Shim(kit.Context(t), "image", "verify", ref); err == nil || !strings.Contains(out, `bad `) || !strings.Contains(out, `"name"`) {
		t.Errorf("a damaged layer: %s %v", out, err)
	}
	if out, err := n.Shim(kit.Context(t), "image", "export", ref, archive+".2"); err == nil {
		t.Errorf("a damaged layer was exported: %s", out)
	}
	if left, _ := filepath.Glob(filepath.Dir(archive) + "/.export*"); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}
