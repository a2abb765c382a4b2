// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"

	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/internal/errs"
)

// Attach brings lo up and runs ADD through the chain. When it fails nothing is left, unless the undoing failed too: then the error says so,
// and Detach tries again.
func (n *Network) Attach(ctx context.Context, p Pod) (Result, error) {
	if err := p.validate(true); err != nil {
		return Result{}, err
	}
	unlock, err := n.pods.Lock(ctx, p.ID)
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	c := n.current()
	if c.err != nil {
		return Result{}, c.err
	}
	if !c.ready.Load() { // else an ADD could fail half-way for a reason that its DEL shares
		if _, err := n.servable(c); err != nil {
			return Result{}, err
		}
	}
	if err := n.cleared(ctx); err != nil {
		return Result{}, err
	}
	if n.records.has(p.ID) { // left by an attempt of before a crash, or by a Detach whose end is still under way
		if err := n.reap.wait(ctx); err != nil {
			return Result{}, err
		}
		if err := n.detachLocked(ctx, p.ID, true); err != nil {
			return Result{}, err
		}
	}
	done, _ := n.reap.progress()
	res, err := n.attachLocked(ctx, &p, c)
	if now, busy := n.reap.progress(); errors.Is(err, errs.Exhausted) && (busy || now != done) && !n.records.has(p.ID) {
		// Addresses of pods that have just gone are about to become free, or have become so meanwhile.
		if err := n.reap.wait(ctx); err != nil {
			return Result{}, err
		}
		res, err = n.attachLocked(ctx, &p, c)
	}
	if err != nil {
		return Result{}, fmt.Errorf("attach pod %s to network %s: %w", p.ID, c.list.Name, err)
	}
	return res, nil
}

func (n *Network) attachLocked(ctx context.Context, p *Pod, c *loaded) (Result, error) {
	started := time.Now()
	rt := p.runtimeConf(n.podCIDRs())
	if err := n.records.write(p.ID, c.list, rt, c.lasts.Load() || n.binaries); err != nil {
		return Result{}, errors.Join(err, n.records.forget(p.ID))
	}
	undo := func(err error) (Result, error) {
		e := n.detachLocked(context.WithoutCancel(ctx), p.ID, true)
		if e != nil {
			n.retry.later(p.ID, n.retry.first)
		}
		return Result{}, errors.Join(err, prefix("undo", e))
	}
	pod, err := rtnl.Wrap(p.Socket)
	if err == nil {
		err = pod.Do(rtnl.SetUp("lo", true))
	}
	if err != nil {
		return undo(err)
	}
	var raw types.Result
	if c.ours.Load() && !n.binaries {
		raw, err = (&chain{n: n, list: c.list, rt: rt, pod: pod}).add(ctx)
	} else {
		lib := libcni.NewCNIConfigWithCacheDir(n.opts.BinDirs, n.records.dir(p.ID), &executor{n: n, pod: pod})
		raw, err = lib.AddNetworkList(ctx, c.list, rt)
	}
	if err != nil {
		return undo(err)
	}
	res, err := readResult(raw)
	if err != nil {
		return undo(err)
	}
	res.Took = time.Since(started)
	return res, nil
}

// Detach runs DEL through the chain, last plugin first, and forgets the attachment. It works without the namespace, twice, after a crash
// and with the configuration gone. When it returns the pod's host ports are free; its interface, and after that its address, go
// in the background (Wait). An error names the plugin; the attachment is kept, with all that it holds, and tried again in the background
// until it is gone.
func (n *Network) Detach(ctx context.Context, p Pod) error {
	if err := utils.ValidateContainerID(p.ID); err != nil {
		return errs.Newf(errs.Invalid, "pod ID %q: %w", p.ID, err)
	}
	unlock, err := n.pods.Lock(ctx, p.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if err := n.detachLocked(ctx, p.ID, false); err != nil {
		n.retry.later(p.ID, n.retry.first)
		return fmt.Errorf("detach pod %s from its network: %w", p.ID, err)
	}
	return nil
}

// detachLocked: with now, nothing is left to the background.
func (n *Network) detachLocked(ctx context.Context, id string, now bool) error {
	list, rt, err := n.records.read(id)
	if errors.Is(err, errs.Invalid) {
		n.opts.Log.Error("record of a pod's attachment is lost; what plugins hold for it stays", "pod", id, "error", err)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errs.Invalid) {
		return n.records.forget(id)
	}
	if err != nil {
		return err
	}
	// A path that leads nowhere tells plugins less than none: they would fail to open it. The namespace may be gone long since.
	if _, err := os.Stat(rt.NetNS); err != nil {
		rt.NetNS = ""
	}
	var left *job
	if !now {
		left = &job{pod: id}
	}
	lib := libcni.NewCNIConfigWithCacheDir(n.opts.BinDirs, n.records.dir(id), &executor{n: n, later: left})
	err = (&chain{n: n, list: list, rt: rt, later: left}).del(ctx)
	if errors.Is(err, errMixed) {
		if left != nil {
			left.links, left.release = nil, nil
		}
		err = lib.DelNetworkList(ctx, list, rt)
	}
	if err != nil {
		if n.configured(list.Name) {
			return err
		}
		// Whoever took the network away has taken its plugins away too: what they would release is lost with them.
		n.opts.Log.Warn("network is no longer configured; a pod's attachment is given up", "network", list.Name, "pod", id, "error", err)
		n.abandon(ctx, lib, list, rt)
	}
	if left == nil || len(left.release) == 0 {
		return n.records.forget(id)
	}
	// From here on a repeated DEL is harmless and a missing one is not: the record goes last.
	left.release = append(left.release, func() error { return n.records.forget(id) })
	n.reap.enqueue(left)
	return nil
}

// configured says that a file of the configuration directory, or the built-in configuration, still has the network. When in doubt it does.
func (n *Network) configured(network string) bool {
	files, err := candidates(n.opts.ConfDir)
	if err != nil || network == builtinName {
		return true
	}
	for _, f := range files {
		if list, err := loadFile(filepath.Join(n.opts.ConfDir, f.name)); err != nil || list.Name == network {
			return true
		}
	}
	return false
}

// abandon runs DEL of each plugin by itself: where one can't, the others still do.
func (n *Network) abandon(ctx context.Context, lib *libcni.CNIConfig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
	for _, p := range slices.Backward(list.Plugins) {
		one := *list
		one.Plugins = []*libcni.PluginConfig{p}
		if err := lib.DelNetworkList(ctx, &one, rt); err != nil {
			n.opts.Log.Warn("plugin could not detach a pod", "network", list.Name, "plugin", p.Network.Type, "error", err)
		}
	}
}

// Check runs CHECK through the chain: an error says what is no longer as Attach left it. The pod needs its ID, and Socket if the inside
// is to be looked at too.
func (n *Network) Check(ctx context.Context, p Pod) error {
	unlock, err := n.pods.Lock(ctx, p.ID)
	if err != nil {
		return err
	}
	defer unlock()
	list, rt, err := n.records.read(p.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return errs.Newf(errs.NotFound, "pod %s is attached to no network", p.ID)
	}
	if err != nil {
		return err
	}
	var pod *rtnl.Conn
	if p.Socket != nil {
		if pod, err = rtnl.Wrap(p.Socket); err != nil {
			return err
		}
	}
	lib := libcni.NewCNIConfigWithCacheDir(n.opts.BinDirs, n.records.dir(p.ID), &executor{n: n, pod: pod})
	err = lib.CheckNetworkList(ctx, list, rt)
	if err != nil && !errors.Is(err, libcni.ErrorCheckNotSupp) {
		return fmt.Errorf("check the network of pod %s: %w", p.ID, err)
	}
	return nil
}

func prefix(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
