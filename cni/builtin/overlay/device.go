// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// protocol marks our routes among those of the device.
const protocol = 115

// ensureDevice gives the tunnel device, made again if it is not as described. It is not bound to the interface below: that one may go and
// come back.
func ensureDevice(spec Spec, self Self) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = spec.Device, self.MTU, deviceMAC(spec.VNI, self.Node)
	want := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: spec.VNI, Port: spec.Port, SrcAddr: self.Node.AsSlice(), Learning: false}
	link, err := netlink.LinkByName(spec.Device)
	if err == nil && !matches(link, want) {
		if link.Type() != "vxlan" {
			return nil, fmt.Errorf("overlay: interface %s exists and is a %s", spec.Device, link.Type())
		}
		if err := netlink.LinkDel(link); err != nil {
			return nil, fmt.Errorf("replace overlay device %s: %w", spec.Device, err)
		}
		err = netlink.LinkNotFoundError{}
	}
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		if err := netlink.LinkAdd(want); err != nil {
			return nil, fmt.Errorf("create overlay device %s: %w", spec.Device, err)
		}
		link, err = netlink.LinkByName(spec.Device)
	}
	if err != nil {
		return nil, fmt.Errorf("find overlay device %s: %w", spec.Device, err)
	}
	for _, s := range []string{"accept_ra", "accept_dad"} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+spec.Device+"/"+s, []byte("0"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("set up overlay device %s: %w", spec.Device, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring up overlay device %s: %w", spec.Device, err)
	}
	return link, setAddrs(link, self.Subnets)
}

func matches(link netlink.Link, want *netlink.Vxlan) bool {
	have, ok := link.(*netlink.Vxlan)
	return ok && have.VxlanId == want.VxlanId && have.Port == want.Port && have.SrcAddr.Equal(want.SrcAddr) && !have.Learning &&
		have.MTU == want.MTU && have.HardwareAddr.String() == want.HardwareAddr.String()
}

// setAddrs gives the device the first address of each of the node's subnets: what the node sends to other nodes' pods comes from there.
func setAddrs(link netlink.Link, subnets []netip.Prefix) error {
	have, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
	}
	want := map[netip.Prefix]bool{}
	for _, n := range subnets {
		want[netip.PrefixFrom(n.Addr(), n.Addr().BitLen())] = true
	}
	for _, a := range have {
		p := prefix(a.IPNet)
		if !want[p] && !p.Addr().IsLinkLocalUnicast() {
			if err := netlink.AddrDel(link, &a); err != nil {
				return fmt.Errorf("delete address %s of %s: %w", p, link.Attrs().Name, err)
			}
		}
		delete(want, p)
	}
	for p := range want {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", p, link.Attrs().Name, err)
		}
	}
	return nil
}

// setPeers makes routes, neighbours and forwarding entries those of the peers: first what is needed, then away with the rest.
func setPeers(link netlink.Link, vni int, peers []Peer) error {
	index := link.Attrs().Index
	routes, neighbours, forwards := map[netip.Prefix]bool{}, map[netip.Addr]bool{}, map[string]bool{}
	for _, p := range peers {
		mac := deviceMAC(vni, p.Node)
		forwards[mac.String()+" "+p.Node.String()] = true
		fdb := &netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: unix.NUD_PERMANENT, Flags: unix.NTF_SELF, IP: p.Node.AsSlice(), HardwareAddr: mac}
		if err := netlink.NeighSet(fdb); err != nil {
			return fmt.Errorf("forward to overlay peer %s: %w", p.Node, err)
		}
		for _, n := range p.Subnets {
			routes[n], neighbours[n.Addr()] = true, true
			arp := &netlink.Neigh{LinkIndex: index, State: unix.NUD_PERMANENT, Type: unix.RTN_UNICAST, IP: n.Addr().AsSlice(), HardwareAddr: mac}
			if err := netlink.NeighSet(arp); err != nil {
				return fmt.Errorf("add overlay peer %s: %w", p.Node, err)
			}
			route := &netlink.Route{LinkIndex: index, Dst: ipNet(n), Gw: n.Addr().AsSlice(), Protocol: protocol, Flags: int(netlink.FLAG_ONLINK)}
			if err := netlink.RouteReplace(route); err != nil {
				return fmt.Errorf("add route to %s of overlay peer %s: %w", n, p.Node, err)
			}
		}
	}
	return errors.Join(dropRoutes(link, routes), dropNeighbours(link, neighbours), dropForwards(link, forwards))
}

func dropRoutes(link netlink.Link, keep map[netip.Prefix]bool) error {
	have, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: link.Attrs().Index, Protocol: protocol},
		netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", link.Attrs().Name, err)
	}
	for _, r := range have {
		if r.Dst != nil && !keep[prefix(r.Dst)] {
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("delete route to %s: %w", r.Dst, err)
			}
		}
	}
	return nil
}

func dropNeighbours(link netlink.Link, keep map[netip.Addr]bool) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		have, err := netlink.NeighList(link.Attrs().Index, family)
		if err != nil {
			return fmt.Errorf("list neighbours of %s: %w", link.Attrs().Name, err)
		}
		for _, n := range have {
			ip, _ := netip.AddrFromSlice(n.IP)
			if n.State == unix.NUD_PERMANENT && !keep[ip.Unmap()] {
				if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
					return fmt.Errorf("delete neighbour %s: %w", ip, err)
				}
			}
		}
	}
	return nil
}

func dropForwards(link netlink.Link, keep map[string]bool) error {
	have, err := netlink.NeighList(link.Attrs().Index, unix.AF_BRIDGE)
	if err != nil {
		return fmt.Errorf("list forwarding entries of %s: %w", link.Attrs().Name, err)
	}
	for _, n := range have {
		ip, ok := netip.AddrFromSlice(n.IP)
		if ok && !keep[n.HardwareAddr.String()+" "+ip.Unmap().String()] {
			n.Family, n.Flags = unix.AF_BRIDGE, unix.NTF_SELF
			if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("delete forwarding entry to %s: %w", ip, err)
			}
		}
	}
	return nil
}

func prefix(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
