// SPDX-License-Identifier: Apache-2.0

package pump

import (
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/sys"
)

// Sizes of the pump. A chunk is what a pipe holds, so that a full one is emptied at once.
const (
	chunkSize  = 64 << 10
	outSize    = 256 << 10
	punchEvery = 1 << 20 // spool bytes in the log are given back to the file system in pieces of this size, and when it is empty
)

// A process that writes often in small pieces would wake the pump for each. When output has come a few times in a row within busyGap, the
// pump takes what a batchWait has brought instead, from a pipe that is large enough not to hold up the process meanwhile.
const (
	busyGap   = 2 * time.Millisecond
	batchWait = time.Millisecond
	busyAfter = 4
	busyPipe  = 512 << 10
)

// stream is one output of a process: a FIFO, or a pty's master that is copied through a FIFO.
// All fields but p, index and fd belong to the worker; eof is set with Pump.mu held.
type stream struct {
	p     *Pump
	index int
	// fd is what the poller watches: the FIFO's read end or the master; -1 without this stream.
	fd      int
	fifo    int
	conduit int // write end of the FIFO behind a master, else -1
	spool   int // -1 until there was output
	size    int64
	shown   int64 // spool offset up to which attached clients have been served
	punched int64
	eof     bool
	// last is when there was output; streak counts how often in a row it came soon after.
	last   time.Time
	streak int
}

// Ready is the poller's call: there is something to read.
func (s *stream) Ready(uint32) { s.p.kick(doStdout << s.index) }

// pump takes one pipe's fill from a stream to the log, and says whether there may be more.
func (p *Pump) pump(s *stream, b *buffers) bool {
	if s.fd < 0 || s.eof {
		return false
	}
	n, err := p.fill(s, b)
	switch {
	case err == unix.EAGAIN: //nolint:errorlint // bare errno
		if s.streak >= busyAfter && time.Since(s.last) < busyGap {
			p.pause(batchWait)
			return true
		}
		p.trim(s, true)
		p.poller.Arm(s.fd, unix.EPOLLIN|sys.OneShot)
		return false
	case err != nil:
		p.owner.Failed("read output", err)
		if !p.pause(time.Second) {
			return false
		}
		return true
	case n == 0:
		p.finish(s, b)
		return false
	}
	s.pace()
	p.drain(s, b, false)
	p.trim(s, false)
	return true
}

// pace notes that there was output.
func (s *stream) pace() {
	now := time.Now()
	if now.Sub(s.last) < busyGap {
		if s.streak++; s.streak == busyAfter {
			unix.FcntlInt(uintptr(s.fifo), unix.F_SETPIPE_SZ, busyPipe) //nolint:errcheck // helps, where allowed
		}
	} else {
		s.streak = 0
	}
	s.last = now
}

// finish ends a stream at its end: what is left is its last text.
func (p *Pump) finish(s *stream, b *buffers) {
	p.poller.Del(s.fd)
	p.drain(s, b, true)
	p.trim(s, true)
	p.mu.Lock()
	s.eof = true
	for _, t := range p.taps {
		if t.stream == s.index {
			t.finish()
		}
	}
	p.mu.Unlock()
}

// fill moves output from the FIFO to the spool, or reads it when there is no log. It returns 0 at the end. What it moves is in either the
// one or the other at any instruction: the spool's size, which the kernel keeps, counts what was consumed.
func (p *Pump) fill(s *stream, b *buffers) (int, error) {
	if s.conduit >= 0 {
		if err := s.drawMaster(b); err != nil {
			return 0, err
		}
	}
	if !p.logged {
		return p.discard(s, b)
	}
	if s.spool < 0 {
		if err := s.openSpool(unix.O_CREAT); err != nil {
			return 0, err
		}
	}
	for {
		off := s.size
		n, err := unix.Splice(s.fifo, nil, s.spool, &off, chunkSize, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if err == unix.EINTR {
			continue
		}
		s.size = off
		return int(n), err
	}
}

// discard reads output that only attached clients see.
func (p *Pump) discard(s *stream, b *buffers) (n int, err error) {
	err = sys.Retry(func() error { n, err = unix.Read(s.fifo, b.in[:]); return err })
	if err != nil {
		return 0, err
	}
	p.show(s, b.in[:n])
	return n, nil
}

// spoolNames are the ends of the spools' names.
var spoolNames = [2]string{"spool1", "spool2"}

// openSpool opens the stream's spool; flags is O_CREAT or 0.
func (s *stream) openSpool(flags int) error {
	fd, err := unix.Openat(s.p.dir, s.p.name+spoolNames[s.index], unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW|flags, 0o600)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return err
	}
	s.spool, s.size = fd, st.Size
	return nil
}

// drain writes what the spool has to the log, as far as it makes lines, or all of it.
func (p *Pump) drain(s *stream, b *buffers, all bool) {
	if s.spool < 0 {
		return
	}
	for {
		pos := p.progress.at()
		have := s.size - int64(pos.spool[s.index])
		n := int(min(have, chunkSize))
		if n <= 0 || !p.load(s, b, int64(pos.spool[s.index]), n) {
			return
		}
		p.showNew(s, b.in[:n], int64(pos.spool[s.index]))
		use := whole(b.in[:n])
		if all && use == 0 {
			use = n
		}
		if use == 0 || !p.commit(s, b, use) {
			return
		}
	}
}

// load reads n bytes of the spool to the buffer.
func (p *Pump) load(s *stream, b *buffers, off int64, n int) bool {
	for done := 0; done < n; {
		m, err := unix.Pread(s.spool, b.in[done:n], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil || m == 0 {
			p.owner.Failed("read spool", err)
			return false
		}
		done += m
	}
	return true
}

// commit writes the first use bytes of the buffer to the log: first the intent with its time, then the lines, then the new position.
// It returns false when the pump is being closed.
func (p *Pump) commit(s *stream, b *buffers, use int) bool {
	for {
		pos := p.progress.at()
		pos.end, pos.time, pos.mode = pos.spool[s.index]+uint64(use), time.Now().UnixNano(), uint32(1+s.index)
		p.progress.set(pos)
		switch p.write(b.in[:use], b) {
		case wrote:
			return true
		case closing:
			return false
		case reopened: // the intent was taken back; the same text goes to the new file
		}
	}
}

// redo completes the write that a killed keeper had begun, the same bytes to the same place, and goes on with what else it had put in
// the spools.
func (p *Pump) redo(b *buffers) {
	if pos := p.progress.at(); pos.mode != 0 {
		i := int(pos.mode-1) & 1
		s, off := &p.streams[i], int64(pos.spool[i])
		if n := int(int64(pos.end) - off); s.spool >= 0 && n > 0 && n <= chunkSize && p.load(s, b, off, n) {
			p.write(b.in[:n], b)
		}
	}
	for i := range p.streams {
		p.drain(&p.streams[i], b, false)
	}
}

// trim gives the spool's pages back to the file system: all of them when the stream is idle.
func (p *Pump) trim(s *stream, idle bool) {
	if s.spool < 0 {
		return
	}
	done := int64(p.progress.at().spool[s.index])
	if done-s.punched < punchEvery && (!idle || done == s.punched) {
		return
	}
	const page = 4096
	end := done &^ (page - 1)
	if done == s.size {
		end = (done + page - 1) &^ (page - 1)
	}
	if start := s.punched &^ (page - 1); end > start {
		unix.Fallocate(s.spool, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, start, end-start) //nolint:errcheck // costs memory, no more
	}
	s.punched = done
}

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
