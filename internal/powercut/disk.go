// SPDX-License-Identifier: Apache-2.0

// Package powercut is a disk for tests that remembers every write, so that the power can be cut after each of them.
//
// A Disk is a block device of the real kernel: a loop device on the one file of a FUSE file system, which this process serves from
// memory. What reaches it is what would reach a disk: the writes of the file system, in the order in which the kernel gave them, and
// its flushes. After a power cut everything before the last flush is there; of the writes since, any, whole or in part, in any order.
package powercut

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sync"
)

// sector is what a disk writes in one piece: the physical sector of today's. (ext4 has no answer to half a superblock of 1 KiB.)
const sector = 4096

// Disk is a disk in memory. Safe for concurrent use.
type Disk struct {
	mu      sync.Mutex
	data    []byte
	before  []byte  // data when recording began; nil: nothing is recorded
	written []write // since then
}

// write is one write; one without data is a flush.
type write struct {
	off  int64
	data []byte
}

// New makes a disk with a content.
func New(content []byte) *Disk { return &Disk{data: slices.Clone(content)} }

// Record begins to remember writes.
func (d *Disk) Record() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.before, d.written = slices.Clone(d.data), nil
}

// Writes is how many writes and flushes were recorded.
func (d *Disk) Writes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.written)
}

// Cut gives the disk as it is when the power goes after n writes: with all of them, as a disk without a cache has it, or, with a
// source of chance, with some of those since the last flush lost and one torn.
func (d *Disk) Cut(n int, chance *rand.Rand) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := New(d.before)
	flushed := 0
	for i, w := range d.written[:n] {
		if w.data == nil {
			flushed = i
		}
	}
	for i, w := range d.written[:n] {
		switch {
		case chance == nil || i < flushed || chance.IntN(3) > 0:
			copy(out.data[w.off:], w.data)
		case chance.IntN(2) == 0 && len(w.data) > sector:
			copy(out.data[w.off:], w.data[:sector*(1+chance.IntN(len(w.data)/sector-1))])
		}
	}
	return out
}

func (d *Disk) size() int64 { return int64(len(d.data)) }

func (d *Disk) read(p []byte, off int64) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off < 0 || off >= d.size() {
		return 0
	}
	return copy(p, d.data[off:])
}

func (d *Disk) write(p []byte, off int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off < 0 || off+int64(len(p)) > d.size() {
		return false
	}
	copy(d.data[off:], p)
	if d.before != nil {
		d.written = append(d.written, write{off, bytes.Clone(p)})
	}
	return true
}

func (d *Disk) flush() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.before != nil {
		d.written = append(d.written, write{})
	}
}
