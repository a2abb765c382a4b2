// SPDX-License-Identifier: Apache-2.0

package pump

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// buffers is the memory a worker needs, outside the heap.
type buffers struct {
	in  [chunkSize]byte
	out [outSize]byte
}

// Pool keeps a few buffers between bursts of output, and none when there is no output. Safe for concurrent use; the zero value is empty.
type Pool struct {
	mu   sync.Mutex
	free []*buffers
}

const keepBuffers = 2

func (p *Pool) get() *buffers {
	p.mu.Lock()
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		p.mu.Unlock()
		return b
	}
	p.mu.Unlock()
	m, err := unix.Mmap(-1, 0, int(unsafe.Sizeof(buffers{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return new(buffers)
	}
	return (*buffers)(unsafe.Pointer(&m[0]))
}

func (p *Pool) put(b *buffers) {
	if b == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) < keepBuffers {
		p.free = append(p.free, b)
		return
	}
	b.release()
}

// Empty gives all memory back.
func (p *Pool) Empty() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.free {
		b.release()
	}
	p.free = nil
}

// release unmaps the buffers; those that came from the heap for want of a mapping are left to the collector.
func (b *buffers) release() {
	unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(b)), unsafe.Sizeof(*b))) //nolint:errcheck // unix.Munmap knows its own mappings only
}
