// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// GC detaches every pod that is not live, then has the plugins of the current configuration clear up what they hold for others (CNI 1.1),
// and releases leases and ports of the built-in ones. live must be complete: it is called when the daemon starts, before new pods are.
//
// It never waits for a binary: those run in the background, and pods are attached only when they have cleared up.
func (n *Network) GC(ctx context.Context, live []string) error {
	keep := map[string]bool{}
	for _, id := range live {
		keep[id] = true
	}
	all, err := n.records.list()
	if err != nil {
		return err
	}
	var failed []error
	var valid []types.GCAttachment
	for id, lasts := range all {
		switch {
		case keep[id]:
		case lasts: // a binary has a part in it
			n.retry.later(id, 0)
			keep[id] = true
		default:
			if err := n.Detach(ctx, Pod{ID: id}); err == nil {
				continue
			}
			failed = append(failed, err)
			keep[id] = true // what its record still needs is not released below
		}
		valid = append(valid, types.GCAttachment{ContainerID: id, IfName: ifName})
	}
	if err := n.Wait(ctx); err != nil {
		return errors.Join(append(failed, err)...)
	}
	failed = append(failed, n.clearPlugins(ctx, valid), n.host.Sweep(func(container string) bool { return keep[container] }))
	return errors.Join(failed...)
}

// clearPlugins runs GC through the chain of the current configuration, where a binary is part of it in the background.
func (n *Network) clearPlugins(ctx context.Context, valid []types.GCAttachment) error {
	c := n.current()
	if c.err != nil {
		n.opts.Log.Debug("no plugins to clear up", "reason", c.err)
		return nil
	}
	external, err := n.servable(c)
	if err != nil {
		n.opts.Log.Warn("plugins can't clear up", "error", err)
		return nil
	}
	clear := func(ctx context.Context) error {
		lib := libcni.NewCNIConfigWithCacheDir(n.opts.BinDirs, n.opts.CacheDir, &executor{n: n})
		if err := lib.GCNetworkList(ctx, c.list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
			return fmt.Errorf("clear up network %s: %w", c.list.Name, err)
		}
		return nil
	}
	if !external {
		return clear(ctx)
	}
	done := make(chan struct{})
	n.mu.Lock()
	n.clearing = done
	n.mu.Unlock()
	n.workers.Go(func() {
		defer close(done)
		if err := clear(n.retry.ctx); err != nil {
			n.opts.Log.Warn("plugins did not clear up", "error", err)
		}
	})
	return nil
}

// cleared waits until no plugin clears up any more: it would take a new pod for a dead one.
func (n *Network) cleared(ctx context.Context) error {
	n.mu.Lock()
	clearing := n.clearing
	n.mu.Unlock()
	if clearing == nil {
		return nil
	}
	select {
	case <-clearing:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for plugins to clear up: %w", context.Cause(ctx))
	}
}
