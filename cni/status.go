// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"

	"crishim.dev/cni/builtin"
	"crishim.dev/internal/errs"
)

// statusAge is how old the last answer of external plugins to STATUS may be. kubelet asks every five seconds.
const statusAge = 4 * time.Second

// Status is nil when pods can be attached, else the reason why not. It never waits for a plugin: external ones are asked in the background
// and their last answer counts.
func (n *Network) Status() error {
	c := n.current()
	if c.err != nil {
		return c.err
	}
	external, err := n.servable(c)
	if err != nil {
		return err
	}
	speaks, err := version.GreaterThanOrEqualTo(c.list.CNIVersion, "1.1.0")
	if err != nil || !speaks || !external {
		return nil
	}
	return n.externalStatus(c)
}

// servable says whether there is somebody to run each plugin of the chain, and whether one of them is external.
func (n *Network) servable(c *loaded) (external bool, err error) {
	lasts := false
	for _, p := range c.list.Plugins {
		by, err := n.runBy(p)
		if err != nil {
			return false, errs.Newf(errs.Unavailable, "cni: network %s (%s): %w", c.list.Name, c.source, err)
		}
		external = external || by != runByUs
		lasts = lasts || by != runByUs || builtin.Outlives(p.Network.Type, p.Bytes)
		if by != runByUs || c.ready.Load() { // of a network that is in use the overlapping routes are its own
			continue
		}
		if err := n.host.Overlap(p.Network.Type, p.Bytes); err != nil {
			return false, errs.Newf(errs.Unavailable, "cni: network %s (%s): %w", c.list.Name, c.source, err)
		}
		if err := n.host.Prepare(p.Network.Type, p.Bytes); err != nil {
			return false, errs.Newf(errs.Unavailable, "cni: network %s (%s): %w", c.list.Name, c.source, err)
		}
	}
	c.ours.Store(!external)
	c.lasts.Store(lasts)
	c.ready.Store(true)
	return external, nil
}

// externalStatus gives the last answer and sees that there is a fresh one next time.
func (n *Network) externalStatus(c *loaded) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &n.state
	if s.of != c {
		s.of, s.err, s.at = c, nil, time.Time{}
	}
	if !s.going && time.Since(s.at) > statusAge {
		s.going = true
		// Ends by itself after at most Timeout for each plugin; Close need not wait for an answer that nobody reads.
		go n.askStatus(c)
	}
	return s.err
}

func (n *Network) askStatus(c *loaded) {
	lib := libcni.NewCNIConfigWithCacheDir(n.opts.BinDirs, n.opts.CacheDir, &executor{n: n})
	err := lib.GetStatusNetworkList(context.Background(), c.list)
	if err != nil {
		err = errs.Newf(errs.Unavailable, "cni: network %s (%s): %w", c.list.Name, c.source, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.state.going = false
	if n.state.of == c {
		n.state.err, n.state.at = err, time.Now()
	}
}

const runByUs = "built in"

// runBy says who serves the plugin: "built in", or the path of its binary.
func (n *Network) runBy(p *libcni.PluginConfig) (string, error) {
	err := builtin.Understands(p.Network.Type, p.Bytes)
	if err == nil || !errors.Is(err, builtin.ErrNotUnderstood) && builtin.Is(p.Network.Type) {
		return runByUs, err
	}
	path, e := findBinary(p.Network.Type, n.opts.BinDirs)
	if e == nil && isSelf(path) { // made by Install: it understands little more than we do
		if e = builtin.UnderstandsInside(p.Network.Type, p.Bytes); e != nil {
			return "", fmt.Errorf("plugin %s: %w, and %s is the same program", p.Network.Type, err, path)
		}
	}
	if e == nil {
		return path, nil
	}
	if builtin.Is(p.Network.Type) {
		return "", fmt.Errorf("plugin %s: %w, and %w", p.Network.Type, err, e)
	}
	return "", e
}

// uplinkMTU is the MTU of the interface with the default route, 0 if there is none.
func uplinkMTU() int {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return 0
	}
	for _, r := range routes {
		ones := 0
		if r.Dst != nil {
			ones, _ = r.Dst.Mask.Size()
		}
		if ones > 0 || r.LinkIndex == 0 {
			continue
		}
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			return l.Attrs().MTU
		}
	}
	return 0
}

// Findings tells what others on this host do to pod traffic, and what to do about it: one text for each chain that drops what the pods
// of a built-in network send. None is good.
func (n *Network) Findings() ([]string, error) {
	c := n.current()
	if c.err != nil {
		return nil, c.err
	}
	drops, err := n.host.Ports().ForeignDrops()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, p := range c.list.Plugins {
		for _, s := range n.host.Subnets(p.Network.Type, p.Bytes) {
			for _, d := range drops {
				if remedy := d.Remedy(s); len(remedy) > 0 {
					kind := "nftables"
					if d.Legacy {
						kind = "iptables-legacy's"
					}
					out = append(out, fmt.Sprintf("chain %s of %s table %s %s drops what no rule of it accepts, pod traffic (%s) too; let it through: %s",
						d.Chain, kind, d.Family, d.Table, s, strings.Join(remedy, " ; ")))
				}
			}
		}
	}
	return out, nil
}
