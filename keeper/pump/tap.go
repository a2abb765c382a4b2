// SPDX-License-Identifier: Apache-2.0

package pump

import "golang.org/x/sys/unix"

// maxBacklog is how many bytes wait for a client that reads slower than the container writes. One that falls behind further is dropped: the
// container is never held up by whoever looks on.
const maxBacklog = 1 << 20

// tap is one output of a process copied to one client. Guarded by Pump.mu.
type tap struct {
	p      *Pump
	stream int
	fd     int
	queue  []byte
	ended  bool // the stream is at its end: close when the queue is empty
	closed bool
}

// Attach copies a stream to a client from now on. The descriptor becomes the pump's, and is closed when the stream ends.
func (p *Pump) Attach(stream, fd int) error {
	err := unix.SetNonblock(fd, true)
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := &p.streams[stream]; err != nil || p.closed || s.fd < 0 || s.eof {
		unix.Close(fd) // no such stream, or no more: its end is now
		return err
	}
	t := &tap{p: p, stream: stream, fd: fd}
	// No events asked for: EPOLLERR comes unasked when the client has closed its end. What can't be polled (a file) needs none.
	if err := p.poller.Add(fd, 0, t); err != nil && err != unix.EPERM { //nolint:errorlint // bare errno
		p.poller.Del(fd)
		unix.Close(fd)
		return err
	}
	p.taps = append(p.taps, t)
	return nil
}

// Ready is the poller's call.
func (t *tap) Ready(events uint32) {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	if t.closed { // since the poller saw the event; fd may be another's by now
		return
	}
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		t.remove()
		return
	}
	queue := t.queue
	t.queue = nil
	t.write(queue)
	if len(t.queue) == 0 && !t.closed {
		t.p.poller.Arm(t.fd, 0)
		if t.ended {
			t.remove()
		}
	}
}

// write gives b to the client, as far as it takes it; the rest waits.
func (t *tap) write(b []byte) {
	for len(t.queue) == 0 && len(b) > 0 {
		n, err := unix.Write(t.fd, b)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			t.queue = append(t.queue, b...)
			t.p.poller.Arm(t.fd, unix.EPOLLOUT)
			return
		case err != nil:
			t.remove()
			return
		default:
			b = b[n:]
		}
	}
	if len(b) == 0 {
		return
	}
	if len(t.queue)+len(b) > maxBacklog {
		t.remove()
		return
	}
	t.queue = append(t.queue, b...)
}

// finish closes the client's end when it has got everything.
func (t *tap) finish() {
	t.ended = true
	if len(t.queue) == 0 {
		t.remove()
	}
}

func (t *tap) remove() {
	for i, have := range t.p.taps {
		if have == t {
			// A new slice: the caller may be walking the old one.
			t.p.taps = append(append([]*tap(nil), t.p.taps[:i]...), t.p.taps[i+1:]...)
			t.p.poller.Del(t.fd)
			unix.Close(t.fd)
			t.queue, t.closed = nil, true
			return
		}
	}
}

// show copies output to the clients that look on.
func (p *Pump) show(s *stream, b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.taps {
		if t.stream == s.index {
			t.write(b)
		}
	}
}

// showNew shows what of a piece of the spool at offset off has not been shown yet: a line that isn't whole is shown at once and
// written later.
func (p *Pump) showNew(s *stream, b []byte, off int64) {
	if end := off + int64(len(b)); end > s.shown {
		p.show(s, b[max(0, s.shown-off):])
		s.shown = end
	}
}
