// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/cgroup"
	"crishim.dev/internal/errs"
	"crishim.dev/proto"
)

// Recover brings back the containers of before a restart of the daemon, or of the machine, and matches them against the
// keeper's processes. It runs after the sandboxes' Recover and before Run; ends that it finds are handled by Run like any other.
func (m *Manager) Recover(ctx context.Context) error {
	entries, err := m.o.Store.Load()
	if err != nil {
		return err
	}
	list, pidfds, err := m.o.Keeper.Processes(ctx)
	if err != nil {
		return fmt.Errorf("ask the keeper what runs: %w", err)
	}
	running := map[string]*os.File{}
	known := map[string]proto.Process{}
	for i, p := range list {
		known[p.ID] = p
		running[p.ID] = pidfds[i]
	}
	for _, e := range entries {
		r, err := decodeRecord(e.Data)
		if err != nil {
			m.o.Log.Error("container record can't be read and is dropped", "container", e.ID, "error", err)
			if err := m.o.Store.Delete(e.ID); err != nil {
				return err
			}
			continue
		}
		p, ok := known[e.ID]
		pidfd := running[e.ID]
		delete(running, e.ID)
		if err := m.recoverOne(ctx, r, e.Stale, ok && !e.Stale, p, pidfd); err != nil {
			return fmt.Errorf("recover container %s: %w", e.ID, err)
		}
		if pidfd != nil && m.pidfdOf(r.ID) != pidfd {
			_ = pidfd.Close()
		}
	}
	m.endStrays(ctx, running)
	return m.sweepDisk(ctx)
}

func (m *Manager) recoverOne(ctx context.Context, r *record, stale, known bool, p proto.Process, pidfd *os.File) error {
	switch r.State {
	case Creating, Removing:
		if err := m.put(r); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, cleanLimit)
		defer cancel()
		// One container that can't be taken away must not keep all others from being served.
		if err := m.takeAway(ctx, r); err != nil {
			m.o.Log.Error("container of before that was being made or removed could not be taken away", "container", r.ID, "error", err)
			return m.put(m.leftover(r, err))
		}
		return nil
	case Created, Exited:
		return m.put(r)
	case Starting, Running:
	}
	switch {
	case known:
		// Running, or ended meanwhile: the exit comes again on the keeper's channel.
		r = r.with(func(r *record) {
			r.State, r.PID = Running, int(p.PID)
			if r.StartedAt.IsZero() {
				r.StartedAt = time.Now()
			}
		})
		if err := m.put(r); err != nil {
			return err
		}
		m.mu.Lock()
		m.all[r.ID].pidfd = pidfd
		m.mu.Unlock()
		return nil
	case r.State == Starting && !stale:
		r = r.with(func(r *record) {
			r.State, r.ExitCode, r.Reason, r.FinishedAt = Exited, 128, "StartError", time.Now()
			r.Message = "start container " + r.name() + ": the daemon ended before the launch"
		})
	default: // nobody saw the end
		r = r.with(func(r *record) {
			r.State, r.PID, r.ExitCode, r.Reason, r.FinishedAt = Exited, 0, 255, "Unknown", time.Now()
		})
	}
	if !stale {
		if err := m.endCgroup(ctx, r); err != nil {
			m.o.Log.Warn("cgroup of an ended container stays", "container", r.ID, "error", err)
		}
	}
	return m.put(r)
}

// endStrays kills processes that belong to nobody: execs of a daemon that is gone (KUBELET.md 20), containers without a record.
func (m *Manager) endStrays(ctx context.Context, running map[string]*os.File) {
	for id, pidfd := range running {
		if pod, ok := strings.CutPrefix(id, initPrefix); ok {
			if _, err := m.o.Sandboxes.Get(pod); !errors.Is(err, errs.NotFound) {
				if pidfd != nil {
					_ = pidfd.Close()
				}
				continue
			}
		}
		if pidfd != nil {
			if strings.HasPrefix(id, execPrefix) {
				m.endStrayExec(ctx, id)
			}
			err := unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				m.o.Log.Warn("stray process can't be killed", "process", id, "error", err)
			}
			_ = pidfd.Close()
			continue // its end comes on the keeper's channel, and Run forgets it
		}
		if err := m.o.Keeper.Forget(ctx, id); err != nil {
			m.o.Log.Warn("ended stray process can't be forgotten", "process", id, "error", err)
		}
	}
}

// endStrayExec kills an exec of a daemon that is gone with all that it has started.
func (m *Manager) endStrayExec(ctx context.Context, id string) {
	owner, _, ok := strings.Cut(strings.TrimPrefix(id, execPrefix), "-")
	r, err := m.find(owner)
	if !ok || err != nil { // its container has ended, and everything in it
		return
	}
	ctx, cancel := context.WithTimeout(ctx, cleanLimit)
	defer cancel()
	group, err := m.o.Cgroups.Open(r.Cgroup)
	if err == nil {
		var part *cgroup.Part
		if part, err = group.Part(id); err == nil {
			err = errors.Join(part.Kill(ctx), part.Remove(ctx))
		}
	}
	if err != nil && !errors.Is(err, errs.NotFound) {
		m.o.Log.Warn("stray exec can't be ended whole", "process", id, "error", err)
	}
}

// pidfdOf gives what a container's entry has.
func (m *Manager) pidfdOf(id ID) *os.File {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.all[id]; e != nil {
		return e.pidfd
	}
	return nil
}

// sweepDisk removes snapshots and directories that belong to no container: a kill between two steps leaves them.
func (m *Manager) sweepDisk(ctx context.Context) error {
	snaps, err := m.o.Snapshots.Snapshots()
	if err != nil {
		return err
	}
	for _, id := range snaps {
		if m.current(ownerOf(id)) == nil {
			if err := m.o.Snapshots.Remove(ctx, id); err != nil {
				m.o.Log.Warn("leftover writable layer stays", "snapshot", id, "error", err)
			}
		}
	}
	dirs, err := os.ReadDir(m.o.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, d := range dirs {
		if m.current(ID(d.Name())) == nil {
			if err := os.RemoveAll(m.dir(ID(d.Name()))); err != nil {
				m.o.Log.Warn("leftover volumes stay", "container", d.Name(), "error", err)
			}
		}
	}
	return nil
}
