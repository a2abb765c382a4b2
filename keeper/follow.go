// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"io"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/executor"
	"crishim.dev/keeper/sys"
	"crishim.dev/proto"
)

// follow opens the child's gate and reads its notes until its report socket ends. A note is looked at, acted upon, and only then taken out: a
// younger that dies in between leaves it to the next.
func (l *launch) follow() {
	y, p := l.y, l.p
	y.mu.Lock()
	report := p.rec.fd(proto.HeldReport, 0)
	gated := p.rec.Flags&proto.KeepGated != 0
	if gated {
		st, _ := sys.ReadStat(p.rec.PID) // at its gate, or a zombie
		y.keepLocked(p.rec, func(k *proto.Keep) { k.StartTime = st.Start })
	}
	for _, r := range l.held {
		p.answerGatedLocked(r)
	}
	l.held = nil
	y.mu.Unlock()
	if !gated {
		executor.OpenGate(report)
	}
	y.log.failed("watch launch of "+p.id, y.poll.Add(report, unix.EPOLLIN|sys.OneShot, l))
	for {
		n, fds, err := executor.PeekNote(report)
		if err == unix.EAGAIN { //nolint:errorlint // bare errno
			y.poll.Arm(report, unix.EPOLLIN|sys.OneShot)
			select {
			case <-l.wake:
			case <-l.gate:
				executor.OpenGate(report)
			}
			continue
		}
		if err != nil {
			if err != io.EOF { //nolint:errorlint // as peekNote returns it
				y.log.failed("read report of "+p.id, err)
			}
			break
		}
		l.heed(n, fds)
		executor.TakeNote(report)
	}
	y.poll.Del(report)
	l.conclude()
}

// heed acts upon a note.
func (l *launch) heed(n executor.Note, fds []int) {
	y, p := l.y, l.p
	y.mu.Lock()
	defer y.mu.Unlock()
	switch {
	case n.What == executor.NoteFailed:
		p.slot.fail(int32(n.Index), n.Value)
	case n.What == executor.NoteCloned && len(fds) == 1 && p.rec.caller == 0:
		l.movedLocked(int32(n.Value), fds[0])
		return
	case n.What == executor.NoteAside:
		y.knowLocked(p.rec, int32(n.Value))
	case n.What == executor.NoteFD && len(fds) == 1 && n.Value == proto.TagPTY:
		l.terminalLocked(fds[0])
		return
	case n.What == executor.NoteFD && len(fds) == 1:
		y.keepLocked(p.rec, func(k *proto.Keep) { k.Add = []proto.Held{{Kind: proto.HeldReturn, Arg: n.Index}} }, fds[0])
		return
	}
	sys.CloseAll(fds)
}

// movedLocked goes over to the second process of a program.
func (l *launch) movedLocked(pid int32, pidfd int) {
	y, p := l.y, l.p
	if p.rec.fd(proto.HeldPIDFD, 0) >= 0 {
		y.poll.Del(p.rec.fd(proto.HeldPIDFD, 0))
	}
	if n := sys.PIDOf(pidfd); n != 0 {
		pid = n
	}
	y.keepLocked(p.rec, func(k *proto.Keep) {
		k.PID, k.StartTime = pid, 0
		k.Add = []proto.Held{{Kind: proto.HeldPIDFD}}
	}, pidfd)
	if l.adopted {
		y.watchLocked(p)
	}
}

// terminalLocked takes a pty's master, and makes the FIFO through which its output goes to the log.
func (l *launch) terminalLocked(master int) {
	y, p := l.y, l.p
	held, fds := []proto.Held{{Kind: proto.HeldPTY}}, []int{master}
	if p.rec.fd(proto.HeldStdout, 0) < 0 {
		p.dir = true
		name := p.id + "/" + fifoNames[1]
		unix.Mkdirat(fdDir, p.id, 0o700) //nolint:errcheck // it may exist; the next step tells
		sys.Unlink(fdDir, name)
		var far int
		near, err := openFIFO(name, false, &far)
		if err != nil {
			y.log.failed("make FIFO of terminal "+p.id, err)
		} else {
			unix.Close(far)
			held, fds = append(held, proto.Held{Kind: proto.HeldStdout}), append(fds, near)
		}
	}
	y.keepLocked(p.rec, func(k *proto.Keep) { k.Add = held }, fds...)
}

// conclude is the end of a launch: execve has succeeded, or the process is at its end.
func (l *launch) conclude() {
	y, p := l.y, l.p
	y.mu.Lock()
	defer y.mu.Unlock()
	p.launch = nil
	launched := func(k *proto.Keep) {
		k.Flags = k.Flags&^proto.KeepGated | proto.KeepLaunched
		k.Drop = []proto.Held{{Kind: proto.HeldReport}}
	}
	if p.rec.Flags&proto.KeepRun != 0 { // a next younger would kill it anyway: the elder need not hear of it
		k := p.rec.Keep
		launched(&k)
		y.applyLocked(&k, nil)
	} else {
		st, err := sys.ReadStat(p.rec.PID)
		if err == nil && st.Flags&sys.NeverExecuted != 0 && !p.slot.failed() {
			p.slot.fail(proto.FailedKilled, 0)
		}
		y.keepLocked(p.rec, func(k *proto.Keep) {
			launched(k)
			k.StartTime = st.Start
		})
	}
	if !p.slot.failed() && p.rec.Flags&proto.KeepRun == 0 {
		p.openPumpLocked().Start()
		for _, w := range p.waiters {
			p.answerLocked(w)
		}
		p.waiters = nil
	}
	if p.slot.exited.Load() != 0 {
		y.exitedLocked(p)
	}
}

// answerLocked tells that the process runs.
func (p *proc) answerLocked(r request) {
	m := &proto.Spawned{PID: p.rec.PID, StartTime: p.rec.StartTime, FailedOp: proto.FailedNone}
	r.c.sendLocked(r.seq, m, append(p.rec.all(proto.HeldPIDFD), p.rec.all(proto.HeldReturn)...)...)
}

// answerGatedLocked tells that the process waits at its gate.
func (p *proc) answerGatedLocked(r request) {
	if p.rec.PID == 0 {
		p.launch.held = append(p.launch.held, r)
		return
	}
	m := &proto.Spawned{PID: p.rec.PID, StartTime: p.rec.StartTime, FailedOp: proto.FailedNone}
	r.c.sendLocked(r.seq, m, p.rec.all(proto.HeldPIDFD)...)
}

// failureKept is many times what a daemon that lives takes to connect again.
const failureKept = 5 * time.Second

// concludeLocked answers for a process that was to end (Run), or whose launch failed, when it has ended. A failure that nobody waits for, because
// the keeper that was asked has died, is kept for a while: whoever asked asks again.
func (y *younger) concludeLocked(p *proc) {
	run := p.rec.Flags&proto.KeepRun != 0
	if !run && len(p.waiters) == 0 && len(p.forgets) == 0 && !p.stale {
		time.AfterFunc(failureKept, func() {
			y.mu.Lock()
			defer y.mu.Unlock()
			if p.stale = true; y.records[p.id] == p.rec {
				y.concludeLocked(p)
			}
		})
		return
	}
	m := &proto.Spawned{PID: p.rec.PID, StartTime: p.rec.StartTime, Status: p.slot.exitStatus}
	m.FailedOp, m.Errno = p.slot.failure()
	fds := p.rec.all(proto.HeldPIDFD)
	if !p.slot.failed() {
		fds = append(fds, p.rec.all(proto.HeldReturn)...)
	}
	for _, w := range p.waiters {
		w.c.sendLocked(w.seq, m, fds...)
	}
	p.waiters = nil
	y.forgottenLocked(p)
}

// releaseLocked opens the gate of a process spawned with Hold.
func (y *younger) releaseLocked(r *request, id string) error {
	p, err := y.findLocked(id)
	switch {
	case err != nil:
		return err
	case p.launch == nil && p.slot.failed():
		p.waiters = append(p.waiters, *r)
		if p.slot.exited.Load() != 0 {
			y.concludeLocked(p)
		}
	case p.launch == nil:
		p.answerLocked(*r)
	case p.rec.PID == 0:
		return sys.At("release "+id, unix.EAGAIN)
	default:
		p.waiters = append(p.waiters, *r)
		if p.rec.Flags&proto.KeepGated != 0 {
			y.keepLocked(p.rec, func(k *proto.Keep) { k.Flags &^= proto.KeepGated })
			token(p.launch.gate)
		}
	}
	return errLater
}
