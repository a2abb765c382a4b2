// SPDX-License-Identifier: Apache-2.0

package pump

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/sys"
)

// Owner is what a pump needs of whoever has the process. The pump's worker calls it, holding no lock of the pump's.
type Owner interface {
	// LogFile gives the log file of a generation; the first one's is 0.
	LogFile(gen uint32) int
	// HoldLog makes fd the log file of a generation. When it returns, that is so over any one keeper's end.
	HoldLog(gen uint32, fd int)
	// KeepLog lets go of the log files of all other generations.
	KeepLog(gen uint32)
	// Drained says that what the process wrote before its end is in the log, or could not be written in time. It may come several times.
	Drained()
	// Closed is the last call: the pump has ended.
	Closed()
	// Failed tells of an error that the pump could only go on after.
	Failed(what string, err error)
}

// Options are what a Pump is made of. Descriptors stay the owner's, except Conduit.
type Options struct {
	Owner    Owner
	Poller   *sys.Poller
	Pool     *Pool
	Progress *Progress
	// Dir is the directory of the spools, on tmpfs, and Name the process's part of their names, with a slash at its end.
	Dir  int
	Name string
	// Outputs are the read ends of the FIFOs of stdout and stderr, -1 where there is none.
	Outputs [2]int
	// Terminal is a pty's master whose output is copied to the FIFO of stdout through Conduit, that one's write end; both are -1 without.
	Terminal, Conduit int
	// Logged says that there is a log. Without it, output reaches attached clients only.
	Logged bool
}

// todo is what a pump's worker has been asked for.
type todo uint32

const (
	doStdout todo = 1 << iota
	doStderr
	doDrain
	doReopen
	doClose
	doRedo
)

// Pump moves the output of one process. Its worker goroutine exists only while there is something to do. Safe for concurrent use.
type Pump struct {
	owner    Owner
	poller   *sys.Poller
	pool     *Pool
	progress *Progress
	dir      int
	name     string
	logged   bool
	streams  [2]stream

	// mu guards what follows. No other lock is taken while it is held, but the poller's.
	mu      sync.Mutex
	todo    todo
	busy    bool          // the worker runs
	leaving bool          // Close has been called: nothing is tried again
	closed  bool          // the worker has ended for good
	ended   time.Time     // when the process did; zero while it runs
	wake    chan struct{} // closed to wake a worker that waits before it tries again
	reopens []reopen
	taps    []*tap
}

// New makes the pump of a process that runs. It does nothing before Start.
func New(o Options) *Pump {
	p := &Pump{owner: o.Owner, poller: o.Poller, pool: o.Pool, progress: o.Progress, dir: o.Dir, name: o.Name, logged: o.Logged}
	for i, fifo := range o.Outputs {
		s := &p.streams[i]
		*s = stream{p: p, index: i, fd: fifo, fifo: fifo, conduit: -1, spool: -1}
		if fifo < 0 {
			continue
		}
		if i == 0 && o.Terminal >= 0 {
			s.fd, s.conduit = o.Terminal, o.Conduit
		}
		if err := s.openSpool(0); err == nil {
			s.shown = s.size
			s.punched = int64(o.Progress.at().spool[i]) &^ (punchEvery - 1)
		}
	}
	return p
}

// Start begins to wait for output.
func (p *Pump) Start() {
	for i := range p.streams {
		if s := &p.streams[i]; s.fd >= 0 {
			if err := p.poller.Add(s.fd, unix.EPOLLIN|sys.OneShot, s); err != nil {
				p.owner.Failed("watch output", err)
			}
		}
	}
}

// Resume starts, and goes on where the pump of a keeper that is gone has left the log.
func (p *Pump) Resume() {
	p.Start()
	p.kick(doRedo | doStdout | doStderr)
}

// Ended tells the pump when its process ended; it answers with Owner.Drained.
func (p *Pump) Ended(when time.Time) {
	p.mu.Lock()
	p.ended = when
	p.mu.Unlock()
	p.kick(doDrain)
}

// Close ends the pump: what is left goes to the log if that can be written at once. Owner.Closed says when it has ended.
func (p *Pump) Close() { p.kick(doClose) }

// kick asks the worker for something.
func (p *Pump) kick(t todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.todo |= t
	p.leaving = p.leaving || t&doClose != 0
	if p.wake != nil {
		close(p.wake)
		p.wake = nil
	}
	if !p.busy {
		p.busy = true
		go p.work()
	}
}

// work does what has been asked until there is nothing left. One worker at a time runs for a process, so that both streams, which
// share one log file, are written in turn.
func (p *Pump) work() {
	var b *buffers
	defer func() { p.pool.put(b) }()
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
			b = p.pool.get()
		}
		if t&doClose != 0 {
			p.close(b)
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
		if t&doDrain != 0 {
			p.drainAll(b)
		}
		if again != 0 {
			p.mu.Lock()
			p.todo |= again
			p.mu.Unlock()
		}
	}
}

// drainLimit bounds how long the end of a process waits for its output to be written.
const drainLimit = time.Second

// drainAll takes what was in the pipes when the process ended to the log, and then says so. A grandchild that keeps the
// output open can't hold this up: no more is read than there was. The pump goes on afterwards.
func (p *Pump) drainAll(b *buffers) {
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
				p.finish(s, b)
				break
			}
			// When all that was there is in the spool, one more look finds the end of the stream where it has ended.
			more = err == nil && left > 0
			left -= n
			p.drain(s, b, false)
		}
		if !s.eof {
			p.drain(s, b, true)
			p.poller.Arm(s.fd, unix.EPOLLIN|sys.OneShot)
		}
	}
	p.owner.Drained()
}

// pause waits before something is tried again, or until the worker is asked for something. It returns false when the pump is to be
// closed. The end of a process is not held up by a log that can't be written.
func (p *Pump) pause(d time.Duration) bool {
	wake := make(chan struct{})
	p.mu.Lock()
	if p.leaving {
		p.mu.Unlock()
		return false
	}
	if !p.ended.IsZero() {
		d = min(d, drainLimit)
	}
	p.wake = wake
	p.mu.Unlock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-wake:
	case <-timer.C:
	}
	p.mu.Lock()
	p.wake = nil
	leaving, ended := p.leaving, p.ended
	p.mu.Unlock()
	if !ended.IsZero() && time.Since(ended) > drainLimit {
		p.owner.Drained()
	}
	return !leaving
}

// close is the last thing a worker does: what output is left goes to the log, and everything is closed.
func (p *Pump) close(b *buffers) {
	for i := range p.streams {
		s := &p.streams[i]
		if s.fd < 0 {
			continue
		}
		if !s.eof {
			p.poller.Del(s.fd)
			p.fill(s, b) //nolint:errcheck // whatever is left
			p.drain(s, b, true)
		}
		for _, fd := range []int{s.spool, s.conduit} {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	}
	p.mu.Lock()
	p.closed = true
	for len(p.taps) > 0 {
		p.taps[0].remove()
	}
	asked := p.reopens
	p.reopens = nil
	p.mu.Unlock()
	for _, r := range asked {
		unix.Close(r.fd)
		r.done(unix.ENOENT)
	}
	p.owner.Closed()
}
