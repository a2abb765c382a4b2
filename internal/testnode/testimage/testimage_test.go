// SPDX-License-Identifier: Apache-2.0

package testimage

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// TestAll builds every image twice: the same digests, and no two images alike.
func TestAll(t *testing.T) {
	busybox, err := exec.Command("../../../hack/tool", "busybox").Output()
	if err != nil {
		t.Skipf("needs a static busybox (hack/tool busybox): %v", err)
	}
	probe := filepath.Join(t.TempDir(), "probe")
	if out, err := exec.Command("go", "build", "-o", probe, "../probe").CombinedOutput(); err != nil {
		t.Fatalf("build probe: %v\n%s", err, out)
	}
	src := Source{Busybox: string(busybox[:len(busybox)-1]), Probe: probe, Arch: runtime.GOARCH}
	if _, err := os.Stat(src.Busybox); err != nil {
		t.Fatal(err)
	}
	first, err := All(src)
	if err != nil {
		t.Fatal(err)
	}
	second, err := All(src)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]string)
	for i, img := range first {
		if img.Image == nil {
			continue
		}
		a, err := img.Image.Digest()
		if err != nil {
			t.Fatal(err)
		}
		b, err := second[i].Image.Digest()
		if err != nil {
			t.Fatal(err)
		}
		if a != b {
			t.Errorf("%s: %v, then %v", img.Refs[0], a, b)
		}
		if other := seen[a.String()]; other != "" {
			t.Errorf("%s and %s are the same image", other, img.Refs[0])
		}
		seen[a.String()] = img.Refs[0]
	}
}
