// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
)

// disk knows where things lie in the store's directory, and how to make them vanish in one step.
type disk struct {
	dir    string
	trash  trash
	serial atomic.Uint64
}

func (d *disk) path(parts ...string) string {
	return filepath.Join(append([]string{d.dir}, parts...)...)
}
func (d *disk) layer(k Key) string        { return d.path("layers", string(k)) }
func (d *disk) tree(k Key) string         { return d.path("layers", string(k), "fs") }
func (d *disk) snapshot(id string) string { return d.path("snapshots", id) }
func (d *disk) upper(id string) string    { return d.path("snapshots", id, "upper") }
func (d *disk) work(id string) string     { return d.path("snapshots", id, "work") }
func (d *disk) draft() string             { return d.path("drafts", d.unique()) }

// unique is a name that no other process of this directory has given; what crashed ones left is cleared by Open.
func (d *disk) unique() string {
	return strconv.Itoa(os.Getpid()) + "." + strconv.FormatUint(d.serial.Add(1), 10)
}

// discard moves path out of sight in one step and has it deleted after. A missing path is fine.
func (d *disk) discard(path string) error {
	for {
		name := d.unique()
		to := d.path("trash", name)
		if _, err := os.Lstat(to); err == nil { // left by a process that had our id
			continue
		}
		if err := os.Rename(path, to); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		d.trash.put(name)
		return nil
	}
}

// renew makes the work directory anew: an overlay mounted volatile leaves a mark in it that forbids the next mount, which matters
// after a power cut and not within one boot. The writable directory of another boot belongs to no container that may start.
func (d *disk) renew(work string) error {
	err := os.Remove(work) // empty before the first mount
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		if err := d.discard(work); err != nil {
			return err
		}
	}
	return os.Mkdir(work, 0o700)
}

// lowers gives the layers' directories as overlayfs wants them, top first. It refuses the same directory twice (ELOOP), and images
// do repeat layers. The topmost of equal ones stays: all that a lower one has or hides, the topmost has or hides too.
func (d *disk) lowers(layers []Key) []string {
	out := make([]string, 0, len(layers)+1)
	seen := make(map[Key]bool, len(layers))
	for _, k := range slices.Backward(layers) {
		if !seen[k] {
			seen[k] = true
			out = append(out, d.tree(k))
		}
	}
	return out
}
