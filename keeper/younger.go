// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"io"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/proto"
)

// younger is the keeper that works: it answers the daemon, launches processes, is their parent, and pumps their output.
type younger struct {
	*ledger
	log    logger
	build  string
	nofile unix.Rlimit
	poll   *poller
	pool   bufferPool
	in     inbox // the poller's goroutine's

	nursery nursery

	// Guarded by ledger.mu, which is taken before proc.mu.
	elder     wire
	elderDead bool
	conns     map[*conn]struct{}
	upgrading *upgrade
}

// runYounger is the younger's life. It returns only when it can't go on; the elder then starts another.
func runYounger(build string) error {
	settle()
	y := &younger{build: build, log: logger{"younger"}}
	if err := y.nursery.start(); err != nil { // first of all: the zygote is as small as this process is now
		return err
	}
	if err := y.prepare(); err != nil {
		return err
	}
	if err := y.getEquipped(); err != nil {
		return err
	}
	go y.reap(y.childEnded)
	if err := y.poll.add(fdPair, unix.EPOLLIN, elderLine{y}); err != nil {
		return at("watch elder", err)
	}
	if err := y.poll.add(fdListener, unix.EPOLLIN, door{y}); err != nil {
		return at("watch listener", err)
	}
	return y.poll.run(func() {
		y.pool.empty()
		y.tidy()
	})
}

func (y *younger) prepare() error {
	t, err := openTable(fdState)
	if err != nil {
		return err
	}
	if y.poll, err = newPoller(); err != nil {
		return err
	}
	unix.SetNonblock(fdPair, true) //nolint:errcheck // it is a socket
	for fd := fdDir; fd <= fdHandover; fd++ {
		unix.CloseOnExec(fd)
	}
	y.ledger, y.nofile = newLedger(t, y.nursery.knows), raiseFiles()
	y.elder, y.conns = wire{fd: fdPair}, map[*conn]struct{}{}
	return nil
}

// getEquipped asks the elder for everything, and takes up each process where it was left.
func (y *younger) getEquipped() error {
	if err := y.elder.sendNow(proto.Marshal(0, &proto.Ready{}), nil); err != nil {
		return y.succeed()
	}
	for {
		_, m, fds, err := y.in.receive(fdPair)
		if err == unix.EAGAIN { //nolint:errorlint // bare errno
			p := []unix.PollFd{{Fd: fdPair, Events: unix.POLLIN}}
			unix.Poll(p, -1) //nolint:errcheck // receive tells
			continue
		}
		if err == io.EOF { //nolint:errorlint // as receive returns it
			return y.succeed()
		}
		if err != nil {
			return at("read from elder", err)
		}
		switch m := m.(type) {
		case *proto.Keep:
			y.mu.Lock()
			r := y.applyLocked(m, fds)
			y.table.claim(r.Slot)
			y.mu.Unlock()
		case *proto.Equipped:
			y.mu.Lock()
			defer y.mu.Unlock()
			for _, r := range y.records {
				y.adoptLocked(r)
			}
			terminable(len(y.records) == 0)
			y.sweepLocked()
			return nil
		default:
			closeAll(fds)
		}
	}
}

// adoptLocked takes up a process that another younger left.
func (y *younger) adoptLocked(r *record) {
	p := y.newProcLocked(r)
	p.dir = true // it may have one
	if r.PID == 0 {
		// The clone may have happened, but nobody was told: the child sits at its gate and leaves when its report socket has gone.
		y.discardLocked(p)
		return
	}
	if r.Flags&proto.KeepLaunched == 0 {
		p.launch = &launch{y: y, p: p, gate: make(chan struct{}, 1), wake: make(chan struct{}, 1), adopted: true}
		if r.Flags&proto.KeepRun != 0 {
			unix.PidfdSendSignal(r.fd(proto.HeldPIDFD, 0), unix.SIGKILL, nil, 0) //nolint:errcheck // it has ended already
		}
		go p.launch.follow()
	}
	if r.Flags&proto.KeepLaunched != 0 {
		p.openStreams() // before anything else wakes the worker, to which the streams belong from then on
		p.kick(doRedo | doStdout | doStderr)
	}
	if p.slot.exited.Load() != 0 {
		y.exitedLocked(p)
	} else {
		y.watchLocked(p)
	}
}

// sweepLocked removes the directories of processes that nobody keeps.
func (y *younger) sweepLocked() {
	for _, id := range entries(fdDir, ".") {
		if y.records[id] == nil && validID(id) {
			removeProcess(id)
		}
	}
}

// newProcLocked makes the proc of a record.
func (y *younger) newProcLocked(r *record) *proc {
	p := &proc{y: y, rec: r, id: r.ID, slot: y.table.slot(r.Slot), failedOp: proto.FailedNone}
	for i := range p.streams {
		p.streams[i] = stream{p: p, index: i, fd: -1, fifo: -1, conduit: -1, spool: -1}
	}
	r.proc = p
	return p
}

// keep makes the record of a process what change makes of it, here and at the elder. The descriptors become the ledger's.
func (y *younger) keep(r *record, change func(*proto.Keep), fds ...int) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.keepLocked(r, change, fds...)
}

func (y *younger) keepLocked(r *record, change func(*proto.Keep), fds ...int) {
	fresh := r.PID == 0
	k := r.Keep
	change(&k)
	y.applyLocked(&k, fds)
	switch {
	case r.PID == 0: // the elder hears of it when it has a process
	case fresh:
		y.tellElderLocked(r.everything())
	default:
		y.tellElderLocked(&k, fds)
	}
}

// tellElderLocked returns when the message is in the elder's queue, and so safe from this keeper's end. When the elder is gone there is
// nobody to tell: this keeper is about to become the elder with everything it knows.
func (y *younger) tellElderLocked(m proto.Message, fds []int) {
	if y.elderDead {
		return
	}
	if err := y.elder.sendNow(proto.Marshal(0, m), fds); err != nil {
		y.elderDead = true
	}
}

// discardLocked drops a process, with everything of it.
func (y *younger) discardLocked(p *proc) {
	if y.records[p.id] != p.rec {
		return
	}
	for i := range p.streams {
		if s := &p.streams[i]; s.fd >= 0 && !s.eof {
			y.poll.del(s.fd)
		}
	}
	if fd := p.rec.fd(proto.HeldPIDFD, 0); fd >= 0 {
		y.poll.del(fd)
	}
	if fd := p.rec.fd(proto.HeldReport, 0); fd >= 0 {
		y.poll.del(fd)
	}
	y.dropLocked(p.id)
	if p.rec.PID != 0 {
		y.tellElderLocked(&proto.Drop{ID: p.id}, nil)
	}
	if p.dir {
		removeProcess(p.id) // sweepLocked does it if this keeper dies here
	}
	y.table.free(p.rec.Slot)
}

// childEnded is the reaper's call.
func (y *younger) childEnded(pid int32, status uint32) {
	if r := y.ended(pid, status); r != nil {
		y.mu.Lock()
		defer y.mu.Unlock()
		if y.records[r.ID] == r {
			y.exitedLocked(r.proc)
		}
	}
}

// exitedLocked goes on with a process whose status is in the shared state.
func (y *younger) exitedLocked(p *proc) {
	switch {
	case p.launch != nil: // the launch comes to its own end first, and asks again
	case p.rec.Flags&proto.KeepRun != 0 || p.failedOp != proto.FailedNone:
		y.concludeLocked(p)
	default:
		p.kick(doExit)
	}
}

// elderLine reads what the elder says.
type elderLine struct{ y *younger }

func (e elderLine) ready(uint32) {
	y := e.y
	for {
		seq, m, fds, err := y.in.receive(fdPair)
		if err == unix.EAGAIN { //nolint:errorlint // bare errno
			return
		}
		if err != nil {
			y.log.failed("elder is gone", err)
			y.log.failed("stopped", y.succeed())
			syscall.Exit(1)
		}
		closeAll(fds)
		y.mu.Lock()
		switch m := m.(type) {
		case *proto.Reaped:
			if r := y.records[m.ID]; r != nil && y.table.slot(r.Slot).exited.Load() != 0 {
				y.exitedLocked(r.proc)
			}
		case *proto.Ack, *proto.Equipped:
			y.upgradeAnswerLocked(seq, m)
		}
		y.mu.Unlock()
	}
}

// watchLocked waits for the end of a process by its pidfd.
func (y *younger) watchLocked(p *proc) {
	if fd := p.rec.fd(proto.HeldPIDFD, 0); fd >= 0 {
		y.poll.add(fd, unix.EPOLLIN|oneShot, &orphan{y: y, p: p, fd: fd}) //nolint:errcheck // the elder's Reaped comes anyway
	}
}

// orphan waits for the end of a process that this image did not start: another keeper's child, or nobody's. Whoever of the reapers, the
// kernel's memory of the exit (Linux 6.15) and /proc knows the status first, tells.
type orphan struct {
	y     *younger
	p     *proc
	fd    int
	tries int
}

// orphanTries times orphanWait is how long the elder has for telling what it reaped.
const (
	orphanTries = 100
	orphanWait  = 10 * time.Millisecond
)

func (o *orphan) ready(uint32) { o.look() }

func (o *orphan) look() {
	y := o.y
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.records[o.p.id] != o.p.rec || o.p.slot.exited.Load() != 0 {
		return
	}
	if o.p.rec.Flags&proto.KeepLaunched != 0 {
		status, ok := exitOf(o.fd, o.p.rec.PID, o.p.rec.StartTime)
		if o.tries++; ok || o.tries > orphanTries {
			o.p.slot.exit(status)
			y.exitedLocked(o.p)
			return
		}
	}
	time.AfterFunc(orphanWait, o.look)
}

// succeed makes this process the elder: the next image starts with everything this one keeps, children included. It returns
// only when that fails. What other goroutines are in the middle of is as if they had been killed there.
func (y *younger) succeed() error {
	y.mu.Lock() // for ever
	h := proto.Handover{YoungerPIDFD: -1}
	return y.handOver(&h, "elder", "succeed")
}

// handOver executes the image at fdImage with the ledger in h.
func (l *ledger) handOver(h *proto.Handover, role, how string) error {
	var inherit []int
	for fd := fdDir; fd <= fdHandover; fd++ {
		inherit = append(inherit, fd)
	}
	for _, r := range l.records {
		k, fds := r.everything()
		h.Keep = append(h.Keep, *k)
		for _, fd := range fds {
			h.FDs = append(h.FDs, int32(fd))
		}
		inherit = append(inherit, fds...)
	}
	if h.YoungerPIDFD >= 0 {
		inherit = append(inherit, int(h.YoungerPIDFD))
	}
	fd, err := unix.MemfdCreate("handover", unix.MFD_CLOEXEC)
	if err != nil {
		return at("make handover", err)
	}
	defer unix.Close(fd)
	if err := writeAt(fd, proto.Marshal(0, h), 0); err != nil {
		return at("write handover", err)
	}
	if err := unix.Dup3(fd, fdHandover, 0); err != nil {
		return at("write handover", err)
	}
	for _, fd := range inherit {
		unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0) //nolint:errcheck // it is open
	}
	err = unix.Exec("/proc/self/fd/"+strconv.Itoa(fdImage), []string{"shim-keeper", role, how}, syscall.Environ())
	for _, fd := range inherit {
		unix.CloseOnExec(fd)
	}
	return at("execute "+role, err)
}
