// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/internal/progress"
)

// stopLimit bounds one attempt at a pod's teardown; kubelet tries again.
const stopLimit = 4 * time.Minute

// Stop takes a pod's network, namespaces and cgroup away and leaves its record. Its containers must have been stopped before.
// Stopping a stopped or unknown pod succeeds. It is not undone when the caller goes away in the middle.
func (m *Manager) Stop(ctx context.Context, id ID) error {
	unlock, err := m.locks.Lock(ctx, string(id))
	if err != nil {
		return err
	}
	defer unlock()
	r := m.current(id)
	if r == nil || r.State == Stopped {
		return nil
	}
	return m.stopLocked(ctx, r)
}

func (m *Manager) current(id ID) *record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.boxes[id]
}

func (m *Manager) stopLocked(ctx context.Context, r *record) error {
	ctx, end := m.underWay.Begin(ctx, progress.Operation{Sandbox: string(r.ID), Name: "stop"})
	defer end()
	stopping := r.with(func(r *record) { r.State = Stopping })
	if err := m.put(stopping); err != nil {
		return err
	}
	ctx, cancel := detached(ctx, stopLimit)
	defer cancel()
	if err := m.teardown(ctx, stopping); err != nil {
		return fmt.Errorf("stop pod %s: %w", r.Config.GetMetadata().GetName(), err)
	}
	stopped := stopping.with(func(r *record) { r.State, r.network, r.InitPID = Stopped, false, 0 })
	if err := m.put(stopped); err != nil {
		return err
	}
	m.changed(r.ID, ChangeStopped)
	return nil
}

// teardown is the inverse of build, whole or in part: each step is fine with there being nothing to take away, and one that
// fails does not stop the others. The network goes first: its host ports must be free for a DaemonSet's next pod (KUBELET.md 30). While a
// plugin can't let go of the pod its network namespace stays, since there may be something in it that has to be taken out (a device).
func (m *Manager) teardown(ctx context.Context, r *record) error {
	var all []error
	step := func(what string, err error) {
		if err != nil {
			all = append(all, fmt.Errorf("%s: %w", what, err))
		}
	}
	var keep string
	if r.network {
		progress.Stage(ctx, "detach from the network")
		err := m.o.Network.Detach(ctx, m.networkPod(r, nil))
		step("detach from the network", err)
		if err != nil {
			keep = "net"
		}
	}
	if sharedPID(r.Config) {
		progress.Stage(ctx, "end the pod's init")
		step("end the pod's init", m.endInit(ctx, r))
	}
	if _, mapped := users(r.Config); mapped {
		step("end the maker of the user namespace", m.o.Keeper.Forget(ctx, usersID(r.ID)))
	}
	progress.Stage(ctx, "unpin namespaces")
	step("unpin", m.unpinAll(r.ID, keep))
	progress.Stage(ctx, "remove cgroup")
	step("remove cgroup", m.prune(ctx, r.ID, r.Cgroup))
	return errors.Join(all...)
}

func (m *Manager) endInit(ctx context.Context, r *record) error {
	path := m.o.Cgroups.Container(r.Cgroup, string(r.ID))
	if err := m.removeCgroup(ctx, path); err != nil {
		return err
	}
	// Its cgroup is empty as soon as it is dead; the keeper lets go of it when it has been reaped as well.
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := m.o.Keeper.Forget(ctx, initID(r.ID))
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}

// prune removes the pod's cgroup if we made it and no other pod has it as its parent too.
func (m *Manager) prune(ctx context.Context, id ID, path string) error {
	m.mu.Lock()
	for other, r := range m.boxes {
		if other != id && r.Cgroup == path && r.State != Stopped {
			m.mu.Unlock()
			return nil
		}
	}
	m.mu.Unlock()
	g, err := m.o.Cgroups.Open(path)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if strings.HasSuffix(path, string(id)) || strings.Contains(path, string(id)+".slice") { // named by us, so made by us
		g.Claim()
	}
	return g.Prune(ctx)
}

// removeCgroup kills what is left in a cgroup and removes it. A cgroup that isn't there is fine.
func (m *Manager) removeCgroup(ctx context.Context, path string) error {
	g, err := m.o.Cgroups.Open(path)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := g.Kill(ctx); err != nil {
		return err
	}
	return g.Remove(ctx)
}

// Remove stops a pod if need be and forgets it. An unknown pod succeeds.
func (m *Manager) Remove(ctx context.Context, id ID) error {
	unlock, err := m.locks.Lock(ctx, string(id))
	if err != nil {
		return err
	}
	defer unlock()
	r := m.current(id)
	if r == nil {
		return nil
	}
	if r.State != Stopped {
		if err := m.stopLocked(ctx, r); err != nil {
			return err
		}
		if r = m.current(id); r == nil {
			return nil
		}
	}
	if err := m.forget(r); err != nil {
		return fmt.Errorf("remove pod %s: %w", r.Config.GetMetadata().GetName(), err)
	}
	m.changed(id, ChangeDeleted)
	return nil
}
