// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// step is the longest that one system call waits before the context is looked at again.
const step = 50 * time.Millisecond

// PIDs lists the processes of the group and of the groups below it, in no order. Version 1: of every hierarchy together, since
// a privileged container can move its processes about in each. A process of a pid namespace that we don't see is listed as 0.
func (g *Group) PIDs() ([]int, error) {
	seen := map[int]bool{}
	for _, h := range g.m.all {
		if err := h.pids(g.path, seen); err != nil {
			return nil, err
		}
	}
	pids := make([]int, 0, len(seen))
	for pid := range seen {
		pids = append(pids, pid)
	}
	return pids, nil
}

// pids adds the processes in path and below to seen.
func (h *hierarchy) pids(path string, seen map[int]bool) error {
	var buf []byte
	return h.walk(path, func(p string) error {
		var err error
		buf, err = h.readInto(buf, p, "cgroup.procs")
		if errors.Is(err, unix.EOPNOTSUPP) { // a threaded group's processes are listed above it
			return nil
		}
		for line := range bytes.Lines(buf) {
			if pid, err := strconv.Atoi(string(bytes.TrimSpace(line))); err == nil {
				seen[pid] = true
			}
		}
		return err
	})
}

// Freeze stops all processes of the group and returns when they have stopped.
func (g *Group) Freeze(ctx context.Context) error {
	if err := g.setFrozen(true); err != nil {
		return fmt.Errorf("freeze cgroup %s: %w", g.path, notFound(g.path, err))
	}
	if err := g.awaitFrozen(ctx); err != nil {
		return fmt.Errorf("freeze cgroup %s: %w", g.path, errors.Join(err, g.setFrozen(false)))
	}
	return nil
}

// Thaw undoes Freeze; of a group that is not frozen it does nothing.
func (g *Group) Thaw(context.Context) error {
	if err := g.setFrozen(false); err != nil {
		return fmt.Errorf("thaw cgroup %s: %w", g.path, notFound(g.path, err))
	}
	return nil
}

func (g *Group) setFrozen(on bool) error {
	if g.m.version == 2 {
		return g.m.all[0].write(g.path, "cgroup.freeze", map[bool]string{false: "0", true: "1"}[on])
	}
	h := g.m.by["freezer"]
	if h == nil {
		return nil
	}
	return h.write(g.path, "freezer.state", map[bool]string{false: "THAWED", true: "FROZEN"}[on])
}

// awaitFrozen waits for the kernel. Version 1 has no notification, and a task that was forked at the wrong moment may need to
// be asked again (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst).
func (g *Group) awaitFrozen(ctx context.Context) error {
	if g.m.version == 2 {
		return g.await(ctx, "frozen 1")
	}
	h := g.m.by["freezer"]
	for wait := 50 * time.Microsecond; h != nil; wait = min(2*wait, step) {
		b, err := h.read(g.path, "freezer.state")
		if err != nil || strings.TrimSpace(string(b)) == "FROZEN" {
			return err
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
		if err := g.setFrozen(true); err != nil {
			return err
		}
	}
	return nil
}

// Kill ends every process in the group and below, also frozen ones, and returns when they are gone, or with what is left when
// ctx ends. A group that doesn't exist is dead already.
func (g *Group) Kill(ctx context.Context) error {
	kill := g.killV1
	if g.m.version == 2 {
		kill = g.killV2
	}
	if err := gone(kill(ctx)); err != nil {
		left, _ := g.PIDs()
		return fmt.Errorf("kill cgroup %s: %w (left: %v)", g.path, err, left)
	}
	return nil
}

// killV2 lets the kernel do it, without races (cgroup.kill, 5.14), and again for what was still on its way in.
func (g *Group) killV2(ctx context.Context) error {
	h := g.m.all[0]
	if err := h.write(g.path, "cgroup.freeze", "0"); err != nil {
		return err
	}
	for {
		if err := h.write(g.path, "cgroup.kill", "1"); err != nil {
			return err
		}
		short, cancel := context.WithTimeout(ctx, step)
		err := g.await(short, "populated 0")
		cancel()
		if err == nil || !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return err
		}
	}
}

// await waits until cgroup.events has a line; the kernel marks the file with POLLPRI when it changes.
func (g *Group) await(ctx context.Context, line string) error {
	f, err := g.m.all[0].open(g.path, "cgroup.events", unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	var buf [256]byte
	for {
		n, err := f.ReadAt(buf[:], 0)
		if n == 0 && err != nil {
			return err
		}
		if strings.Contains(string(buf[:n]), line+"\n") {
			return nil
		}
		if err := poll(ctx, []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}); err != nil {
			return err
		}
	}
}

// poll waits for one of fds, or for a step; the caller looks again in either case.
func poll(ctx context.Context, fds []unix.PollFd) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	wait := step
	if d, ok := ctx.Deadline(); ok {
		wait = min(wait, max(time.Until(d), time.Millisecond))
	}
	if _, err := unix.Poll(fds, int(wait.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
		return os.NewSyscallError("poll", err)
	}
	return nil
}

// killV1 freezes, signals, thaws, until every hierarchy says empty. Frozen processes can't fork, so a fork bomb loses; what
// can't be frozen (a task in uninterruptible sleep) is met again in the next round.
func (g *Group) killV1(ctx context.Context) error {
	for wait := 50 * time.Microsecond; ; wait = min(2*wait, step) {
		empty, err := g.killRoundV1(ctx)
		if err != nil || empty {
			return err
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// maxPoll bounds the descriptors held at once; a larger group takes more rounds.
const maxPoll = 512

// killRoundV1 kills what is there now and waits for its end, as long as that takes no longer than a step.
func (g *Group) killRoundV1(ctx context.Context) (empty bool, err error) {
	if pids, err := g.PIDs(); err != nil || len(pids) == 0 {
		return err == nil, errors.Join(err, gone(g.setFrozen(false)))
	}
	if err := gone(g.setFrozen(true)); err != nil {
		return false, err
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	// Killing goes on if this fails: the signals alone end most groups.
	_ = g.awaitFrozen(short)
	killed, err := g.signalAll()
	defer func() {
		for _, p := range killed {
			_ = unix.Close(int(p.Fd))
		}
	}()
	if err := errors.Join(err, gone(g.setFrozen(false))); err != nil {
		return false, err
	}
	for deadline := time.Now().Add(step); len(killed) > 0 && time.Now().Before(deadline); {
		if err := poll(ctx, killed); err != nil {
			return false, err
		}
		running := killed[:0:0]
		for _, p := range killed {
			if p.Revents == 0 {
				running = append(running, p)
			} else {
				_ = unix.Close(int(p.Fd))
			}
		}
		killed = running
	}
	return false, nil
}

// signalAll sends SIGKILL to the group's processes and returns their pidfds. Between reading a pid and opening it the process
// may have ended and the number be somebody else's, so the list is read again: a pid that is in it after its pidfd was
// opened names the process of the pidfd.
func (g *Group) signalAll() ([]unix.PollFd, error) {
	pids, err := g.PIDs()
	if err != nil {
		return nil, err
	}
	var fds []unix.PollFd
	opened := map[int]int{}
	for _, pid := range pids[:min(len(pids), maxPoll)] {
		if pid == 0 {
			continue
		}
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			opened[pid] = fd
			fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		}
	}
	again, err := g.PIDs()
	for _, pid := range again {
		if fd, ok := opened[pid]; ok {
			if e := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); e != nil && !errors.Is(e, unix.ESRCH) {
				err = errors.Join(err, fmt.Errorf("kill process %d: %w", pid, e))
			}
		}
	}
	return fds, err
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// busy tells the kernel's ways to say that a group has processes or groups in it.
func busy(err error) bool {
	return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, fs.ErrExist)
}
