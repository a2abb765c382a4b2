// SPDX-License-Identifier: Apache-2.0

package testnode

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
)

// NodeIP is the address of the node: one end of a veth whose other end lies unused in the same namespace, with the
// default route through it. Packets for anywhere else end there.
const NodeIP = "192.0.2.1"

// loopback brings up the network of a node that has no way out.
func loopback() error {
	// Addresses are valid at once: duplicates can't be, and a node that still changes can't be compared.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("switch off duplicate address detection: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	node := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "node0"}, PeerName: "nowhere0"}
	if err := netlink.LinkAdd(node); err != nil {
		return fmt.Errorf("add link node0: %w", err)
	}
	for _, name := range []string{"node0", "nowhere0"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find link %s: %w", name, err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return fmt.Errorf("bring up link %s: %w", name, err)
		}
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(NodeIP), Mask: net.CIDRMask(24, 32)}}
	if err := netlink.AddrAdd(node, address); err != nil {
		return fmt.Errorf("add address %s: %w", NodeIP, err)
	}
	route := &netlink.Route{LinkIndex: node.Attrs().Index, Gw: net.IPv4(192, 0, 2, 254)}
	if err := netlink.RouteAdd(route); err != nil {
		return fmt.Errorf("add default route: %w", err)
	}
	return nil
}

// removeBridges removes what the built-in network keeps for the next pod.
func removeBridges() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		if l.Type() == "bridge" {
			errs = append(errs, netlink.LinkDel(l))
		}
	}
	return errors.Join(errs...)
}
