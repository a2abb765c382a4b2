// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"
)

// removeFor bounds how long Remove waits for processes that are on their way out.
const removeFor = 2 * time.Second

// Remove removes the group and those below it (a privileged container may have made some) from every hierarchy. It kills
// nothing: a group with a live process is an error, after some tries. What is gone is fine.
func (g *Group) Remove(ctx context.Context) error {
	if err := g.stopUnit(ctx); err != nil {
		return err
	}
	for _, h := range g.m.all {
		if err := h.remove(ctx, g.path); err != nil {
			left, _ := g.PIDs()
			return fmt.Errorf("remove cgroup: %w (processes: %v)", err, left)
		}
	}
	return nil
}

// stopUnit has systemd forget the group; whoever asks has ended its processes.
func (g *Group) stopUnit(ctx context.Context) error {
	if g.m.driver != Systemd || g.m.units == nil {
		return nil
	}
	if err := g.m.units.Stop(ctx, path.Base(g.path)); err != nil {
		return fmt.Errorf("stop unit %s: %w", path.Base(g.path), err)
	}
	return nil
}

// Prune removes the group if CreatePod made it, in each hierarchy, then the groups above it that were made on its way and
// are empty now. Groups that others made stay. A group is ours in all hierarchies when one bears the mark: whoever was killed
// between making a directory and marking it had marked another before.
func (g *Group) Prune(ctx context.Context) error {
	if !g.m.ours(g.path) {
		return nil
	}
	err := g.stopUnit(ctx)
	for _, h := range g.m.all {
		if e := h.remove(ctx, g.path); e != nil {
			err = errors.Join(err, fmt.Errorf("remove pod cgroup: %w", e))
		}
	}
	for p := path.Dir(g.path); p != "/" && g.m.ours(p); p = path.Dir(p) {
		left := false
		for _, h := range g.m.all {
			left = gone(h.rmdir(p)) != nil || left
		}
		if left {
			break
		}
	}
	return err
}

// Claim marks a group whose name only its caller can have given, and which CreatePod may have been killed in before it could.
func (g *Group) Claim() {
	for _, h := range g.m.all {
		if h.exists(g.path) {
			h.mark(g.path)
		}
	}
}

// ours tells whether a group bears our mark in some hierarchy.
func (m *Manager) ours(path string) bool {
	for _, h := range m.all {
		if h.marked(path) {
			return true
		}
	}
	return false
}

// remove tries the common case first: one group, empty.
func (h *hierarchy) remove(ctx context.Context, p string) error {
	err := gone(h.rmdir(p))
	deadline := time.Now().Add(removeFor)
	for wait := 50 * time.Microsecond; busy(err) && time.Now().Before(deadline); wait = min(2*wait, step) {
		if err = h.rmtree(p); busy(err) {
			if e := sleep(ctx, wait); e != nil {
				return errors.Join(err, e)
			}
		}
	}
	return err
}

// rmtree removes a group and those below it, once.
func (h *hierarchy) rmtree(p string) error {
	var below []string
	if err := h.walk(p, func(c string) error { below = append(below, c); return nil }); err != nil {
		return err
	}
	for _, c := range slices.Backward(below) {
		if err := gone(h.rmdir(c)); err != nil {
			return err
		}
	}
	return nil
}
