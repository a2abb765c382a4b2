// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"bytes"
	"fmt"
	"testing"

	"crishim.dev/image/registry/registrytest"
)

// wideFrame is a zstd frame with a window of 128 MiB, the largest that is taken, which repeats a byte n times 128 KiB.
func wideFrame(archive []byte) []byte {
	out := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x88}
	for len(archive) > 0 {
		b := archive[:min(len(archive), 128<<10)]
		archive = archive[len(b):]
		last := 0
		if len(archive) == 0 {
			last = 1
		}
		kind, content := 0, b // raw
		if bytes.Count(b, b[:1]) == len(b) {
			kind, content = 1, b[:1] // repeated
		}
		h := len(b)<<3 | kind<<1 | last
		out = append(append(out, byte(h), byte(h>>8), byte(h>>16)), content...)
	}
	return out
}

// Layers that need much memory to be unpacked get it one after the other.
func TestWideWindows(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	layers := [][]byte{registrytest.Tar(t, registrytest.Dir("d"))}
	for _, name := range []string{"f0", "d/f1", "f2", "d/f3"} { // those in d need the layers below
		layers = append(layers, registrytest.Tar(t, registrytest.File(name, string(make([]byte, 130<<20)))))
	}
	img := registrytest.NewImage(t, layers, func(_ testing.TB, b []byte) []byte { return wideFrame(b) }, nil)
	reg.Push(t, "app", "v", img)
	peak := watchHeap()
	i := n.pull(t, reg.Host+"/app:v", nil)
	if most := peak(); most > 300<<20 { // one at work, and one that the garbage collector has not seen yet
		t.Errorf("it took %d MiB of memory", most>>20)
	}
	if got := n.read(t, i, "d/f3"); len(got) != 130<<20 {
		t.Errorf("%d bytes", len(got))
	}
}

// Layers that wait for those below do not add up in memory, however many they are.
func TestManyThatWait(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	layers := [][]byte{registrytest.Tar(t, registrytest.Dir("d"))}
	for i := range 120 {
		layers = append(layers, registrytest.Tar(t, registrytest.File(fmt.Sprint("d/f", i), string(make([]byte, 4<<20)))))
	}
	img := registrytest.NewImage(t, layers, nil, nil)
	reg.Push(t, "app", "v", img)
	peak := watchHeap()
	i := n.pull(t, reg.Host+"/app:v", nil)
	if most := peak(); most > hostileMemory {
		t.Errorf("it took %d MiB of memory", most>>20)
	}
	if got := n.read(t, i, "d/f119"); len(got) != 4<<20 {
		t.Errorf("%d bytes", len(got))
	}
}
