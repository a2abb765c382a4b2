// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"testing"

	"crishim.dev/image/registry/registrytest"
	"crishim.dev/snapshot"
)

// What an image shares with others is told apart from what its removal gives back.
func TestDiskUsage(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	layer := func(name string, size int) []byte { return registrytest.Tar(t, registrytest.File(name, noise(size))) }
	base, twice := layer("base", 300_000), layer("twice", 50_000)
	reg.Push(t, "a", "v", registrytest.NewImage(t, [][]byte{base, layer("a", 100_000)}, nil, nil))
	reg.Push(t, "b", "v", registrytest.NewImage(t, [][]byte{base, twice, twice}, nil, nil))
	reg.Push(t, "c", "v", registrytest.NewImage(t, [][]byte{layer("c", 10_000)}, nil, nil))
	for _, name := range []string{"a", "b", "c"} {
		n.pull(t, reg.Host+"/"+name+":v", nil)
	}
	var layers uint64
	for _, l := range n.snap.Layers() {
		layers += l.Bytes
	}
	below, _ := n.snap.Layer(snapshot.DiffKey(registrytest.Digest(base)))
	want := map[string]uint64{"a": below.Bytes, "b": below.Bytes, "c": 0}
	all := n.Disk()
	if len(all) != 3 || below.Bytes < 300_000 {
		t.Fatalf("%+v; the base layer takes %d bytes", all, below.Bytes)
	}
	for _, i := range all {
		name := i.RepoTags[0][len(reg.Host)+1:][:1]
		if i.Shared != want[name] {
			t.Errorf("%s shares %d bytes, want %d", name, i.Shared, want[name])
		}
		own := i.Size - i.Shared
		if err := n.Remove(t.Context(), i.ID); err != nil {
			t.Fatal(err)
		}
		var left uint64
		for _, l := range n.snap.Layers() {
			left += l.Bytes
		}
		if freed := layers - left; freed != own-1 { // a size is never 0: it is one more
			t.Errorf("the removal of %s freed %d bytes of layers; it had %d of its own", name, freed, own-1)
		}
		for _, other := range n.Disk() {
			if other.Shared != 0 && name != "c" {
				t.Errorf("after the removal of %s, %s shares %d bytes", name, other.RepoTags[0], other.Shared)
			}
		}
		n.pull(t, i.RepoTags[0], nil)
	}
}
