// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// AddAddr puts an address on the interface with that index. IPv6: usable at once unless dad asks for duplicate address detection,
// which keeps it unusable for a second or more.
func AddAddr(index int, addr netip.Prefix, dad bool) Request {
	msg := nl.NewIfAddrmsg(family(addr.Addr()))
	msg.Index = uint32(index)
	msg.Prefixlen = uint8(addr.Bits())
	ip := addr.Addr().AsSlice()
	data := []nl.NetlinkRequestData{msg, nl.NewRtAttr(unix.IFA_LOCAL, ip), nl.NewRtAttr(unix.IFA_ADDRESS, ip)}
	if addr.Addr().Is4() {
		if brd, ok := broadcast(addr); ok {
			data = append(data, nl.NewRtAttr(unix.IFA_BROADCAST, brd.AsSlice()))
		}
	} else if !dad {
		data = append(data, nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(unix.IFA_F_NODAD)))
	}
	return newRequest("add address "+addr.String(), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, data...)
}

// DeleteAddr takes an address off the interface with that index.
func DeleteAddr(index int, addr netip.Prefix) Request {
	msg := nl.NewIfAddrmsg(family(addr.Addr()))
	msg.Index = uint32(index)
	msg.Prefixlen = uint8(addr.Bits())
	return newRequest("delete address "+addr.String(), unix.RTM_DELADDR, 0, msg, nl.NewRtAttr(unix.IFA_LOCAL, addr.Addr().AsSlice()))
}

// Addrs lists the addresses of the interface with that index, both families.
func (c *Conn) Addrs(index int) ([]netip.Prefix, error) {
	list, err := c.dumpAddrs(newAddrDump("list addresses", unix.RTM_GETADDR, unix.AF_UNSPEC, index), unix.RTM_NEWADDR, index)
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.Prefix, len(list))
	for i, a := range list {
		addrs[i] = a.Prefix
	}
	return addrs, nil
}

// Unproven lists the IPv6 addresses of the interface with that index that can't be used: tentative ones until nobody has been found who has
// them too, duplicates for ever.
func (c *Conn) Unproven(index int) (tentative, duplicate []netip.Addr, err error) {
	list, err := c.dumpAddrs(newAddrDump("list addresses", unix.RTM_GETADDR, unix.AF_INET6, index), unix.RTM_NEWADDR, index)
	for _, a := range list {
		switch {
		case a.flags&unix.IFA_F_DADFAILED != 0:
			duplicate = append(duplicate, a.Addr())
		case a.flags&unix.IFA_F_TENTATIVE != 0:
			tentative = append(tentative, a.Addr())
		}
	}
	return tentative, duplicate, err
}

// Groups lists the IPv6 multicast groups that the interface with that index has joined.
func (c *Conn) Groups(index int) ([]netip.Addr, error) {
	list, err := c.dumpAddrs(newAddrDump("list multicast groups", unix.RTM_GETMULTICAST, unix.AF_INET6, index), anyType, index)
	if err != nil {
		return nil, err
	}
	groups := make([]netip.Addr, len(list))
	for i, p := range list {
		groups[i] = p.Addr()
	}
	return groups, nil
}

// newAddrDump asks for one interface only, which is honoured because of NETLINK_GET_STRICT_CHK (Linux 4.20).
func newAddrDump(what string, typ, family, index int) Request {
	msg := nl.NewIfAddrmsg(family)
	msg.Index = uint32(index)
	return newRequest(what, typ, unix.NLM_F_DUMP, msg)
}

// address is one as the kernel has it.
type address struct {
	netip.Prefix
	flags uint32 // IFA_F_… of linux/if_addr.h
}

func (c *Conn) dumpAddrs(r Request, typ uint16, index int) ([]address, error) {
	out, err := c.query(r, typ)
	if err != nil {
		return nil, err
	}
	var addrs []address
	for _, b := range out {
		if len(b) < unix.SizeofIfAddrmsg {
			return nil, fmt.Errorf("parse address: %d bytes", len(b))
		}
		info := nl.DeserializeIfAddrmsg(b)
		attrs, err := nl.ParseRouteAttr(b[unix.SizeofIfAddrmsg:])
		if err != nil {
			return nil, fmt.Errorf("parse address: %w", err)
		}
		var ip netip.Addr
		flags := uint32(info.Flags)
		for _, a := range attrs {
			if a.Attr.Type == unix.IFA_FLAGS && len(a.Value) == 4 {
				flags = binary.NativeEndian.Uint32(a.Value)
			}
			// IFA_ADDRESS is the far end on a point-to-point link; IFA_LOCAL, where present, is ours.
			if a.Attr.Type == unix.IFA_LOCAL || a.Attr.Type == unix.IFA_MULTICAST || a.Attr.Type == unix.IFA_ADDRESS && !ip.IsValid() {
				ip, _ = netip.AddrFromSlice(a.Value)
			}
		}
		if ip.IsValid() && int(info.Index) == index {
			addrs = append(addrs, address{netip.PrefixFrom(ip, int(info.Prefixlen)), flags})
		}
	}
	return addrs, nil
}

// Route is a unicast route. The zero Gateway means on-link; the zero Table is the main one.
type Route struct {
	Dst      netip.Prefix
	Gateway  netip.Addr
	Index    int // of the interface
	Table    int
	Priority int
	Scope    *int
	MTU      int
	AdvMSS   int
}

// AddRoute adds a route.
func AddRoute(r Route) Request {
	msg := nl.NewRtMsg()
	msg.Family = uint8(family(r.Dst.Addr()))
	msg.Dst_len = uint8(r.Dst.Bits())
	msg.Protocol = unix.RTPROT_BOOT
	msg.Scope = unix.RT_SCOPE_UNIVERSE
	if !r.Gateway.IsValid() {
		msg.Scope = unix.RT_SCOPE_LINK
	}
	if r.Scope != nil {
		msg.Scope = uint8(*r.Scope)
	}
	table := r.Table
	if table == 0 {
		table = unix.RT_TABLE_MAIN
	}
	msg.Table = unix.RT_TABLE_COMPAT
	if table < 256 {
		msg.Table = uint8(table)
	}
	data := []nl.NetlinkRequestData{msg, attr32(unix.RTA_TABLE, table), attr32(unix.RTA_OIF, r.Index)}
	if r.Dst.Bits() > 0 {
		data = append(data, nl.NewRtAttr(unix.RTA_DST, r.Dst.Masked().Addr().AsSlice()))
	}
	if r.Gateway.IsValid() {
		data = append(data, nl.NewRtAttr(unix.RTA_GATEWAY, r.Gateway.AsSlice()))
	}
	if r.Priority != 0 {
		data = append(data, attr32(unix.RTA_PRIORITY, r.Priority))
	}
	if m := routeMetrics(r); m != nil {
		data = append(data, m)
	}
	return newRequest(fmt.Sprintf("add route to %s", r.Dst), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, data...)
}

func routeMetrics(r Route) nl.NetlinkRequestData {
	if r.MTU == 0 && r.AdvMSS == 0 {
		return nil
	}
	m := nl.NewRtAttr(unix.RTA_METRICS, nil)
	if r.MTU != 0 {
		m.AddRtAttr(unix.RTAX_MTU, nl.Uint32Attr(uint32(r.MTU)))
	}
	if r.AdvMSS != 0 {
		m.AddRtAttr(unix.RTAX_ADVMSS, nl.Uint32Attr(uint32(r.AdvMSS)))
	}
	return m
}

// Routes lists the unicast routes of all tables but the local one.
func (c *Conn) Routes() ([]Route, error) {
	out, err := c.query(newRequest("list routes", unix.RTM_GETROUTE, unix.NLM_F_DUMP, &nl.RtMsg{}), unix.RTM_NEWROUTE)
	if err != nil {
		return nil, err
	}
	var routes []Route
	for _, b := range out {
		r, ok, err := parseRoute(b)
		if err != nil {
			return nil, err
		}
		if ok {
			routes = append(routes, r)
		}
	}
	return routes, nil
}

func parseRoute(b []byte) (Route, bool, error) {
	if len(b) < unix.SizeofRtMsg {
		return Route{}, false, fmt.Errorf("parse route: %d bytes", len(b))
	}
	msg := nl.DeserializeRtMsg(b)
	if msg.Type != unix.RTN_UNICAST || msg.Table == unix.RT_TABLE_LOCAL || msg.Flags&unix.RTM_F_CLONED != 0 {
		return Route{}, false, nil
	}
	r := Route{Table: int(msg.Table)}
	dst := netip.IPv4Unspecified()
	if msg.Family == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	} else if msg.Family != unix.AF_INET {
		return Route{}, false, nil
	}
	attrs, err := nl.ParseRouteAttr(b[unix.SizeofRtMsg:])
	if err != nil {
		return Route{}, false, fmt.Errorf("parse route: %w", err)
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_GATEWAY:
			r.Gateway, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_OIF:
			r.Index = int(binary.NativeEndian.Uint32(a.Value))
		case unix.RTA_TABLE:
			r.Table = int(binary.NativeEndian.Uint32(a.Value))
		case unix.RTA_PRIORITY:
			r.Priority = int(binary.NativeEndian.Uint32(a.Value))
		}
	}
	r.Dst = netip.PrefixFrom(dst, int(msg.Dst_len))
	return r, true, nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// broadcast is the last address of an IPv4 prefix; /31 and /32 have none.
func broadcast(p netip.Prefix) (netip.Addr, bool) {
	if p.Bits() > 30 {
		return netip.Addr{}, false
	}
	b := p.Addr().As4()
	hosts := uint32(1)<<(32-p.Bits()) - 1
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|hosts)
	return netip.AddrFrom4(b), true
}

func attr32(typ, v int) *nl.RtAttr { return nl.NewRtAttr(typ, nl.Uint32Attr(uint32(v))) }
