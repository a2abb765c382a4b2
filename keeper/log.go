// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"crishim.dev/proto"
)

// outcome is what became of a write to the log.
type outcome int

const (
	wrote outcome = iota
	forgotten
	reopened
)

const maxBackoff = 2 * time.Second

// write does what the intent in force says with its text, and puts the position after it in force. An error of the log file (no
// space, a quota, a broken disk) stops nothing but this container's output: the write is tried again until it succeeds, the log
// is reopened, or the process is forgotten; the container meanwhile blocks when its pipe is full.
func (p *proc) write(text []byte, b *buffers) outcome {
	pos := p.slot.at()
	i := int(pos.mode-1) & 1
	told := false
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, maxBackoff) {
		off := int64(pos.log)
		err := format(b.out[:0], text, pos.time, i, func(lines []byte) error {
			err := writeAt(p.logFile(pos.gen), lines, off)
			off += int64(len(lines))
			return err
		})
		if err == nil {
			pos.log, pos.spool[i], pos.mode = uint64(off), pos.end, 0
			p.slot.set(pos)
			return wrote
		}
		if wait == maxBackoff && !told {
			told = true
			p.y.log.failed("write log of "+p.id, err)
		}
		if !p.pause(wait) {
			return forgotten
		}
		if p.switchLog() {
			return reopened
		}
	}
}

func writeAt(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if err != nil && err != unix.EINTR {
			return err
		}
		b, off = b[max(n, 0):], off+int64(max(n, 0))
	}
	return nil
}

// logFile gives the log file of a generation.
func (p *proc) logFile(gen uint32) int {
	p.y.mu.Lock()
	defer p.y.mu.Unlock()
	return p.rec.fd(proto.HeldLog, gen)
}

// reopen is a request for another log file.
type reopen struct {
	c   *conn
	seq uint64
	fd  int
}

// switchLog goes on in the newest log file that was asked for, at its end, and says whether there was one. It is called at points where no
// write is under way, or the one under way can't succeed: that one is taken back.
//
// The elder has the file before the position names it, and loses the old one after.
func (p *proc) switchLog() bool {
	p.mu.Lock()
	asked := p.reopens
	p.reopens = nil
	p.mu.Unlock()
	if len(asked) == 0 {
		return false
	}
	pos := p.slot.at()
	old, next := pos.gen, pos.gen+1
	if pos.mode != 0 {
		unix.Ftruncate(p.logFile(old), int64(pos.log)) //nolint:errcheck // a part of a line stays in a file that can't be written anyway
	}
	newest := asked[len(asked)-1]
	size, err := logSize(newest.fd)
	if err == nil {
		p.y.keep(p.rec, func(k *proto.Keep) { k.Add = []proto.Held{{Kind: proto.HeldLog, Arg: next}} }, newest.fd)
		pos.gen, pos.log, pos.mode = next, size, 0
		p.slot.set(pos)
		p.y.keep(p.rec, func(k *proto.Keep) { k.Drop = []proto.Held{{Kind: proto.HeldLog, Arg: old}} })
	} else {
		unix.Close(newest.fd)
	}
	for i, a := range asked {
		if i < len(asked)-1 {
			unix.Close(a.fd)
		}
		p.y.ack(a.c, a.seq, at("reopen log", err))
	}
	return err == nil
}

// logSize is where writing to a log file starts. Appending writes would ignore the offset, so the flag is taken away.
func logSize(fd int) (uint64, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return 0, err
	}
	if flags&unix.O_ACCMODE == unix.O_RDONLY {
		return 0, unix.EBADF
	}
	if flags&unix.O_APPEND != 0 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&^unix.O_APPEND); err != nil {
			return 0, err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, unix.EINVAL
	}
	return uint64(st.Size), nil
}

// pause waits before something is tried again, or until the worker is asked for something. It returns false when the process is to be
// forgotten. The end of a process is not held up by a log that can't be written.
func (p *proc) pause(d time.Duration) bool {
	wake := make(chan struct{})
	p.mu.Lock()
	if p.leaving {
		p.mu.Unlock()
		return false
	}
	p.wake = wake
	p.mu.Unlock()
	if p.slot.exited.Load() != 0 {
		d = min(d, exitDrain)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-wake:
	case <-timer.C:
	}
	p.mu.Lock()
	p.wake = nil
	leaving := p.leaving
	p.mu.Unlock()
	if p.slot.exited.Load() != 0 && time.Since(time.Unix(0, p.slot.exitTime)) > exitDrain {
		p.announce()
	}
	return !leaving
}

// buffers is the memory a worker needs, outside the heap.
type buffers struct {
	in  [chunkSize]byte
	out [outSize]byte
}

// bufferPool keeps a few buffers between bursts of output, and none when there is no output.
type bufferPool struct {
	mu   sync.Mutex
	free []*buffers
}

const keepBuffers = 2

func (p *bufferPool) get() *buffers {
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

func (p *bufferPool) put(b *buffers) {
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

// empty gives all memory back.
func (p *bufferPool) empty() {
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
