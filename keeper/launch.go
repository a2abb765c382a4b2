// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"golang.org/x/sys/unix"

	"crishim.dev/keeper/executor"
	"crishim.dev/keeper/sys"
	"crishim.dev/proto"
)

// launch is a Spawn under way: from the request to the moment when execve has succeeded or the launch has failed.
type launch struct {
	y       *younger
	p       *proc
	s       *proto.Spawn
	r       *request
	held    []request // Spawns with Hold, to be answered when the process is at its gate; guarded by y.mu
	adopted bool      // begun by a younger that died
	gate    chan struct{}
	wake    chan struct{} // a token when the report socket has something
}

// spawn starts a process, or joins the one that has the id.
func (y *younger) spawn(r *request, s *proto.Spawn) {
	y.mu.Lock()
	defer y.mu.Unlock()
	rec := y.records[s.ID]
	if rec == nil {
		err := y.beginLocked(r, s)
		if err != nil {
			r.closeFDs()
			r.c.ackLocked(r.seq, sys.At("spawn "+s.ID, err))
		}
		return
	}
	r.closeFDs()
	p := rec.proc
	switch {
	case p.launch == nil && rec.Flags&proto.KeepRun != 0, p.launch != nil && p.launch.adopted && rec.Flags&proto.KeepRun != 0:
		// A Run that its keeper did not survive is on its way out; the next try finds the id free.
		r.c.ackLocked(r.seq, sys.At("spawn "+s.ID, unix.EAGAIN))
	case p.launch == nil && p.slot.failed():
		p.waiters = append(p.waiters, *r)
		if p.slot.exited.Load() != 0 {
			y.concludeLocked(p)
		}
	case p.launch == nil:
		p.answerLocked(*r)
	case rec.Flags&proto.KeepGated != 0:
		p.answerGatedLocked(*r)
	default:
		p.waiters = append(p.waiters, *r)
	}
}

// beginLocked enters a new process and leaves the rest to a goroutine.
func (y *younger) beginLocked(r *request, s *proto.Spawn) error {
	if !validID(s.ID) {
		return unix.EINVAL
	}
	slot, err := y.table.alloc()
	if err != nil {
		return err
	}
	k := &proto.Keep{ID: s.ID, Slot: slot}
	for _, f := range []struct {
		set  bool
		flag proto.KeepFlags
	}{{s.Run, proto.KeepRun}, {s.Hold, proto.KeepGated}, {s.StdinOnce, proto.KeepStdinOnce}} {
		if f.set {
			k.Flags |= f.flag
		}
	}
	p := y.newProcLocked(y.applyLocked(k, nil))
	p.launch = &launch{y: y, p: p, s: s, r: r, gate: make(chan struct{}, 1), wake: make(chan struct{}, 1)}
	if s.Hold {
		p.launch.held = []request{*r}
	} else {
		p.waiters = []request{*r}
	}
	go p.launch.run()
	return nil
}

// ready is the poller's call for the report socket.
func (l *launch) Ready(uint32) { token(l.wake) }

func token(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run makes the process and follows it to the end of its launch.
func (l *launch) run() {
	err := l.make()
	l.r.closeFDs()
	if err != nil {
		l.abort(err)
		return
	}
	l.follow()
}

// abort ends a launch that has made no process.
func (l *launch) abort(err error) {
	y := l.y
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, w := range append(l.p.waiters, l.held...) {
		if e, ok := err.(*executor.CloneError); ok { //nolint:errorlint // as make returns it
			w.c.sendLocked(w.seq, &proto.Spawned{FailedOp: proto.FailedClone, Errno: uint32(e.Errno)})
		} else {
			w.c.ackLocked(w.seq, sys.At("spawn "+l.p.id, err))
		}
	}
	y.forgottenLocked(l.p)
}

// make makes the process, up to its gate, and tells the elder of it with everything that goes with it. Should this keeper die before that, the child
// finds its gate closed for good, and exits: nothing has happened.
func (l *launch) make() error {
	y, s, r := l.y, l.s, l.r
	first := 1
	if s.Log {
		first = 2
	}
	if len(r.fds) < first {
		return unix.EBADF
	}
	passed := r.fds[first:]
	e := executor.Ends{Report: -1, Stdin: -1, Stdout: -1, Stderr: -1}
	defer e.Close()
	if err := l.openStdio(&e); err != nil {
		return err
	}
	o, fds, err := executor.NewOrder(r.fds[0], &e, passed, s, y.nofile)
	if err != nil {
		return err
	}
	pid, pidfd, err := y.nursery.Place(o, fds)
	if err != nil {
		return err
	}
	y.forked()
	y.keep(l.p.rec, func(k *proto.Keep) {
		k.PID = int32(pid)
		k.Add = []proto.Held{{Kind: proto.HeldPIDFD}}
	}, pidfd)
	return nil
}

// openStdio makes the report socket and the FIFOs, keeps their near ends, and puts the far ones in e.
func (l *launch) openStdio(e *executor.Ends) error {
	y, s := l.y, l.s
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return sys.At("make report socket", err)
	}
	e.Report = pair[1]
	held, fds := []proto.Held{{Kind: proto.HeldReport}}, []int{pair[0]}
	keep := func() error {
		y.keep(l.p.rec, func(k *proto.Keep) { k.Add = held }, fds...)
		return nil
	}
	if s.Log {
		if err := l.p.slot.progress.Begin(l.r.fds[1]); err != nil {
			unix.Close(pair[0])
			return sys.At("use log file", err)
		}
		held, fds = append(held, proto.Held{Kind: proto.HeldLog}), append(fds, l.r.take(1))
	}
	if !s.Stdin && !s.Stdout && !s.Stderr {
		return keep()
	}
	y.mu.Lock()
	l.p.dir = true
	y.mu.Unlock()
	if err := makeProcess(l.p.id); err != nil {
		sys.CloseAll(fds)
		return sys.At("make directory", err)
	}
	for i, f := range []struct {
		want bool
		far  *int
		kind proto.HeldKind
	}{{s.Stdin, &e.Stdin, proto.HeldStdin}, {s.Stdout, &e.Stdout, proto.HeldStdout}, {s.Stderr, &e.Stderr, proto.HeldStderr}} {
		if !f.want {
			continue
		}
		near, err := openFIFO(l.p.id+"/"+fifoNames[i], i == 0, f.far)
		if err != nil {
			sys.CloseAll(fds)
			return sys.At("make FIFO", err)
		}
		held, fds = append(held, proto.Held{Kind: f.kind}), append(fds, near)
	}
	return keep()
}

// openFIFO makes a FIFO and opens both ends. The container's end of an output is open for reading too: it never meets SIGPIPE, whatever
// becomes of the keepers, and readers still find the end when the last container process has closed it.
func openFIFO(name string, input bool, far *int) (near int, err error) {
	const flags = unix.O_CLOEXEC | unix.O_NOFOLLOW
	if err := unix.Mknodat(fdDir, name, unix.S_IFIFO|0o600, 0); err != nil {
		return -1, err
	}
	read, err := unix.Openat(fdDir, name, unix.O_RDONLY|unix.O_NONBLOCK|flags, 0)
	if err != nil {
		return -1, err
	}
	if !input {
		if *far, err = unix.Openat(fdDir, name, unix.O_RDWR|flags, 0); err != nil {
			unix.Close(read)
		}
		return read, err
	}
	write, err := unix.Openat(fdDir, name, unix.O_WRONLY|unix.O_NONBLOCK|flags, 0)
	if err == nil {
		err = unix.SetNonblock(read, false)
	}
	if err != nil {
		unix.Close(read)
		return -1, err
	}
	*far = read
	return write, nil
}
