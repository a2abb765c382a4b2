// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/proto"
	"crishim.dev/sandbox"
)

// exitLimit bounds what is done at the end of a container: killing the rest of its cgroup and removing it.
const exitLimit = 2 * time.Minute

// Run handles the ends of processes until the context ends, then waits for the handlers under way.
func (m *Manager) Run(ctx context.Context) {
	defer m.exits.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case ev := <-m.o.Keeper.Exits():
			// One container's end must not wait for another's lock.
			m.exits.Go(func() { m.exited(ctx, ev) })
		case <-m.o.Keeper.Connections():
			m.exits.Go(func() { m.endLost(ctx) })
		}
	}
}

func (m *Manager) exited(ctx context.Context, ev proto.Exited) {
	if strings.HasPrefix(ev.ID, execPrefix) {
		m.execEnded(ctx, ev)
		return
	}
	// If the daemon is stopped in the middle the keeper still has the exit, and the next one begins again.
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		err := m.handle(ctx, ev)
		if err == nil || ctx.Err() != nil {
			return
		}
		// A container whose end is not on record would seem to run for ever.
		m.o.Log.Error("end of a process could not be recorded whole; it will be tried again", "process", ev.ID, "error", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

func (m *Manager) handle(ctx context.Context, ev proto.Exited) error {
	ctx, cancel := context.WithTimeout(ctx, exitLimit)
	defer cancel()
	pod, isInit := strings.CutPrefix(ev.ID, initPrefix)
	if !isInit {
		return m.finish(ctx, ID(ev.ID), ev)
	}
	err := m.o.Sandboxes.InitEnded(ctx, sandbox.ID(pod))
	if errors.Is(err, errs.NotFound) { // else its pod's teardown forgets it
		return m.o.Keeper.Forget(ctx, ev.ID)
	}
	return err
}

// initPrefix begins the keeper's names for the inits of pods, as package sandbox gives them.
const initPrefix = "init-"

// finish makes a running container exited.
func (m *Manager) finish(ctx context.Context, id ID, ev proto.Exited) error {
	unlock, err := m.locks.Lock(ctx, string(id))
	if err != nil {
		return err
	}
	defer unlock()
	r := m.current(id)
	if r == nil || (r.State != Running && r.State != Starting) {
		return m.o.Keeper.Forget(ctx, string(id))
	}
	exited := r.with(func(r *record) {
		r.State, r.PID = Exited, 0
		r.FinishedAt = time.Unix(0, ev.Time)
		r.ExitCode, r.Reason = outcome(ev.Status)
		// The keeper may see the end before we hear of the start.
		if r.StartedAt.IsZero() || r.StartedAt.After(r.FinishedAt) {
			r.StartedAt = r.FinishedAt
		}
	})
	if exited.ExitCode != 0 && m.oomKilled(r) {
		exited.Reason = "OOMKilled"
	}
	cgErr := m.endCgroup(ctx, r)
	if err := m.put(exited); err != nil {
		return errors.Join(err, cgErr)
	}
	m.changed(exited, ChangeStopped)
	return errors.Join(cgErr, m.o.Keeper.Forget(ctx, string(id)))
}

// outcome translates a wait status as KUBELET.md 7 has it.
func outcome(status uint32) (code int32, reason string) {
	if status == proto.StatusUnknown {
		return 255, "Unknown"
	}
	ws := syscall.WaitStatus(status)
	if ws.Signaled() {
		return 128 + int32(ws.Signal()), "Error"
	}
	if code := int32(ws.ExitStatus()); code != 0 {
		return code, "Error"
	}
	return 0, "Completed"
}

// oomKilled asks the cgroup's own counter, before the group is removed (KUBELET.md 8).
func (m *Manager) oomKilled(r *record) bool {
	g, err := m.o.Cgroups.Open(r.Cgroup)
	if err != nil {
		return false
	}
	n, err := g.OOMKills()
	return err == nil && n > 0
}

// endCgroup kills what is left of a container (with a shared or the host's pid namespace the end of its first process ends the
// rest only so) and removes its cgroup.
func (m *Manager) endCgroup(ctx context.Context, r *record) error {
	g, err := m.o.Cgroups.Open(r.Cgroup)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err == nil {
		err = g.Kill(ctx)
	}
	if err == nil {
		err = g.Remove(ctx)
	}
	if err != nil {
		return fmt.Errorf("end cgroup of container %s: %w", r.name(), err)
	}
	return nil
}

// live gives a copy of the pidfd of a running container's first process; the caller closes it.
func (m *Manager) live(id ID) (*os.File, *record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.all[id]
	if e == nil || !listed(e.rec) {
		return nil, nil, errs.Newf(errs.NotFound, "find container %q: no such container", id)
	}
	if e.rec.State != Running || e.pidfd == nil {
		return nil, nil, errs.Newf(errs.Precondition, "container %s is not running, it is %s", e.rec.name(), e.rec.State)
	}
	fd, err := unix.FcntlInt(e.pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, nil, os.NewSyscallError("dup", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), e.rec, nil
}
