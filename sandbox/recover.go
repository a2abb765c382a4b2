// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Recover brings back the pods of before a restart of the daemon, or of the machine. A pod that was being made is undone; one that was
// ready stays so if its namespaces are still pinned, else it is stopped; after a reboot all are stopped (KUBELET.md 19).
func (m *Manager) Recover(ctx context.Context) error {
	entries, err := m.o.Store.Load()
	if err != nil {
		return err
	}
	var live []string
	for _, e := range entries {
		r, err := decodeRecord(e.Data)
		if err != nil {
			m.o.Log.Error("pod record can't be read and is dropped", "pod", e.ID, "error", err)
			if err := m.o.Store.Delete(e.ID); err != nil {
				return err
			}
			continue
		}
		r, err = m.recoverOne(ctx, r, e.Stale)
		if err != nil {
			return err
		}
		if r != nil && r.network && r.State == Ready { // one that is stopping is detached as soon as that works
			live = append(live, string(r.ID))
		}
	}
	m.sweepPins()
	if err := m.o.Network.GC(ctx, live); err != nil {
		m.o.Log.Warn("network leftovers of earlier pods stay", "error", err)
	}
	return nil
}

// recoverOne gives the record as it is now, or nil when the pod is gone.
func (m *Manager) recoverOne(ctx context.Context, r *record, stale bool) (*record, error) {
	switch {
	case stale && r.State == Creating: // nobody was told of it, and nothing of it is left
		return nil, m.forget(r)
	case stale:
		r = r.with(func(r *record) { r.State, r.InitPID, r.network = Stopped, 0, false })
		return r, m.put(r)
	case r.State == Creating:
		if err := m.put(r); err != nil { // so that abandon finds it
			return nil, err
		}
		ctx, cancel := detached(ctx, teardownLimit)
		defer cancel()
		if err := m.abandon(ctx, r, nil); err != nil {
			m.o.Log.Warn("pod that was being made could not be undone", "pod", r.ID, "error", err)
			return m.current(r.ID), nil
		}
		return nil, nil
	case r.State == Ready && !m.pinned(r):
		m.o.Log.Warn("pod lost its namespaces", "pod", r.ID)
		r = r.with(func(r *record) { r.State = Stopping })
	}
	if err := m.put(r); err != nil {
		return nil, err
	}
	return r, nil
}

// nsfsMagic is NSFS_MAGIC of linux/magic.h.
const nsfsMagic = 0x6e736673

// pinned says whether the namespaces that the pod needs are still there.
func (m *Manager) pinned(r *record) bool {
	_, mapped := users(r.Config)
	want := map[string]bool{"net": !hostNetwork(r.Config), "ipc": !hostIPC(r.Config), "pid": sharedPID(r.Config), "user": mapped}
	for kind, needed := range want {
		if !needed {
			continue
		}
		var st unix.Statfs_t
		if err := unix.Statfs(m.o.Layout.Pin(r.ID, kind), &st); err != nil || st.Type != nsfsMagic {
			return false
		}
	}
	return true
}

// sweepPins unpins what belongs to no record: a kill between Remove's steps leaves it.
func (m *Manager) sweepPins() {
	dir := m.o.Layout.Pins("")
	list, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range list {
		if m.current(ID(e.Name())) != nil {
			continue
		}
		if err := errors.Join(m.unpinAll(ID(e.Name()), ""), os.RemoveAll(m.o.Layout.Dir(ID(e.Name())))); err != nil {
			m.o.Log.Warn("leftover namespace pins stay", "error", fmt.Errorf("%s: %w", e.Name(), err))
		}
	}
}
