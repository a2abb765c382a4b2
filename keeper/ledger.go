// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/sys"
	"crishim.dev/proto"
)

// ledger is what one keeper knows of the processes, in either role: the elder's is a copy of the younger's, brought about
// by the same Keep messages.
type ledger struct {
	table *table
	// kids has a token after a child was made, for the reaper that found none.
	kids chan struct{}
	// zygote says whether a child that is no process of the ledger is, or was, a zygote, whose end concerns nobody.
	zygote func(pid int32) bool

	// mu guards everything below and all records.
	mu      sync.Mutex
	changed sync.Cond // broadcast when a record changes
	records map[string]*record
	// byPID finds a record by its process, by the one that made it with PseudoClone, and by those aside (PseudoAside).
	byPID map[int32]*record
	// launching is the number of records that are not KeepLaunched.
	launching int
	guarded   bool
	stirred   bool // something has changed since tidy
}

// record is one process. Fields are guarded by ledger.mu.
type record struct {
	proto.Keep // Add and Drop are empty
	caller     int32
	fds        []heldFD
	proc       *proc // the younger's
}

type heldFD struct {
	proto.Held
	fd int32
}

func newLedger(t *table, zygote func(pid int32) bool) *ledger {
	l := &ledger{table: t, zygote: zygote, kids: make(chan struct{}, 1), records: map[string]*record{}, byPID: map[int32]*record{}}
	l.changed.L = &l.mu
	return l
}

// fd gives a held descriptor, or -1.
func (r *record) fd(kind proto.HeldKind, arg uint32) int {
	for _, h := range r.fds {
		if h.Kind == kind && h.Arg == arg {
			return int(h.fd)
		}
	}
	return -1
}

// all gives the held descriptors of a kind, in the order in which they came.
func (r *record) all(kind proto.HeldKind) []int {
	var fds []int
	for _, h := range r.fds {
		if h.Kind == kind {
			fds = append(fds, int(h.fd))
		}
	}
	return fds
}

// everything is the Keep that makes an empty ledger know r, with its descriptors.
func (r *record) everything() (*proto.Keep, []int) {
	k, fds := r.Keep, make([]int, 0, len(r.fds))
	for _, h := range r.fds {
		k.Add = append(k.Add, h.Held)
		fds = append(fds, int(h.fd))
	}
	return &k, fds
}

// applyLocked does what k says. The descriptors in fds become the ledger's.
func (l *ledger) applyLocked(k *proto.Keep, fds []int) *record {
	r := l.records[k.ID]
	if r == nil {
		r = &record{Keep: proto.Keep{ID: k.ID, Flags: proto.KeepLaunched}}
		l.records[k.ID] = r
	}
	if r.PID != k.PID {
		if r.PID != 0 {
			r.caller = r.PID
		}
		l.byPID[k.PID] = r
	}
	if was, is := r.Flags&proto.KeepLaunched != 0, k.Flags&proto.KeepLaunched != 0; was && !is {
		l.launching++
	} else if !was && is {
		l.launching--
	}
	r.Slot, r.PID, r.StartTime, r.Flags = k.Slot, k.PID, k.StartTime, k.Flags
	for _, h := range k.Drop {
		r.release(h)
	}
	for i, h := range k.Add {
		r.release(h)
		if i < len(fds) {
			r.fds = append(r.fds, heldFD{h, int32(fds[i])})
		}
	}
	l.stirred = true
	l.guardLocked()
	l.changed.Broadcast()
	return r
}

// tidy gives memory back that launches have used. It is called when nothing has happened for a while.
func (l *ledger) tidy() {
	l.mu.Lock()
	stirred := l.stirred
	l.stirred = false
	l.mu.Unlock()
	if stirred {
		sys.FreeOSMemory()
	}
}

// guardLocked makes the process immune to the signals that ask it to end as long as it keeps anything.
func (l *ledger) guardLocked() {
	if keeps := len(l.records) > 0; keeps != l.guarded {
		l.guarded = keeps
		terminable(!keeps)
	}
}

func (r *record) release(h proto.Held) {
	for i, have := range r.fds {
		if have.Held == h {
			unix.Close(int(have.fd))
			r.fds = append(r.fds[:i], r.fds[i+1:]...)
			return
		}
	}
}

// dropLocked forgets a process and closes its descriptors.
func (l *ledger) dropLocked(id string) {
	r := l.records[id]
	if r == nil {
		return
	}
	delete(l.records, id)
	for _, pid := range []int32{r.PID, r.caller} {
		if l.byPID[pid] == r {
			delete(l.byPID, pid)
		}
	}
	if r.Flags&proto.KeepLaunched == 0 {
		l.launching--
	}
	for _, h := range r.fds {
		unix.Close(int(h.fd))
	}
	r.fds = nil
	l.stirred = true
	l.guardLocked()
	l.changed.Broadcast()
}

// strangerWait is how long an unknown child's end waits for the launches under way to name it.
const strangerWait = time.Second

// ended is told that a child has ended, before it is reaped. It stores the status in shared memory, so that the child may
// be reaped: a keeper killed in between leaves a zombie, which the other one's reaper finds. The result is nil for processes that
// nobody wants to know about.
//
// A process whose launch is under way is not judged before the launch is: the first of two processes (PseudoClone) ends
// without being the end of anything.
func (l *ledger) ended(pid int32, status uint32) *record {
	l.mu.Lock()
	defer l.mu.Unlock()
	var start time.Time
	for {
		r := l.byPID[pid]
		switch {
		case r != nil && r.PID != pid:
			delete(l.byPID, pid)
			return nil
		case r != nil && r.Flags&proto.KeepLaunched != 0:
			l.table.slot(r.Slot).exit(status)
			return r
		case r == nil && l.launching == 0:
			return nil
		case r == nil && start.IsZero():
			if l.zygote(pid) {
				return nil
			}
			start = time.Now()
			defer time.AfterFunc(strangerWait, l.changed.Broadcast).Stop()
		case r == nil && time.Since(start) >= strangerWait:
			return nil
		}
		l.changed.Wait()
	}
}

// knowLocked is told of a process whose end is not r's.
func (l *ledger) knowLocked(r *record, pid int32) {
	l.byPID[pid] = r
	l.changed.Broadcast()
}

// forked tells the reaper that there is a child.
func (l *ledger) forked() {
	select {
	case l.kids <- struct{}{}:
	default:
	}
}

// childInfo is the kernel's siginfo_t as waitid fills it.
type childInfo struct {
	_      [2]int32
	code   int32
	_      int32
	pid    int32
	_      uint32
	status int32
	_      [100]byte
}

// reap waits for children for ever, in a thread of its own. ended is called before a child is reaped.
func (l *ledger) reap(ended func(pid int32, status uint32)) {
	for {
		var ci childInfo
		err := unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&ci)), unix.WEXITED|unix.WNOWAIT|unix.WALL, nil)
		if err == unix.ECHILD {
			<-l.kids
			continue
		}
		if err != nil || ci.pid == 0 {
			continue
		}
		ended(ci.pid, ci.waitStatus())
		var st unix.WaitStatus
		unix.Wait4(int(ci.pid), &st, unix.WNOHANG|unix.WALL, nil) //nolint:errcheck // known already
	}
}

// waitStatus is the status as wait4 would give it.
func (c *childInfo) waitStatus() uint32 {
	const exited, dumped = 1, 3 // CLD_EXITED, CLD_DUMPED
	switch c.code {
	case exited:
		return uint32(c.status&0xff) << 8
	case dumped:
		return uint32(c.status&0x7f) | 0x80
	default:
		return uint32(c.status & 0x7f)
	}
}
