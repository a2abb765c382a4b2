// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/proto"
)

// exitDrain bounds how long the end of a process waits for its output to be written.
const exitDrain = time.Second

// finish takes what was in the pipes when the process ended to the log, and then says that it has ended. A grandchild that keeps the
// output open can't hold this up: no more is read than there was. The pump goes on afterwards.
func (p *proc) finish(b *buffers) {
	for i := range p.streams {
		s := &p.streams[i]
		if s.fd < 0 || s.eof {
			continue
		}
		left, err := unix.IoctlGetInt(s.fifo, unix.TIOCINQ)
		if err != nil || s.conduit >= 0 {
			left = chunkSize // a pty holds less
		}
		for more := true; more; {
			n, err := p.fill(s, b)
			if err == nil && n == 0 {
				p.close(s, b)
				break
			}
			// When all that was there is in the spool, one more look finds the end of the stream where it has ended.
			more = err == nil && left > 0
			left -= n
			p.drain(s, b, false)
		}
		if !s.eof {
			p.drain(s, b, true)
			p.y.poll.arm(s.fd, unix.EPOLLIN|oneShot)
		}
	}
	p.announce()
}

// announce writes the exit record and tells everyone, once.
func (p *proc) announce() {
	p.y.mu.Lock()
	done := p.announced
	p.y.mu.Unlock()
	if done {
		return
	}
	p.y.log.failed("write exit record of "+p.id, writeExit(p.id, p.slot.exitStatus, p.slot.exitTime))
	p.y.mu.Lock()
	p.announced, p.dir = true, true
	p.y.broadcastLocked(&proto.Exited{ID: p.id, Status: p.slot.exitStatus, Time: p.slot.exitTime})
	p.y.mu.Unlock()
}

// end is the last thing a worker does: what output is left goes to the log, and everything is closed and removed.
func (p *proc) end(b *buffers) {
	for i := range p.streams {
		s := &p.streams[i]
		if s.fd < 0 {
			continue
		}
		if !s.eof {
			p.y.poll.del(s.fd)
			p.fill(s, b) //nolint:errcheck // whatever is left
			p.drain(s, b, true)
		}
		for _, fd := range []int{s.spool, s.conduit} {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	}
	y := p.y
	y.mu.Lock()
	defer y.mu.Unlock()
	p.mu.Lock()
	for len(p.taps) > 0 {
		p.taps[0].remove()
	}
	for _, r := range p.reopens {
		unix.Close(r.fd)
		r.c.ackLocked(r.seq, at("reopen log of "+p.id, unix.ENOENT))
	}
	p.reopens = nil
	p.mu.Unlock()
	y.discardLocked(p)
	for _, f := range p.forgets {
		f.c.ackLocked(f.seq, nil)
	}
}
