// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
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
// All fields but fd belong to the goroutine in proc.work.
type stream struct {
	p     *proc
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

// todo is what a process's worker has been asked for.
type todo uint32

const (
	doStdout todo = 1 << iota
	doStderr
	doExit
	doReopen
	doForget
	doRedo
)

// proc is a process in the younger's hands. Its worker goroutine exists only while there is something to do.
type proc struct {
	y       *younger
	rec     *record // guarded by y.mu, but for ID and Slot, which never change
	id      string
	slot    *slot
	streams [2]stream
	logged  bool // it has a log file

	// Guarded by y.mu.
	launch    *launch // while under way
	failedOp  int32
	errno     uint32
	dir       bool      // it has a directory
	announced bool      // Exited has been sent: its output is in the log and its record written
	waiters   []request // Spawns and Releases to be answered when the launch has come to its end
	forgets   []request

	// mu guards what follows. It is taken after y.mu.
	mu      sync.Mutex
	todo    todo
	busy    bool          // the worker runs
	leaving bool          // doForget has been asked for: nothing is tried again
	wake    chan struct{} // closed to wake a worker that waits before it tries again
	reopens []reopen
	taps    []*tap
}

// kick asks the worker for something.
func (p *proc) kick(t todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.todo |= t
	p.leaving = p.leaving || t&doForget != 0
	if p.wake != nil {
		close(p.wake)
		p.wake = nil
	}
	if !p.busy {
		p.busy = true
		go p.work()
	}
}

// ready is the poller's call: there is something to read.
func (s *stream) ready(uint32) { s.p.kick(doStdout << s.index) }

// work does what has been asked until there is nothing left. One worker at a time runs for a process, so that both streams, which
// share one log file, are written in turn.
func (p *proc) work() {
	var b *buffers
	defer func() { p.y.pool.put(b) }()
	for {
		p.mu.Lock()
		t := p.todo
		p.todo = 0
		if t == 0 {
			p.busy = false
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		if b == nil {
			b = p.y.pool.get()
		}
		if t&doForget != 0 {
			p.end(b)
			return // busy stays set: nothing starts again
		}
		if t&doRedo != 0 {
			p.redo(b)
		}
		if t&doReopen != 0 {
			p.switchLog()
		}
		again := todo(0)
		for i := range p.streams {
			if t&(doStdout<<i) != 0 && p.pump(&p.streams[i], b) {
				again |= doStdout << i
			}
		}
		if t&doExit != 0 {
			p.finish(b)
		}
		if again != 0 {
			p.mu.Lock()
			p.todo |= again
			p.mu.Unlock()
		}
	}
}

// pump takes one pipe's fill from a stream to the log, and says whether there may be more.
func (p *proc) pump(s *stream, b *buffers) bool {
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
		p.y.poll.arm(s.fd, unix.EPOLLIN|oneShot)
		return false
	case err != nil:
		p.y.log.failed("read output of "+p.id, err)
		if !p.pause(time.Second) {
			return false
		}
		return true
	case n == 0:
		p.close(s, b)
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

// close ends a stream at its end: what is left is its last text.
func (p *proc) close(s *stream, b *buffers) {
	s.eof = true
	p.y.poll.del(s.fd)
	p.drain(s, b, true)
	p.trim(s, true)
	p.mu.Lock()
	for _, t := range p.taps {
		if t.stream == s.index {
			t.finish()
		}
	}
	p.mu.Unlock()
}

// fill moves output from the FIFO to the spool, or reads it when there is no log. It returns 0 at the end. What it moves is in either the
// one or the other at any instruction: the spool's size, which the kernel keeps, counts what was consumed.
func (p *proc) fill(s *stream, b *buffers) (int, error) {
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
func (p *proc) discard(s *stream, b *buffers) (n int, err error) {
	err = retry(func() error { n, err = unix.Read(s.fifo, b.in[:]); return err })
	if err != nil {
		return 0, err
	}
	p.show(s, b.in[:n])
	return n, nil
}

// openSpool opens the stream's spool; flags is O_CREAT or 0.
func (s *stream) openSpool(flags int) error {
	fd, err := unix.Openat(fdDir, s.p.id+"/"+spoolNames[s.index], unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW|flags, 0o600)
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
func (p *proc) drain(s *stream, b *buffers, all bool) {
	if s.spool < 0 {
		return
	}
	for {
		pos := p.slot.at()
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
func (p *proc) load(s *stream, b *buffers, off int64, n int) bool {
	for done := 0; done < n; {
		m, err := unix.Pread(s.spool, b.in[done:n], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil || m == 0 {
			p.y.log.failed("read spool of "+p.id, err)
			return false
		}
		done += m
	}
	return true
}

// commit writes the first use bytes of the buffer to the log: first the intent with its time, then the lines, then the new position.
// It returns false when the process was forgotten meanwhile.
func (p *proc) commit(s *stream, b *buffers, use int) bool {
	for {
		pos := p.slot.at()
		pos.end, pos.time, pos.mode = pos.spool[s.index]+uint64(use), time.Now().UnixNano(), uint32(1+s.index)
		p.slot.set(pos)
		switch p.write(b.in[:use], b) {
		case wrote:
			return true
		case forgotten:
			return false
		case reopened: // the intent was taken back; the same text goes to the new file
		}
	}
}

// redo completes the write that a killed keeper had begun, the same bytes to the same place, and goes on with what else it had put in
// the spools.
func (p *proc) redo(b *buffers) {
	if pos := p.slot.at(); pos.mode != 0 {
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
func (p *proc) trim(s *stream, idle bool) {
	if s.spool < 0 {
		return
	}
	done := int64(p.slot.at().spool[s.index])
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
