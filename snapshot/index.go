// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"maps"
	"slices"
	"sync"

	"crishim.dev/internal/errs"
)

// index is what the store knows of its directory, and who needs what. Safe for concurrent use; no method does I/O.
type index struct {
	// mu guards all. refs[k] = number of snapshots that have layer k; holds[k] = number of holds on it.
	mu     sync.Mutex
	layers map[Key]Layer
	snaps  map[string][]Key
	refs   map[Key]int
	holds  map[Key]int
}

func newIndex() *index {
	return &index{layers: map[Key]Layer{}, snaps: map[string][]Key{}, refs: map[Key]int{}, holds: map[Key]int{}}
}

func (x *index) layer(k Key) (Layer, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	l, ok := x.layers[k]
	return l, ok
}

func (x *index) allLayers() []Layer {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := make([]Layer, 0, len(x.layers))
	for _, k := range slices.Sorted(maps.Keys(x.layers)) {
		out = append(out, x.layers[k])
	}
	return out
}

func (x *index) putLayer(l Layer) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.layers[l.Key] = l
}

// takeLayer removes a layer that nobody needs. ok says that it was there.
func (x *index) takeLayer(k Key) (l Layer, ok bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	l, ok = x.layers[k]
	if refs, holds := x.refs[k], x.holds[k]; ok && (refs > 0 || holds > 0) {
		return l, ok, errs.Newf(errs.Precondition, "in use by %d snapshots and %d pulls or mounts", refs, holds)
	}
	delete(x.layers, k) // from here on no snapshot can be made on it
	return l, ok, nil
}

func (x *index) hold(keys []Key, by int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, k := range keys {
		if x.holds[k] += by; x.holds[k] == 0 {
			delete(x.holds, k)
		}
	}
}

// claim enters a new snapshot, so that its layers stay.
func (x *index) claim(id string, layers []Key) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.snaps[id]; ok {
		return errs.Newf(errs.AlreadyExists, "id is taken")
	}
	for _, k := range layers {
		if _, ok := x.layers[k]; !ok {
			return errs.Newf(errs.NotFound, "find layer %s", k)
		}
	}
	x.addLocked(id, slices.Clone(layers))
	return nil
}

// addLocked enters a snapshot. It needs mu, or the index to itself.
func (x *index) addLocked(id string, layers []Key) {
	x.snaps[id] = layers
	for _, k := range layers {
		x.refs[k]++
	}
}

// release is the inverse of claim. An unknown id is fine.
func (x *index) release(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, k := range x.snaps[id] {
		if x.refs[k]--; x.refs[k] == 0 {
			delete(x.refs, k)
		}
	}
	delete(x.snaps, id)
}

// layersOf lists a snapshot's layers, bottom first.
func (x *index) layersOf(id string) ([]Key, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	layers, ok := x.snaps[id]
	if !ok {
		return nil, errs.Newf(errs.NotFound, "find snapshot %s", id)
	}
	return layers, nil
}

func (x *index) snapshots() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Sorted(maps.Keys(x.snaps))
}
