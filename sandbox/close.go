// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"

	"crishim.dev/internal/errs"
)

// Close makes a ready pod one that is being stopped: from now on, also for the next daemon, nothing may be created or started in it
// (KUBELET.md 17). Whoever ends a pod's containers closes it first. Closing a pod that is not ready, or unknown, succeeds.
func (m *Manager) Close(ctx context.Context, id ID) error {
	unlock, err := m.locks.Lock(ctx, string(id))
	if err != nil {
		return err
	}
	defer unlock()
	r := m.current(id)
	if r == nil || r.State != Ready {
		return nil
	}
	return m.put(r.with(func(r *record) { r.State = Stopping }))
}

// InitEnded is told that the first process of a pod's shared pid namespace has ended. The kernel has killed all others in the namespace
// then and lets no new one in: a ready pod is no longer one, and kubelet makes another.
// NotFound for an unknown pod, Precondition for one that is still being made: tell it again.
func (m *Manager) InitEnded(ctx context.Context, id ID) error {
	unlock, err := m.locks.Lock(ctx, string(id))
	if err != nil {
		return err
	}
	defer unlock()
	r := m.current(id)
	switch {
	case r == nil:
		return errs.Newf(errs.NotFound, "end of the init of pod %s: no such pod", id)
	case r.State == Creating:
		return errs.Newf(errs.Precondition, "end of the init of pod %s: the pod is being made", id)
	case r.State != Ready: // Stop waits for this end
		return nil
	}
	m.o.Log.Warn("the first process of the pod's shared pid namespace has ended; the pod is no longer ready", "pod", id)
	if err := m.put(r.with(func(r *record) { r.State = Stopping })); err != nil {
		return err
	}
	m.changed(id, ChangeStopped)
	return nil
}
