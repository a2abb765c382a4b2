// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"golang.org/x/sys/unix"

	"crishim.dev/proto"
)

// maxBacklog is how many bytes wait for a client that reads slower than the container writes. One that falls behind further is dropped: the
// container is never held up by whoever looks on.
const maxBacklog = 1 << 20

// tap is one output of a process copied to one client. Guarded by proc.mu.
type tap struct {
	p      *proc
	stream int
	fd     int
	queue  []byte
	ended  bool // the stream is at its end: close when the queue is empty
}

// addTap starts copying. The descriptor becomes the tap's.
func (p *proc) addTap(stream, fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	t := &tap{p: p, stream: stream, fd: fd}
	p.mu.Lock()
	defer p.mu.Unlock()
	// No events asked for: EPOLLERR comes unasked when the client has closed its end. What can't be polled (a file) needs none.
	if err := p.y.poll.add(fd, 0, t); err != nil && err != unix.EPERM { //nolint:errorlint // bare errno
		p.y.poll.del(fd)
		return err
	}
	p.taps = append(p.taps, t)
	return nil
}

// ready is the poller's call.
func (t *tap) ready(events uint32) {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		t.remove()
		return
	}
	queue := t.queue
	t.queue = nil
	t.write(queue)
	if len(t.queue) == 0 {
		t.p.y.poll.arm(t.fd, 0)
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
			t.p.y.poll.arm(t.fd, unix.EPOLLOUT)
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
			t.p.y.poll.del(t.fd)
			unix.Close(t.fd)
			t.queue = nil
			return
		}
	}
}

// show copies output to the clients that look on.
func (p *proc) show(s *stream, b []byte) {
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
func (p *proc) showNew(s *stream, b []byte, off int64) {
	if end := off + int64(len(b)); end > s.shown {
		p.show(s, b[max(0, s.shown-off):])
		s.shown = end
	}
}

// stdin gives a client what it writes to: the pty's master, or an end of the FIFO of its own. A process with StdinOnce
// gives away the only write end, so that the end of the client is the end of input, however the client ends.
func (y *younger) stdinLocked(r *record) (fd int, err error) {
	if pty := r.fd(proto.HeldPTY, 0); pty >= 0 {
		return dup(pty)
	}
	held := r.fd(proto.HeldStdin, 0)
	if held < 0 {
		return -1, unix.EPIPE
	}
	if r.Flags&proto.KeepStdinOnce != 0 {
		fd, err := dup(held)
		if err == nil {
			y.keepLocked(r, func(k *proto.Keep) { k.Drop = []proto.Held{{Kind: proto.HeldStdin}} })
		}
		return fd, err
	}
	return unix.Openat(fdDir, r.ID+"/"+fifoNames[0], unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
}

func dup(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) }

// drawMaster moves what a pty holds into the FIFO behind it, so that the pump finds output of ptys and pipes alike in something that a
// killed keeper leaves whole. EIO is the end: the last process has closed the terminal.
func (s *stream) drawMaster(b *buffers) error {
	for {
		n, err := unix.Splice(s.fd, nil, s.conduit, nil, chunkSize, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if err == unix.EINVAL { //nolint:errorlint // a kernel that can't splice from terminals (before 6.5)
			n, err = s.copyMaster(b)
		}
		switch {
		case err == unix.EINTR: //nolint:errorlint // bare errno
		case err == unix.EAGAIN: //nolint:errorlint // bare errno
			return nil // nothing more, or the FIFO is full
		case err != nil || n == 0:
			unix.Close(s.conduit)
			s.conduit = -1
			return nil
		}
	}
}

// copyMaster reads no more than the FIFO takes without blocking.
func (s *stream) copyMaster(b *buffers) (int64, error) {
	const atomic = 4096 // PIPE_BUF
	p := []unix.PollFd{{Fd: int32(s.conduit), Events: unix.POLLOUT}}
	if n, err := unix.Poll(p, 0); err != nil || n == 0 {
		return 0, unix.EAGAIN
	}
	n, err := unix.Read(s.fd, b.in[:atomic])
	if err != nil || n == 0 {
		return 0, err
	}
	_, err = unix.Write(s.conduit, b.in[:n])
	return int64(n), err
}
