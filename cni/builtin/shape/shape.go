// SPDX-License-Identifier: Apache-2.0

// Package shape limits the bandwidth of interfaces by the kernel's traffic control. What an interface receives can't be queued; it is
// redirected to a device that exists only for that, and limited there.
package shape

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// tbfLatency is how long a packet may wait in a queue, in µs.
const tbfLatency = 25000

// tbf is a token bucket. The kernel wants the burst as the time it takes, in ticks.
func tbf(index int, rate, burst uint64) *netlink.Tbf {
	rate, burst = rate/8, burst/8
	ticks := uint32(float64(uint32(float64(burst)*float64(netlink.TIME_UNITS_PER_SEC)/float64(rate))) * netlink.TickInUsec())
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Buffer: ticks, Limit: uint32(float64(rate)*tbfLatency/float64(netlink.TIME_UNITS_PER_SEC)) + uint32(burst),
	}
}

// Limit gives an interface a token bucket: rate in bits per second, burst in bits.
func Limit(link netlink.Link, rate, burst uint64) error {
	if err := netlink.QdiscAdd(tbf(link.Attrs().Index, rate, burst)); err != nil {
		return fmt.Errorf("limit bandwidth of %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// Redirect sends what arrives at one interface through another.
func Redirect(from, to netlink.Link) error {
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: from.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	if err := netlink.QdiscAdd(ingress); err != nil {
		return fmt.Errorf("limit bandwidth of %s: %w", from.Attrs().Name, err)
	}
	filter := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from.Attrs().Index, Parent: ingress.Handle, Priority: 1, Protocol: unix.ETH_P_ALL},
		ClassId:     netlink.MakeHandle(1, 1), RedirIndex: to.Attrs().Index,
		Actions: []netlink.Action{&netlink.MirredAction{MirredAction: netlink.TCA_EGRESS_REDIR, Ifindex: to.Attrs().Index}},
	}
	if err := netlink.FilterAdd(filter); err != nil {
		return fmt.Errorf("limit bandwidth of %s: %w", from.Attrs().Name, err)
	}
	return nil
}

// Check says whether an interface has the token bucket that Limit makes.
func Check(link netlink.Link, rate, burst uint64) error {
	qdiscs, err := netlink.QdiscList(link)
	if err != nil {
		return fmt.Errorf("read bandwidth limit of %s: %w", link.Attrs().Name, err)
	}
	want := tbf(link.Attrs().Index, rate, burst)
	for _, q := range qdiscs {
		if have, ok := q.(*netlink.Tbf); ok {
			if have.Rate != want.Rate || have.Limit != want.Limit || have.Buffer != want.Buffer {
				return errs.Newf(errs.Precondition, "the bandwidth limit of %s is another", link.Attrs().Name)
			}
			return nil
		}
	}
	return errs.Newf(errs.Precondition, "interface %s has no bandwidth limit", link.Attrs().Name)
}
