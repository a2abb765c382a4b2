// SPDX-License-Identifier: Apache-2.0

package fsx

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

func openRoot(t *testing.T) (*os.File, string) {
	t.Helper()
	base := t.TempDir()
	dir := filepath.Join(base, "root")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f, dir
}

func TestLinksStayInside(t *testing.T) {
	root, dir := openRoot(t)
	outside := filepath.Join(filepath.Dir(dir), "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"abs": outside, "rel": "../../../.." + outside, "dots": ".."} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		d, err := MkdirAllInRoot(root, "/"+name+"/made", 0o755, os.Getuid(), os.Getgid())
		if err != nil {
			t.Fatalf("through %s -> %s: %v", name, target, err)
		}
		_ = d.Close()
	}
	left, err := os.ReadDir(outside)
	if err != nil || len(left) != 0 {
		t.Fatalf("written outside the root: %v %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(dir, outside, "made")); err != nil {
		t.Fatalf("an absolute link should lead below the root: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "made")); err != nil {
		t.Fatalf("..: %v", err)
	}
}

func TestMagicLinksRefused(t *testing.T) {
	root, dir := openRoot(t)
	if err := os.Mkdir(filepath.Join(dir, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/self/root/etc/passwd", filepath.Join(dir, "p")); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFileInRoot(root, "p", 1<<20); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("got %v", err)
	}
}

func TestLoopEnds(t *testing.T) {
	root, dir := openRoot(t)
	if err := os.Symlink("b", filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a", filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if _, err := MkdirAllInRoot(root, "a/x", 0o755, 0, 0); !errors.Is(err, unix.ELOOP) {
		t.Fatalf("got %v, want ELOOP", err)
	}
}

func TestReadRefusesFIFOAndLarge(t *testing.T) {
	root, dir := openRoot(t)
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFileInRoot(root, "fifo", 10); !errors.Is(err, errs.Invalid) {
		t.Fatalf("fifo: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 11), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFileInRoot(root, "/big", 10); !errors.Is(err, errs.Invalid) {
		t.Fatalf("big: %v", err)
	}
	if b, err := ReadFileInRoot(root, "../../big", 11); err != nil || len(b) != 11 {
		t.Fatalf("exact size, clamped ..: %d %v", len(b), err)
	}
}

func TestTouchKeepsWhatIsThere(t *testing.T) {
	root, dir := openRoot(t)
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../run/stub", filepath.Join(dir, "resolv.conf")); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"/f", "/x/y/z", "resolv.conf"} {
		if err := TouchInRoot(root, p, 0o644, os.Getuid(), os.Getgid()); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != "kept" {
		t.Fatalf("%q %v", b, err)
	}
	if err := TouchInRoot(root, "x/y", 0o644, 0, 0); !errors.Is(err, unix.EISDIR) {
		t.Errorf("a directory: %v", err)
	}
	for _, p := range []string{"x/y/z", "run/stub"} {
		if st, err := os.Stat(filepath.Join(dir, p)); err != nil || !st.Mode().IsRegular() {
			t.Fatalf("%v %v", st, err)
		}
	}
}

func TestWriteFileAtomic(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, want := range []string{"one", "two"} {
		if err := WriteFileAtomic(path, []byte(want), 0o640, true); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Fatalf("%q %v", b, err)
		}
	}
	if l, err := os.ReadDir(dir); err != nil || len(l) != 1 {
		t.Fatalf("left over: %v %v", l, err)
	}
}
