// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"fmt"
	"path"

	"crishim.dev/internal/errs"
)

// Units is what the systemd driver asks of systemd. Calls return when the job is done.
type Units interface {
	// StartSlice makes a slice with limits, or does nothing if it is there.
	StartSlice(ctx context.Context, slice string, r *Resources) error
	// StartScope makes a scope with one process in a slice; systemd delegates the group to us (Delegate=yes).
	StartScope(ctx context.Context, scope, slice string, pid int, r *Resources) error
	// SetLimits tells systemd of new limits, which it would otherwise write over at its next reload.
	SetLimits(ctx context.Context, unit string, r *Resources) error
	// Stop ends a unit; unknown ones are fine.
	Stop(ctx context.Context, unit string) error
}

// createUnit makes a pod's slice; a container's scope waits for Place.
func (m *Manager) createUnit(ctx context.Context, g *Group, r *Resources, pod bool) (*Group, bool, error) {
	if m.units == nil {
		return nil, false, errs.Newf(errs.Unsupported, "create cgroup %s: no connection to systemd", g.path)
	}
	if !pod {
		g.pending = r
		return g, true, nil
	}
	if m.foreign(g.path) {
		return g, false, nil
	}
	if err := m.units.StartSlice(ctx, path.Base(g.path), r); err != nil {
		return nil, false, fmt.Errorf("start slice %s: %w", path.Base(g.path), err)
	}
	// The same limits once more by ourselves: older systemd versions know only some of them.
	if _, err := m.mkdirs(g.path, true, r); err != nil {
		return nil, false, err
	}
	for _, h := range m.all {
		h.mark(g.path)
	}
	return g, true, limits{g, r}.apply()
}

// startScope makes the scope with its first process and then sets what systemd has no property for. systemd makes the group
// in the hierarchies it manages; the others are made and joined here.
func (g *Group) startScope(ctx context.Context, pid int) error {
	scope, slice := path.Base(g.path), path.Base(path.Dir(g.path))
	if err := g.m.units.StartScope(ctx, scope, slice, pid, g.pending); err != nil {
		return fmt.Errorf("start scope %s: %w", scope, err)
	}
	if _, err := g.m.mkdirs(g.path, false, g.pending); err != nil {
		return fmt.Errorf("create cgroup %s: %w", g.path, err)
	}
	if err := (limits{g, g.pending}).apply(); err != nil {
		return fmt.Errorf("create cgroup %s: %w", g.path, err)
	}
	return (&Group{m: g.m, path: g.path}).Place(ctx, pid)
}
