// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"context"
	"net/netip"
	"slices"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"

	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/internal/errs"
)

// portPatience is how long a new interface may take to come up.
const portPatience = 3 * time.Second

// proofPatience is how long the proof that nobody else has an address may take: a second as a rule.
const proofPatience = 10 * time.Second

// awaitProof waits until the interface's IPv6 addresses are known to be nobody else's (RFC 4862, 5.4); for who asks for that.
func awaitProof(ctx context.Context, on *rtnl.Conn, l rtnl.Link) error {
	ctx, cancel := context.WithTimeout(ctx, proofPatience)
	defer cancel()
	return await(ctx, "duplicate address detection on "+l.Name, func() (bool, error) {
		tentative, duplicate, err := on.Unproven(l.Index)
		if err == nil && len(duplicate) > 0 {
			err = errs.Newf(errs.Precondition, "address %s of interface %s is somebody else's too", duplicate[0], l.Name)
		}
		return len(tentative) == 0, err
	})
}

// awaitReady waits until packets get to the pod and from it. The kernel leaves the last steps to workers: both ends of the pair notice
// their carrier, then the bridge forwards and IPv6 is set up; an IPv6 address joins the group in which neighbours look for it. As a rule
// all is done before we ask, but under load a pod's first packets would be lost, a DNS query perhaps.
func (h *Host) awaitReady(ctx context.Context, conf *bridgeConf, port string, pod *rtnl.Conn, eth rtnl.Link, res *current.Result) error {
	if conf.DisableContainerInterface {
		return nil
	}
	if err := h.awaitTraffic(ctx, port, pod, eth, res); err != nil || !conf.EnableDAD {
		return err
	}
	return awaitProof(ctx, pod, eth)
}

func (h *Host) awaitTraffic(ctx context.Context, port string, pod *rtnl.Conn, eth rtnl.Link, res *current.Result) error {
	ctx, cancel := context.WithTimeout(ctx, portPatience)
	defer cancel()
	if err := awaitRunning(ctx, pod, eth.Name); err != nil {
		return err
	}
	var addrs []netip.Addr
	for _, ip := range res.IPs {
		addrs = append(addrs, prefixOf(ip.Address).Addr())
	}
	if err := awaitGroups(ctx, pod, eth, addrs); err != nil {
		return err
	}
	return awaitRunning(ctx, h.rt, port)
}

func awaitRunning(ctx context.Context, on *rtnl.Conn, name string) error {
	return await(ctx, "interface "+name+" to come up", func() (bool, error) {
		l, err := on.Link(name)
		return l.Runs, err
	})
}

// awaitGroups waits until the solicited-node groups (RFC 4291, 2.7.1) of IPv6 addresses are joined.
func awaitGroups(ctx context.Context, on *rtnl.Conn, l rtnl.Link, addrs []netip.Addr) error {
	var want []netip.Addr
	for _, a := range addrs {
		if a.Is6() {
			g := netip.MustParseAddr("ff02::1:ff00:0").As16()
			own := a.As16()
			copy(g[13:], own[13:])
			want = append(want, netip.AddrFrom16(g))
		}
	}
	if len(want) == 0 {
		return nil
	}
	return await(ctx, "neighbour discovery on "+l.Name, func() (bool, error) {
		have, err := on.Groups(l.Index)
		return !slices.ContainsFunc(want, func(g netip.Addr) bool { return !slices.Contains(have, g) }), err
	})
}

func await(ctx context.Context, what string, done func() (bool, error)) error {
	for wait := 50 * time.Microsecond; ; wait *= 2 {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		select {
		case <-time.After(min(wait, 20*time.Millisecond)):
		case <-ctx.Done():
			return errs.Newf(errs.Unavailable, "wait for %s: %w", what, context.Cause(ctx))
		}
	}
}
