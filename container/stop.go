// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"crishim.dev/container/process"
	"crishim.dev/internal/errs"
	"crishim.dev/internal/progress"
	"crishim.dev/sandbox"
)

// Stop ends a container: its stop signal, then after the timeout SIGKILL, and returns when it has ended. A timeout of 0 kills at
// once. Of several calls the shortest timeout counts. Stopping what does not run, or an unknown container, succeeds.
func (m *Manager) Stop(ctx context.Context, id ID, timeout time.Duration) error {
	if err := m.settled(ctx, id); err != nil {
		return err
	}
	pidfd, r, err := m.live(id)
	if errors.Is(err, errs.NotFound) || errors.Is(err, errs.Precondition) {
		return m.recorded(ctx, id)
	}
	if err != nil {
		return err
	}
	defer pidfd.Close()
	ctx, end := m.begin(ctx, r, "stop")
	defer end()
	done := m.done(id)
	if timeout > 0 {
		progress.Stage(ctx, "wait for the end after "+r.StopSignal)
		if err := m.askToStop(r, pidfd); err != nil {
			return err
		}
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("stop container %s: %w", r.name(), context.Cause(ctx))
		case <-timer.C:
		}
	}
	return m.kill(ctx, r, pidfd, done)
}

// recorded waits until the end of a process that has ended is on record: right after a restart of the daemon it is not yet.
func (m *Manager) recorded(ctx context.Context, id ID) error {
	if r := m.current(id); r == nil || r.State != Running {
		return nil
	}
	select {
	case <-m.done(id):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop container %s: its end is not on record yet: %w", id, context.Cause(ctx))
	}
}

// settled waits until no launch of the container is in flight.
func (m *Manager) settled(ctx context.Context, id ID) error {
	unlock, err := m.locks.Lock(ctx, string(id))
	if err != nil {
		return err
	}
	unlock()
	return nil
}

func (m *Manager) done(id ID) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.all[id]; e != nil {
		return e.done
	}
	gone := make(chan struct{})
	close(gone)
	return gone
}

// askToStop sends the stop signal, once however often Stop is called.
func (m *Manager) askToStop(r *record, pidfd *os.File) error {
	m.mu.Lock()
	e := m.all[r.ID]
	again := e == nil || e.signalled
	if e != nil {
		e.signalled = true
	}
	m.mu.Unlock()
	if again {
		return nil
	}
	sig, err := process.ParseSignal(r.StopSignal)
	if err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(int(pidfd.Fd()), sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop container %s: send %s: %w", r.name(), r.StopSignal, err)
	}
	return nil
}

// kill sends SIGKILL, thaws, and waits for the end.
func (m *Manager) kill(ctx context.Context, r *record, pidfd *os.File, done <-chan struct{}) error {
	progress.Stage(ctx, "wait for the end after SIGKILL")
	if err := unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill container %s: %w", r.name(), err)
	}
	if g, err := m.o.Cgroups.Open(r.Cgroup); err == nil {
		if err := g.Thaw(ctx); err != nil && !errors.Is(err, errs.NotFound) { // a frozen process dies only when thawed (v1)
			return fmt.Errorf("kill container %s: %w", r.name(), err)
		}
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("kill container %s: process %d has SIGKILL but has not ended: %w", r.name(), r.PID, context.Cause(ctx))
	}
}

// Remove takes a container away, killing it first if it runs. Its log stays. An unknown container succeeds.
func (m *Manager) Remove(ctx context.Context, id ID) error {
	for {
		if err := m.Stop(ctx, id, 0); err != nil {
			return err
		}
		again, err := m.removeStopped(ctx, id)
		if err != nil || !again {
			return err
		}
	}
}

// removeStopped reports again when the container was started meanwhile.
func (m *Manager) removeStopped(ctx context.Context, id ID) (again bool, err error) {
	unlock, err := m.locks.Lock(ctx, string(id))
	if err != nil {
		return false, err
	}
	defer unlock()
	r := m.current(id)
	if r == nil {
		return false, nil
	}
	if r.State == Running {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
	defer cancel()
	ctx, end := m.begin(ctx, r, "remove")
	defer end()
	removing := r.with(func(r *record) { r.State = Removing })
	if err := m.put(removing); err != nil {
		return false, err
	}
	if err := m.takeAway(ctx, removing); err != nil {
		// Not listed it could not be removed again.
		err = errors.Join(err, m.put(m.leftover(r, err)))
		return false, fmt.Errorf("remove container %s: %w", r.name(), err)
	}
	m.changed(r, ChangeDeleted)
	return false, nil
}

// takeAway removes all of a container that has ended.
func (m *Manager) takeAway(ctx context.Context, r *record) error {
	progress.Stage(ctx, "remove cgroup")
	if err := errors.Join(m.endCgroup(ctx, r), m.o.Keeper.Forget(ctx, string(r.ID))); err != nil {
		return err
	}
	progress.Stage(ctx, "remove writable layer")
	return m.discard(ctx, r)
}

// StopPod kills all containers of a pod and lets no new ones in.
func (m *Manager) StopPod(ctx context.Context, pod sandbox.ID) error {
	// A start or create that still found the pod ready has the container's lock by now, or is on record: each waits for it.
	if err := m.o.Sandboxes.Close(ctx, pod); err != nil {
		return err
	}
	return m.each(ctx, pod, func(ctx context.Context, id ID) error { return m.Stop(ctx, id, 0) })
}

// RemovePod removes all containers of a pod, which StopPod has closed.
func (m *Manager) RemovePod(ctx context.Context, pod sandbox.ID) error {
	return m.each(ctx, pod, m.Remove)
}

func (m *Manager) each(ctx context.Context, pod sandbox.ID, f func(context.Context, ID) error) error {
	var g errgroup.Group
	for _, id := range m.inPod(pod) {
		g.Go(func() error { return f(ctx, id) })
	}
	return g.Wait()
}
