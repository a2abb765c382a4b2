// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crishim.dev/image"
	"crishim.dev/image/registry/registrytest"
	"crishim.dev/internal/errs"
	"crishim.dev/internal/powercut"
)

// small gives a file system of a few megabytes.
func small(t testing.TB, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func noise(n int) string {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

func available(t testing.TB, dir string) uint64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Bavail * uint64(st.Bsize)
}

// A pull that fills the disk gives everything back, and images can be removed when nothing is left.
func TestDiskFull(t *testing.T) {
	t.Run("tmpfs", func(t *testing.T) { diskFull(t, small(t, "16m")) })
	t.Run("ext4", func(t *testing.T) { diskFull(t, smallExt4(t)) })
}

// smallExt4 gives an ext4 of a few megabytes on a block device.
func smallExt4(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	file, dir := filepath.Join(t.TempDir(), "ext4"), t.TempDir()
	if err := os.WriteFile(file, emptyExt4(t), 0o600); err != nil {
		t.Fatal(err)
	}
	unmount, err := powercut.MountFile(file, "ext4", dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func diskFull(t *testing.T, dir string) {
	reg := registrytest.New(t)
	n := open(t, dir, func(o *image.Options) { o.MinFree = 1 })
	reg.Push(t, "small", "v", simple(t, "x"))
	reg.Push(t, "large", "v", registrytest.NewImage(t, [][]byte{
		registrytest.Tar(t, registrytest.File("a", noise(4<<20))), registrytest.Tar(t, registrytest.File("b", noise(40<<20))),
	}, nil, nil))
	i := n.pull(t, reg.Host+"/small:v", nil)
	before := available(t, dir)
	_, err := n.Pull(t.Context(), reg.Host+"/large:v", nil)
	wantKind(t, err, errs.Exhausted, "layer ", " of 2") // whichever of them met the end first
	n.clean(t)
	if after := available(t, dir); after+(1<<20) < before {
		t.Errorf("%d bytes were free, now %d", before, after)
	}
	if _, err := n.Resolve(i.ID); err != nil {
		t.Error(err)
	}
	fill, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	for err == nil {
		_, err = fill.WriteString(strings.Repeat("x", 4096))
	}
	if err := n.Remove(t.Context(), i.ID); err != nil {
		t.Errorf("remove on a full disk: %v", err)
	}
	if len(n.List()) != 0 || len(n.snap.Layers()) != 0 {
		t.Errorf("left %v, %v", n.List(), n.snap.Layers())
	}
}

// A pull stops before the last of the disk is used.
func TestMinFree(t *testing.T) {
	reg, dir := registrytest.New(t), small(t, "96m")
	n := open(t, dir, func(o *image.Options) { o.MinFree = 80 << 20 })
	reg.Push(t, "large", "v", registrytest.NewImage(t, [][]byte{registrytest.Tar(t, registrytest.File("b", strings.Repeat("x", 90<<20)))}, nil, nil))
	_, err := n.Pull(t.Context(), reg.Host+"/large:v", nil)
	wantKind(t, err, errs.Exhausted, "MiB left")
	n.clean(t)
}

// A layer's memory does not grow with its size, packed or unpacked.
func TestMemoryIsBounded(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	for name, pack := range map[string]func(testing.TB, []byte) []byte{"gzip": registrytest.Gzip, "zstd": registrytest.Zstd} {
		reg.Push(t, name, "v", registrytest.NewImage(t, [][]byte{registrytest.Tar(t, registrytest.File("f", strings.Repeat("0123456789abcdef", 6<<20)))}, pack, nil))
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		n.pull(t, reg.Host+"/"+name+":v", nil)
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 40<<20 {
			t.Errorf("%s: %d MiB were allocated for a layer of 96 MiB", name, got>>20)
		}
	}
}
