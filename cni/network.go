// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"crishim.dev/cni/builtin"
	"crishim.dev/internal/errs"
	"crishim.dev/internal/keylock"
)

// Options say where things are. All directories are made when missing, except ConfDir and BinDirs.
type Options struct {
	// ConfDir holds configurations; the first in lexical order counts.
	ConfDir string
	// BinDirs hold plugins that are not built in; the first that has one wins.
	BinDirs []string
	// CacheDir holds a directory for each attachment, on tmpfs. LastingDir, on a disk, holds instead those of which something outlives a
	// reboot: the attachments in which a binary has a part.
	CacheDir, LastingDir string
	// StateDir holds leases and port claims, on tmpfs: they end with a reboot.
	StateDir string
	// Builtin switches on a network of our own for as long as ConfDir has none.
	Builtin bool
	// MTU of the built-in network; 0 takes that of the interface with the default route.
	MTU int
	// Timeout bounds each external plugin; 0 is a minute.
	Timeout time.Duration
	Log     *slog.Logger
}

// defaultTimeout is shorter than kubelet's for RunPodSandbox (four minutes), so that the error can name the plugin.
const defaultTimeout = time.Minute

// Network attaches pods. Safe for concurrent use; operations on one pod wait for each other. Lock order: pods > mu > what package
// builtin has.
type Network struct {
	opts    Options
	host    *builtin.Host
	pods    keylock.Locks
	reap    *reaper
	retry   *retrier
	records records
	workers sync.WaitGroup // of clearing
	run     *runner
	// binaries runs the binary of every type: what tests compare the built-in plugins with.
	binaries bool

	mu       sync.Mutex // guards what is below
	conf     *loaded
	seen     []stamp
	racy     bool
	clearing chan struct{} // closed when the plugins have cleared up
	cidrs    []netip.Prefix
	state    struct { // of external plugins, as of the last look
		err   error
		at    time.Time
		going bool
		of    *loaded
	}
}

// New opens the network in this process's network namespace. Nothing is set up before the first Attach.
func New(o Options) (*Network, error) {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	n := &Network{opts: o, records: records{o.CacheDir, o.LastingDir}, cidrs: defaultCIDRs(), run: &runner{dirs: o.BinDirs, timeout: o.Timeout, env: []string{byDaemon + "=" + o.toPlugins()}, log: o.Log}}
	if err := n.records.open(); err != nil {
		return nil, err
	}
	if n.opts.MTU == 0 {
		n.opts.MTU = uplinkMTU()
	}
	host, err := builtin.Open(builtin.Options{StateDir: o.StateDir, Live: n.live, Log: o.Log})
	if err != nil {
		return nil, fmt.Errorf("open network: %w", err)
	}
	n.host = host
	n.reap = &reaper{deleteLinks: host.DeleteLinks, log: o.Log}
	n.retry = newRetrier(func(ctx context.Context, id string) error { return n.Detach(ctx, Pod{ID: id}) }, o.Log)
	return n, nil
}

// Close gives up the DELs that wait for another attempt, waits for what Detach has left to the background and ends the connections. Pods stay attached.
func (n *Network) Close() error {
	n.retry.close()
	n.workers.Wait()
	n.reap.close()
	return n.host.Close()
}

// Wait returns when nothing is left to the background: interfaces of detached pods are gone and their addresses are free.
func (n *Network) Wait(ctx context.Context) error { return n.reap.wait(ctx) }

// live says that somebody may still want what a container has: we, or another runtime that uses our plugins.
func (n *Network) live(id string) bool { return n.records.has(id) || n.host.HasLease(id) }

// SetPodCIDRs changes the range of the built-in network for pods to come, and what plugins with the capability ipRanges get. None
// restores the default.
func (n *Network) SetPodCIDRs(cidrs []netip.Prefix) error {
	for _, c := range cidrs {
		if !c.IsValid() || c.Masked() != c || c.Bits() > c.Addr().BitLen()-2 {
			return errs.Newf(errs.Invalid, "pod CIDR %s is no network with room for pods", c)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(cidrs) == 0 {
		cidrs = defaultCIDRs()
	}
	if !slices.Equal(n.cidrs, cidrs) {
		n.cidrs, n.conf = slices.Clone(cidrs), nil
	}
	return nil
}

func (n *Network) podCIDRs() []netip.Prefix {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cidrs
}

// Info describes the configuration in use.
type Info struct {
	// Name of the network, Source the file it comes from or "built in", CNIVersion the version its plugins are spoken to.
	Name, Source, CNIVersion string
	// Plugins are the chained plugins' types, each with how it is run: "built in" or a path.
	Plugins []PluginInfo
	// PodCIDRs are the built-in network's ranges.
	PodCIDRs []netip.Prefix
}

// PluginInfo is one plugin of a chain.
type PluginInfo struct{ Type, RunBy string }

// Info tells what Status is about; the zero Name means that there is no configuration.
func (n *Network) Info() Info {
	c := n.current()
	info := Info{Source: c.source, PodCIDRs: n.podCIDRs()}
	if c.list == nil {
		return info
	}
	info.Name, info.CNIVersion = c.list.Name, c.list.CNIVersion
	for _, p := range c.list.Plugins {
		by, err := n.runBy(p)
		if err != nil {
			by = err.Error()
		}
		info.Plugins = append(info.Plugins, PluginInfo{p.Network.Type, by})
	}
	return info
}
