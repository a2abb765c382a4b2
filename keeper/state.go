// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/pump"
	"crishim.dev/keeper/sys"
	"crishim.dev/proto"
)

// slot is what must survive kill -9 at any instruction about one process: how far its log has been written, how its launch
// failed and how it ended. It lives in memory shared by all images of the pair, of whatever version: its layout never changes.
type slot struct {
	progress pump.Progress
	// exitTime and exitStatus are valid when exited is 1.
	exitTime   int64
	exitStatus uint32
	exited     atomic.Uint32
	// errno is valid when failedOp is not 0, which is proto.Spawned.FailedOp less proto.FailedNone.
	errno    uint32
	failedOp atomic.Int32
}

const (
	slotSize  = 128
	numSlots  = 65536
	tableSize = slotSize * numSlots
)

// exit stores how the process ended, once.
func (s *slot) exit(status uint32) {
	if s.exited.Load() != 0 {
		return
	}
	s.exitTime, s.exitStatus = time.Now().UnixNano(), status
	s.exited.Store(1)
}

// fail stores how the launch failed, before that can't be learnt again.
func (s *slot) fail(op int32, errno uint32) {
	s.errno = errno
	s.failedOp.Store(op - proto.FailedNone)
}

// failure is how the launch failed: proto.FailedNone if it did not.
func (s *slot) failure() (op int32, errno uint32) {
	if op = s.failedOp.Load(); op == 0 {
		return proto.FailedNone, 0
	}
	return op + proto.FailedNone, s.errno
}

// failed says whether the launch has failed.
func (s *slot) failed() bool { return s.failedOp.Load() != 0 }

// table is the shared array of slots: 8 MiB of address space, of which only pages with slots in use take memory.
type table struct {
	slots *[numSlots]slot
	used  [numSlots / 64]uint64
}

// openTable maps the state of all images of the pair.
func openTable(fd int) (*table, error) {
	if unsafe.Sizeof(slot{}) != slotSize {
		panic("keeper: slot has another size")
	}
	b, err := unix.Mmap(fd, 0, tableSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, sys.At("map state", err)
	}
	return &table{slots: (*[numSlots]slot)(unsafe.Pointer(&b[0]))}, nil
}

func (t *table) slot(i uint32) *slot { return &t.slots[i%numSlots] }

// claim marks a slot as used by a process that exists already.
func (t *table) claim(i uint32) { t.used[i%numSlots/64] |= 1 << (i % 64) }

// alloc finds a free slot, the lowest for dense pages, and clears it.
func (t *table) alloc() (uint32, error) {
	for w := range t.used {
		if t.used[w] == ^uint64(0) {
			continue
		}
		for b := range uint32(64) {
			if t.used[w]&(1<<b) == 0 {
				i := uint32(w)*64 + b
				t.claim(i)
				t.slots[i] = slot{}
				return i, nil
			}
		}
	}
	return 0, unix.ENOSPC
}

// free gives a slot back, when the elder has been told.
func (t *table) free(i uint32) { t.used[i%numSlots/64] &^= 1 << (i % 64) }
