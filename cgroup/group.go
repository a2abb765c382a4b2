// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// Group is a control group by its path, in every hierarchy. It holds no descriptor, needs no closing, and is safe for
// concurrent use. The group may vanish at any time; methods then say errs.NotFound, except those that want it gone.
type Group struct {
	m    *Manager
	path string
	// pending is what Place has to apply: a systemd scope comes into being with its first process.
	pending *Resources
}

// Path is what the Group was made or opened with.
func (g *Group) Path() string { return g.path }

// Open names an existing group; errs.NotFound when no hierarchy has it.
func (m *Manager) Open(path string) (*Group, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	for _, h := range m.all {
		if h.exists(path) {
			return &Group{m: m, path: path}, nil
		}
	}
	return nil, errs.Newf(errs.NotFound, "find cgroup %s", path)
}

// Create makes a container's group, and what is missing above it, and applies r. A group that exists is taken as it is, so
// a retry is fine. When it fails, what it made is gone again. With the systemd driver nothing exists before Place.
func (m *Manager) Create(ctx context.Context, path string, r *Resources) (*Group, error) {
	g, _, err := m.create(ctx, path, r, false)
	return g, err
}

// CreatePod is Create for a pod's group: one that somebody else (the kubelet) made is left as it is, limits included; one
// that was missing is made, marked for Prune, and limited by r. made tells which.
func (m *Manager) CreatePod(ctx context.Context, path string, r *Resources) (g *Group, made bool, err error) {
	return m.create(ctx, path, r, true)
}

func (m *Manager) create(ctx context.Context, path string, r *Resources, pod bool) (*Group, bool, error) {
	if err := checkPath(path); err != nil {
		return nil, false, err
	}
	if r == nil {
		r = &Resources{}
	}
	if err := r.check(m.version); err != nil {
		return nil, false, err
	}
	g := &Group{m: m, path: path}
	if m.driver == Systemd {
		return m.createUnit(ctx, g, r, pod)
	}
	if pod && m.foreign(path) {
		// A hierarchy that the maker of the group doesn't know of still needs the directory.
		_, err := m.mkdirs(path, true, r)
		return g, false, err
	}
	made, err := m.mkdirs(path, pod, r)
	if err == nil {
		err = limits{g, r}.apply()
	}
	if err != nil {
		for _, h := range made {
			err = errors.Join(err, gone(h.rmdir(path)))
		}
		return nil, false, fmt.Errorf("create cgroup %s: %w", path, err)
	}
	return g, true, nil
}

// foreign tells whether the group exists and bears no mark of ours.
func (m *Manager) foreign(path string) bool {
	exists := false
	for _, h := range m.all {
		if h.exists(path) {
			if h.marked(path) {
				return false
			}
			exists = true
		}
	}
	return exists
}

// mkdirs makes the group in every hierarchy and readies it for processes; it returns the hierarchies in which it was new.
func (m *Manager) mkdirs(path string, mark bool, r *Resources) ([]*hierarchy, error) {
	var made []*hierarchy
	for _, h := range m.all {
		isNew, err := h.mkdirAll(path, mark)
		if isNew {
			made = append(made, h)
		}
		if err == nil && m.version == 2 {
			err = m.delegate(h, path)
		}
		if err == nil && h == m.by["cpuset"] && m.version == 1 {
			err = h.initCpuset(path, isNew, r.CPUs, r.Mems)
		}
		if err != nil {
			return made, err
		}
	}
	return made, nil
}

// mkdirAll makes path and the groups above it; those above are marked as ours, path itself if mark is set. A group above may
// be pruned by another pod's end between two steps, hence the tries.
func (h *hierarchy) mkdirAll(p string, mark bool) (isNew bool, err error) {
	for range 16 {
		err = h.mkdir(p)
		switch {
		case err == nil:
			if mark {
				h.mark(p)
			}
			return true, nil
		case errors.Is(err, fs.ErrExist):
			return false, nil
		case !errors.Is(err, fs.ErrNotExist) || path.Dir(p) == "/":
			return false, err
		}
		if _, err := h.mkdirAll(path.Dir(p), true); err != nil {
			return false, err
		}
	}
	return false, err
}

// initCpuset gives a version 1 cpuset its CPUs and memory nodes, which are empty in a new group and keep processes out: those
// asked for, else the parent's, which may need the same first (the kubelet's groups never do).
func (h *hierarchy) initCpuset(p string, isNew bool, cpus, mems string) error {
	if p == "/" {
		return nil
	}
	for i, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		if !isNew {
			has, err := h.read(p, file)
			if err != nil {
				return err
			}
			if len(has) > 1 {
				continue
			}
		}
		b, err := h.read(path.Dir(p), file)
		if err != nil {
			return err
		}
		if len(b) <= 1 { // "\n": not initialised either, and nothing is a subset of that
			if err := h.initCpuset(path.Dir(p), false, "", ""); err != nil {
				return err
			}
			if b, err = h.read(path.Dir(p), file); err != nil {
				return err
			}
		}
		want := []string{cpus, mems}[i]
		if want == "" {
			want = string(b)
		}
		if err := h.write(p, file, want); err != nil {
			return refused("cpuset_"+file[len("cpuset."):], err)
		}
	}
	return nil
}

// Files opens what a process needs to enter the group; the caller closes them. dir is the directory in the version 2 hierarchy, a
// hybrid host's too, for CLONE_INTO_CGROUP; nil where there is none. joins are files of the version 1 hierarchies: a process with one
// thread that writes "0" to each has joined.
//
// Neither way takes the kernel's lock on all thread groups (cgroup_threadgroup_rwsem). Writing to cgroup.procs does, and then
// waits for an RCU grace period, ten milliseconds, unless somebody else just has: hence version 1's "tasks".
func (g *Group) Files() (joins []*os.File, dir *os.File, err error) {
	undo := func(err error) ([]*os.File, *os.File, error) {
		if dir != nil {
			err = errors.Join(err, dir.Close())
		}
		for _, f := range joins {
			err = errors.Join(err, f.Close())
		}
		return nil, nil, notFound(g.path, err)
	}
	for _, h := range g.m.all {
		if h.v2 {
			if dir, err = h.open(g.path, "", unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
				return undo(err)
			}
			continue
		}
		f, err := h.open(g.path, "tasks", unix.O_WRONLY)
		if err != nil {
			return undo(err)
		}
		joins = append(joins, f)
	}
	return joins, dir, nil
}

// Joins tells what Files gives for a container's group: how many descriptors to join by, and whether there is a directory. With the
// systemd driver nothing is joined: the process is placed.
func (m *Manager) Joins() (joins int, dir bool) {
	if m.driver == Systemd {
		return 0, false
	}
	for _, h := range m.all {
		if h.v2 {
			dir = true
		} else {
			joins++
		}
	}
	return joins, dir
}

// Held tells whether the first process must be made before the group and be given to Place before it runs (proto.Spawn.Hold):
// a systemd scope can't be empty. Files of such a group can be had after Place.
func (g *Group) Held() bool { return g.pending != nil }

// Place moves a process into the group; with the systemd driver it makes the scope with this process in it. The caller
// guarantees that pid names its child.
func (g *Group) Place(ctx context.Context, pid int) error {
	if g.Held() {
		return g.startScope(ctx, pid)
	}
	for _, h := range g.m.all {
		if err := h.write(g.path, "cgroup.procs", strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("place process %d: %w", pid, notFound(g.path, err))
		}
	}
	return nil
}

// Update changes the limits that r names and leaves the others.
func (g *Group) Update(ctx context.Context, r *Resources) error {
	if err := r.check(g.m.version); err != nil {
		return err
	}
	l := limits{g, r}
	err := l.makeRoom()
	if err == nil && g.m.driver == Systemd && g.m.units != nil {
		err = g.m.units.SetLimits(ctx, path.Base(g.path), r)
	}
	if err == nil {
		err = l.apply()
	}
	if err != nil {
		return fmt.Errorf("update cgroup %s: %w", g.path, err)
	}
	return nil
}

// gone makes success of "it isn't there".
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// notFound gives "it isn't there" its kind.
func notFound(path string, err error) error {
	if err != nil && gone(err) == nil {
		return errs.Newf(errs.NotFound, "find cgroup %s: %w", path, err)
	}
	return err
}
