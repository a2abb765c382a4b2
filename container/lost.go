// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/proto"
)

// When both keepers are killed at once, the next pair knows nothing of what they kept. A container of theirs runs on as a child of the system's
// init, but nobody takes its output, so it stands still as soon as its pipe is full, and nobody can attach to it. It is therefore ended, and
// kubelet starts it again, as after a restart of the daemon that finds it unknown (Recover). What has ended by itself tells its own status.

// endLost ends the running containers that the keeper does not know.
func (m *Manager) endLost(ctx context.Context) {
	m.mu.Lock()
	var running []ID
	for id, e := range m.all {
		if e.rec.State == Running {
			running = append(running, id)
		}
	}
	m.mu.Unlock()
	if len(running) == 0 {
		return
	}
	known, err := m.kept(ctx)
	if err != nil { // at the next connection
		return
	}
	for _, id := range running {
		if !known[string(id)] {
			m.exits.Go(func() {
				if ev, lost := m.endOne(ctx, id); lost {
					m.exited(ctx, ev)
				}
			})
		}
	}
}

// kept is what the keeper knows.
func (m *Manager) kept(ctx context.Context) (map[string]bool, error) {
	list, pidfds, err := m.o.Keeper.Processes(ctx)
	known := make(map[string]bool, len(list))
	for i, p := range list {
		known[p.ID] = true
		if pidfds[i] != nil {
			_ = pidfds[i].Close()
		}
	}
	return known, err
}

// endOne ends a container if it is lost, and gives how it ended. With its lock held no launch is in flight: what runs, the keeper knows.
func (m *Manager) endOne(ctx context.Context, id ID) (proto.Exited, bool) {
	ctx, cancel := context.WithTimeout(ctx, exitLimit)
	defer cancel()
	unlock, err := m.locks.Lock(ctx, string(id))
	if err != nil {
		return proto.Exited{}, false
	}
	defer unlock()
	pidfd, r, err := m.live(id)
	if err != nil {
		return proto.Exited{}, false
	}
	defer pidfd.Close()
	known, err := m.kept(ctx)
	if err != nil || known[string(id)] {
		return proto.Exited{}, false
	}
	m.o.Log.Warn("both keepers have ended at once; what they kept is ended", "container", id)
	if err := m.endCgroup(ctx, r); err != nil {
		m.o.Log.Warn("cgroup of a lost container stays", "container", id, "error", err)
	}
	for _, exec := range m.execsOf(id) {
		m.execEnded(ctx, proto.Exited{ID: exec, Status: proto.StatusUnknown, Time: time.Now().UnixNano()})
	}
	return proto.Exited{ID: string(id), Status: lostStatus(ctx, pidfd), Time: time.Now().UnixNano()}, true
}

// execsOf gives the execs under way in a container.
func (m *Manager) execsOf(id ID) (ids []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for exec := range m.execs {
		if strings.HasPrefix(exec, execPrefix+string(id[:execOwner])+"-") {
			ids = append(ids, exec)
		}
	}
	return ids
}

// lostStatus is the wait status of somebody else's child, which the kernel tells once it has been reaped (Linux 6.15, PIDFD_GET_INFO).
// A parent that does not reap is not waited for.
func lostStatus(ctx context.Context, pidfd *os.File) uint32 {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for {
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		err := unix.IoctlPidfdInfo(int(pidfd.Fd()), &info)
		if err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
			return uint32(info.Exit_code)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return proto.StatusUnknown
		}
		select {
		case <-ctx.Done():
			return proto.StatusUnknown
		case <-time.After(5 * time.Millisecond):
		}
	}
}
