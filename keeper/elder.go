// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/executor"
	"crishim.dev/keeper/sys"
	"crishim.dev/proto"
)

// elder is the keeper that holds: a second copy of everything, the subreaper to which a dead younger's children fall, and the one
// that starts the next younger.
type elder struct {
	*ledger
	log    logger
	build  string
	nofile unix.Rlimit
	poll   *sys.Poller
	in     inbox

	// Guarded by ledger.mu.
	line    wire // to the younger
	younger int32
	pidfd   int
	started time.Time
	deaths  int
}

// runElder is the elder's life. fresh: it is the first one on this directory, in a mount namespace that is still a copy of the host's.
func runElder(build string, fresh bool) error {
	settle()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return sys.At("become subreaper", err)
	}
	for fd := fdDir; fd <= fdHandover; fd++ {
		unix.CloseOnExec(fd)
	}
	if fresh {
		if err := moveIn(); err != nil {
			return err
		}
	}
	t, err := openTable(fdState)
	if err != nil {
		return err
	}
	p, err := sys.NewPoller()
	if err != nil {
		return err
	}
	e := &elder{ledger: newLedger(t, executor.NamedZygote), log: logger{"elder"}, build: build, nofile: raiseFiles(), poll: p, pidfd: -1}
	if !fresh {
		if err := e.inherit(); err != nil {
			return err
		}
	}
	terminable(len(e.records) == 0)
	if e.younger == 0 {
		if err := e.startYounger(); err != nil {
			return err
		}
	} else {
		if err := e.resume(); err != nil {
			return err
		}
		e.line.sendNow(proto.Marshal(0, &proto.Equipped{Build: e.build}), nil) //nolint:errcheck // its death is noticed elsewhere
	}
	go e.reap(e.childEnded)
	return e.poll.Run(e.tidy)
}

// A younger that lives for less than shortLife counts as quick to die; after manyDeaths such in a row the elder takes its time, so that a
// younger that can't live does not take the machine with it.
const (
	shortLife    = 25 * time.Millisecond
	manyDeaths   = 20
	respawnDelay = 100 * time.Millisecond
)

// startYounger makes a younger; it asks for its equipment itself.
func (e *elder) startYounger() error {
	if time.Since(e.started) > shortLife {
		e.deaths = 0
	}
	if e.deaths++; e.deaths > manyDeaths {
		time.Sleep(respawnDelay)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return sys.At("make socket pair", err)
	}
	if err := unix.Dup3(pair[0], fdPair, unix.O_CLOEXEC); err != nil {
		return sys.At("make socket pair", err)
	}
	unix.Close(pair[0])
	var pidfd int
	files := []uintptr{0, 1, 2, fdDir, fdLock, fdListener, fdImage, fdState, uintptr(pair[1]), fdDir}
	pid, err := syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(fdImage), []string{"shim-keeper", "younger"}, &syscall.ProcAttr{
		Dir: "/", Env: environ(e.nofile), Files: files, Sys: &syscall.SysProcAttr{PidFD: &pidfd},
	})
	unix.Close(pair[1])
	if err != nil {
		return sys.At("start younger", err)
	}
	e.younger, e.pidfd, e.started = int32(pid), pidfd, time.Now()
	if err := e.resume(); err != nil {
		return err
	}
	e.forked()
	return nil
}

// resume watches the younger.
func (e *elder) resume() error {
	e.line = wire{fd: fdPair}
	if err := e.poll.Add(fdPair, unix.EPOLLIN, line{e}); err != nil {
		return sys.At("watch younger", err)
	}
	return sys.At("watch younger", e.poll.Add(e.pidfd, unix.EPOLLIN, death{e}))
}

// line reads what the younger says.
type line struct{ e *elder }

func (l line) Ready(events uint32) {
	if events&unix.EPOLLOUT != 0 {
		l.e.mu.Lock()
		l.e.flushLocked()
		l.e.mu.Unlock()
	}
	if !l.e.listen() {
		l.e.poll.Del(fdPair) // only the younger's end closes the line: death comes next
	}
}

// listen takes in all that the younger has sent, and says whether it may send more.
func (e *elder) listen() bool {
	for {
		seq, m, fds, err := e.in.receive(fdPair)
		if err == unix.EAGAIN { //nolint:errorlint // bare errno
			return true
		}
		if err != nil {
			return false
		}
		e.mu.Lock()
		switch m := m.(type) {
		case *proto.Keep:
			e.applyLocked(m, fds)
		case *proto.Drop:
			e.dropLocked(m.ID)
		case *proto.Ready:
			e.equipLocked()
		case *proto.Upgrade:
			e.upgradeLocked(seq, fds)
		default:
			sys.CloseAll(fds)
		}
		e.mu.Unlock()
	}
}

// equipLocked gives a new younger everything.
func (e *elder) equipLocked() {
	for _, r := range e.records {
		k, fds := r.everything()
		if e.line.sendNow(proto.Marshal(0, k), fds) != nil {
			return // it has died again
		}
	}
	e.line.sendNow(proto.Marshal(0, &proto.Equipped{Build: e.build}), nil) //nolint:errcheck // its death is noticed elsewhere
}

// tellLocked sends an event to the younger, or queues it.
func (e *elder) tellLocked(seq uint64, m proto.Message) {
	if err := e.line.send(proto.Marshal(seq, m), nil); err == nil {
		e.flushLocked()
	}
}

func (e *elder) flushLocked() {
	e.line.flush()
	if len(e.line.out) > 0 {
		e.poll.Arm(fdPair, unix.EPOLLIN|unix.EPOLLOUT)
	} else {
		e.poll.Arm(fdPair, unix.EPOLLIN)
	}
}

// death is the end of the younger.
type death struct{ e *elder }

func (d death) Ready(uint32) {
	e := d.e
	e.listen() // what it has said last
	e.mu.Lock()
	defer e.mu.Unlock()
	var st unix.WaitStatus
	unix.Wait4(int(e.younger), &st, unix.WALL, nil) //nolint:errcheck // whatever it ended with
	e.log.say("younger ", strconv.Itoa(int(e.younger)), " has ended with status ", strconv.FormatUint(uint64(st), 16))
	e.poll.Del(fdPair)
	e.poll.Del(e.pidfd)
	unix.Close(e.pidfd)
	e.line.empty()
	e.younger, e.pidfd = 0, -1
	for {
		err := e.startYounger()
		if err == nil {
			break
		}
		e.log.failed("start younger", err)
		e.started = time.Now()
	}
	e.changed.Broadcast()
}

// childEnded is the reaper's call. The younger is not its business.
func (e *elder) childEnded(pid int32, status uint32) {
	// An orphan may have been named in the last that its dead parent has said, so that is heard first.
	e.mu.Lock()
	mine := pid == e.younger
	for e.younger != 0 && sys.Readable(e.pidfd) {
		e.changed.Wait()
	}
	e.mu.Unlock()
	if mine {
		return
	}
	if r := e.ended(pid, status); r != nil {
		e.mu.Lock()
		e.tellLocked(0, &proto.Reaped{ID: r.ID})
		e.mu.Unlock()
	}
}

// upgradeLocked executes a new image in this process. The younger lives on and hears of it by Equipped.
func (e *elder) upgradeLocked(seq uint64, fds []int) {
	err := func() error {
		if len(fds) != 1 {
			return unix.EBADMSG
		}
		old, err := sys.Dup(fdImage)
		if err != nil {
			return err
		}
		defer unix.Close(old)
		if err := unix.Dup3(fds[0], fdImage, unix.O_CLOEXEC); err != nil {
			return err
		}
		h := proto.Handover{Younger: e.younger, YoungerPIDFD: int32(e.pidfd)}
		err = e.handOver(&h, "elder", "upgrade")
		return joinUndo(err, unix.Dup3(old, fdImage, unix.O_CLOEXEC))
	}()
	sys.CloseAll(fds)
	e.tellLocked(seq, &proto.Ack{Errno: uint32(sys.Errno(err)), Error: err.Error()})
}

// joinUndo is err, with what went wrong when it was undone.
func joinUndo(err, undo error) error {
	if undo != nil {
		return sys.At(err.Error(), undo)
	}
	return err
}
