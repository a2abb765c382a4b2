// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/pump"
	"crishim.dev/keeper/sys"
	"crishim.dev/proto"
)

// proc is a process in the younger's hands. It owns its pump.
type proc struct {
	y    *younger
	rec  *record // guarded by y.mu, but for ID and Slot, which never change
	id   string
	slot *slot

	// Guarded by y.mu.
	pump      *pump.Pump // nil until execve has succeeded, and for good when it does not, or must not (Run)
	launch    *launch    // while under way
	dir       bool       // it has a directory
	announced bool       // Exited has been sent: its output is in the log and its record written
	stale     bool       // nobody has asked for its failure
	waiters   []request  // Spawns and Releases to be answered when the launch has come to its end
	forgets   []request
}

// newProcLocked makes the proc of a record.
func (y *younger) newProcLocked(r *record) *proc {
	p := &proc{y: y, rec: r, id: r.ID, slot: y.table.slot(r.Slot)}
	r.proc = p
	return p
}

// openPumpLocked makes the pump of a process that runs.
func (p *proc) openPumpLocked() *pump.Pump {
	o := pump.Options{
		Owner: p, Poller: p.y.poll, Pool: &p.y.pool, Progress: &p.slot.progress, Dir: fdDir, Name: p.id + "/",
		Outputs:  [2]int{p.rec.fd(proto.HeldStdout, 0), p.rec.fd(proto.HeldStderr, 0)},
		Terminal: p.rec.fd(proto.HeldPTY, 0), Conduit: -1,
		Logged: len(p.rec.all(proto.HeldLog)) > 0,
	}
	if o.Terminal >= 0 {
		o.Conduit, _ = unix.Openat(fdDir, p.id+"/"+fifoNames[1], unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		unix.SetNonblock(o.Terminal, true) //nolint:errcheck // it is a terminal
	}
	p.pump = pump.New(o)
	return p.pump
}

// LogFile is the pump's question.
func (p *proc) LogFile(gen uint32) int {
	p.y.mu.Lock()
	defer p.y.mu.Unlock()
	return p.rec.fd(proto.HeldLog, gen)
}

// HoldLog gives a log file to the record, here and at the elder.
func (p *proc) HoldLog(gen uint32, fd int) {
	p.y.keep(p.rec, func(k *proto.Keep) { k.Add = []proto.Held{{Kind: proto.HeldLog, Arg: gen}} }, fd)
}

// KeepLog takes all other log files from the record; a keeper that was killed while it reopened the log has left more than one.
func (p *proc) KeepLog(gen uint32) {
	p.y.keep(p.rec, func(k *proto.Keep) {
		for _, h := range p.rec.fds {
			if h.Kind == proto.HeldLog && h.Arg != gen {
				k.Drop = append(k.Drop, h.Held)
			}
		}
	})
}

// Failed says what has gone wrong with the pump.
func (p *proc) Failed(what string, err error) { p.y.log.failed(what+" of "+p.id, err) }

// Drained writes the exit record and tells everyone that the process has ended, once.
func (p *proc) Drained() {
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

// Closed is the pump's last call: the process is to be forgotten, and nothing uses its descriptors any more.
func (p *proc) Closed() {
	p.y.mu.Lock()
	defer p.y.mu.Unlock()
	p.y.forgottenLocked(p)
}

// forgottenLocked drops a process and tells those who asked for it.
func (y *younger) forgottenLocked(p *proc) {
	y.discardLocked(p)
	for _, f := range p.forgets {
		f.c.ackLocked(f.seq, nil)
	}
	p.forgets = nil
}

// discardLocked drops a process, with everything of it. A pump of it has ended.
func (y *younger) discardLocked(p *proc) {
	if y.records[p.id] != p.rec {
		return
	}
	if fd := p.rec.fd(proto.HeldPIDFD, 0); fd >= 0 {
		y.poll.Del(fd)
	}
	if fd := p.rec.fd(proto.HeldReport, 0); fd >= 0 {
		y.poll.Del(fd)
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

// exitedLocked goes on with a process whose status is in the shared state.
func (y *younger) exitedLocked(p *proc) {
	switch {
	case p.launch != nil: // the launch comes to its own end first, and asks again
	case p.pump == nil:
		y.concludeLocked(p)
	default:
		p.pump.Ended(time.Unix(0, p.slot.exitTime))
	}
}

// watchLocked waits for the end of a process by its pidfd.
func (y *younger) watchLocked(p *proc) {
	if fd := p.rec.fd(proto.HeldPIDFD, 0); fd >= 0 {
		y.poll.Add(fd, unix.EPOLLIN|sys.OneShot, &orphan{y: y, p: p, pid: p.rec.PID}) //nolint:errcheck // the elder's Reaped comes anyway
	}
}

// orphan waits for the end of a process that this image did not start: another keeper's child, or nobody's. Whoever of the reapers, the
// kernel's memory of the exit (Linux 6.15) and /proc knows the status first, tells.
type orphan struct {
	y     *younger
	p     *proc
	pid   int32 // until the process has gone over to another (PseudoClone), which another orphan is for
	tries int
}

// orphanTries times orphanWait is how long the elder has for telling what it reaped.
const (
	orphanTries = 100
	orphanWait  = 10 * time.Millisecond
)

func (o *orphan) Ready(uint32) { o.look() }

func (o *orphan) look() {
	y := o.y
	y.mu.Lock()
	defer y.mu.Unlock()
	r := o.p.rec
	if y.records[o.p.id] != r || r.PID != o.pid {
		return
	}
	if o.p.slot.exited.Load() != 0 { // whoever stored it may have ended before it could tell
		y.exitedLocked(o.p)
		return
	}
	if r.Flags&proto.KeepLaunched != 0 {
		status, ok := sys.ExitOf(r.fd(proto.HeldPIDFD, 0), r.PID, r.StartTime)
		if !ok {
			status = proto.StatusUnknown
		}
		if o.tries++; ok || o.tries > orphanTries {
			o.p.slot.exit(status)
			y.exitedLocked(o.p)
			return
		}
	}
	time.AfterFunc(orphanWait, o.look)
}
