// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Part is some processes of a group that can be told apart from the rest: they and all their descendants, wherever those flee to,
// can be killed alone. An exec in a container is one.
//
// A Part is a group below the other's in one hierarchy only, which limits and accounts nothing: the unified one (version 2, or a
// hybrid host's), else version 1's freezer. In all others its processes are in the group itself, so that limits, statistics and what
// the kubelet matches by stay as they are. In the unified hierarchy no controller is enabled for it.
type Part struct {
	of *Group
	// sub is the Part as a group of a manager with the one hierarchy.
	sub *Group
}

// tracker is a manager of the hierarchy that Parts are made in.
func (m *Manager) tracker() *Manager {
	t := &Manager{driver: Cgroupfs, version: 1, log: m.log, by: map[string]*hierarchy{}, warned: map[string]bool{}}
	for _, h := range m.all {
		if h.v2 {
			t.version, t.all = 2, []*hierarchy{h}
			return t
		}
	}
	if h := m.by["freezer"]; h != nil {
		t.all, t.by["freezer"] = []*hierarchy{h}, h
		return t
	}
	t.all = m.all[:1]
	return t
}

// Part makes a part of the group; errs.NotFound when the group is gone.
func (g *Group) Part(name string) (*Part, error) {
	t := g.m.tracker()
	p := &Part{of: g, sub: &Group{m: t, path: g.path + "/" + name}}
	if err := checkPath(p.sub.path); err != nil {
		return nil, err
	}
	if err := t.all[0].mkdir(p.sub.path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make part of cgroup: %w", notFound(g.path, err))
	}
	return p, nil
}

// Files is Group.Files for a process of the part.
func (p *Part) Files() (joins []*os.File, dir *os.File, err error) {
	h := p.sub.m.all[0]
	rest := &Manager{}
	for _, other := range p.of.m.all {
		if other != h {
			rest.all = append(rest.all, other)
		}
	}
	joins, dir, err = (&Group{m: rest, path: p.of.path}).Files()
	if err != nil {
		return nil, nil, err
	}
	own, ownDir, err := p.sub.Files()
	if err != nil {
		for _, f := range joins {
			err = errors.Join(err, f.Close())
		}
		return nil, nil, err
	}
	if ownDir != nil {
		dir = ownDir
	}
	return append(joins, own...), dir, nil
}

// Kill is Group.Kill for the part's processes.
func (p *Part) Kill(ctx context.Context) error { return p.sub.Kill(ctx) }

// Remove removes the part and gives processes that are left to the group: they were started by an exec and stay in its container. What is
// gone is fine.
func (p *Part) Remove(ctx context.Context) error {
	h := p.sub.m.all[0]
	err := gone(h.rmdir(p.sub.path))
	if busy(err) && h.v2 {
		// What forks faster than it can be moved is held; who is moved goes on.
		_ = h.write(p.sub.path, "cgroup.freeze", "1")
		defer func() { _ = h.write(p.sub.path, "cgroup.freeze", "0") }() // of a part that stays
	}
	deadline := time.Now().Add(removeFor)
	// In rounds: a process that was listed may have ended, and its child be there instead.
	for wait := 50 * time.Microsecond; busy(err) && time.Now().Before(deadline); wait = min(2*wait, step) {
		pids, e := p.sub.PIDs()
		if e != nil {
			return gone(e)
		}
		for _, pid := range pids {
			if pid == 0 {
				continue
			}
			// One that has ended meanwhile can't be moved and need not be. EBUSY: the container has handed controllers down in its own
			// group, which can't have processes then (version 2). The part stays as long as they do.
			if e := h.write(p.of.path, "cgroup.procs", strconv.Itoa(pid)); errors.Is(e, unix.EBUSY) {
				return nil
			}
		}
		if err = h.rmtree(p.sub.path); busy(err) && len(pids) == 0 { // those that are on their way out take a moment
			if e := sleep(ctx, wait); e != nil {
				return errors.Join(err, e)
			}
		}
	}
	return err
}
