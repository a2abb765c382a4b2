// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"io"
	"syscall"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/executor"
	"crishim.dev/keeper/pump"
	"crishim.dev/keeper/sys"
	"crishim.dev/proto"
)

// younger is the keeper that works: it answers the daemon, launches processes, is their parent, and pumps their output.
type younger struct {
	*ledger
	log    logger
	build  string
	nofile unix.Rlimit
	poll   *sys.Poller
	pool   pump.Pool
	in     inbox // the poller's goroutine's

	nursery executor.Nursery

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
	if err := y.nursery.Start(); err != nil { // first of all: the zygote is as small as this process is now
		return err
	}
	if err := y.prepare(); err != nil {
		return err
	}
	if err := y.getEquipped(); err != nil {
		return err
	}
	go y.reap(y.childEnded)
	if err := y.poll.Add(fdPair, unix.EPOLLIN, elderLine{y}); err != nil {
		return sys.At("watch elder", err)
	}
	if err := y.poll.Add(fdListener, unix.EPOLLIN, door{y}); err != nil {
		return sys.At("watch listener", err)
	}
	return y.poll.Run(func() {
		y.pool.Empty()
		y.tidy()
	})
}

func (y *younger) prepare() error {
	t, err := openTable(fdState)
	if err != nil {
		return err
	}
	if y.poll, err = sys.NewPoller(); err != nil {
		return err
	}
	unix.SetNonblock(fdPair, true) //nolint:errcheck // it is a socket
	for fd := fdDir; fd <= fdHandover; fd++ {
		unix.CloseOnExec(fd)
	}
	y.ledger, y.nofile = newLedger(t, y.nursery.Knows), raiseFiles()
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
			return sys.At("read from elder", err)
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
			sys.CloseAll(fds)
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
	if r.Flags&proto.KeepLaunched != 0 && !p.slot.failed() {
		p.openPumpLocked().Resume()
	}
	if p.slot.exited.Load() != 0 {
		y.exitedLocked(p)
	} else {
		y.watchLocked(p)
	}
}

// sweepLocked removes the directories of processes that nobody keeps.
func (y *younger) sweepLocked() {
	for _, id := range sys.Entries(fdDir, ".") {
		if y.records[id] == nil && validID(id) {
			removeProcess(id)
		}
	}
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

// elderLine reads what the elder says.
type elderLine struct{ y *younger }

func (e elderLine) Ready(uint32) {
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
		sys.CloseAll(fds)
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
