// SPDX-License-Identifier: Apache-2.0

package census

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// network lists what is in one network namespace.
func (t *taker) network() error {
	if !t.Net {
		return nil
	}
	c, err := dial(t.NetNS, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	defer c.Close()
	names, err := t.links(c)
	if err != nil {
		return err
	}
	for _, f := range []func(*conn, map[uint32]string) error{t.addresses, t.routes, t.rules} {
		if err := f(c, names); err != nil {
			return err
		}
	}
	n, err := dial(t.NetNS, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("list nftables: %w", err)
	}
	defer n.Close()
	return t.nft(n)
}

// links returns the names by index. Counters, carrier and hardware addresses (a bridge takes one of its ports') are not compared.
func (t *taker) links(c *conn) (map[uint32]string, error) {
	msgs, err := c.dump(unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg))
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := map[uint32]string{}
	for _, m := range msgs {
		names[u32(m.data[4:])] = text(attrs(m.data[unix.SizeofIfInfomsg:])[unix.IFLA_IFNAME])
	}
	for _, m := range msgs {
		a := attrs(m.data[unix.SizeofIfInfomsg:])
		index, flags := u32(m.data[4:]), u32(m.data[8:])
		s := names[index]
		if kind := text(attrs(a[unix.IFLA_LINKINFO])[unix.IFLA_INFO_KIND]); kind != "" {
			s += " " + kind
		}
		if master := u32(a[unix.IFLA_MASTER]); master != 0 {
			s += " master " + names[master]
		}
		if flags&unix.IFF_UP != 0 {
			s += " up"
		}
		note := fmt.Sprintf("index %d", index)
		if peer, ok := a[unix.IFLA_LINK]; ok {
			note += fmt.Sprintf(", peer %d", u32(peer))
		}
		if alias := text(a[unix.IFLA_IFALIAS]); alias != "" {
			note += ", alias " + alias
		}
		t.add("link", fmt.Sprintf("%s mtu %d", s, u32(a[unix.IFLA_MTU])), note)
	}
	return names, nil
}

func (t *taker) addresses(c *conn, names map[uint32]string) error {
	msgs, err := c.dump(unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg))
	for _, m := range msgs {
		a := attrs(m.data[unix.SizeofIfAddrmsg:])
		ip := a[unix.IFA_LOCAL]
		if ip == nil {
			ip = a[unix.IFA_ADDRESS]
		}
		t.add("address", fmt.Sprintf("%s/%d on %s", address(ip), m.data[1], names[u32(m.data[4:])]), "")
	}
	return err
}

// address writes an IPv4 or IPv6 address.
func address(b []byte) string {
	if a, ok := netip.AddrFromSlice(b); ok {
		return a.String()
	}
	return "any"
}

func (t *taker) routes(c *conn, names map[uint32]string) error {
	msgs, err := c.dump(unix.RTM_GETROUTE, make([]byte, unix.SizeofRtMsg))
	for _, m := range msgs {
		a := attrs(m.data[unix.SizeofRtMsg:])
		if u32(m.data[8:])&unix.RTM_F_CLONED != 0 {
			continue // a cached exception
		}
		table := u32(a[unix.RTA_TABLE])
		if table == 0 {
			table = uint32(m.data[4])
		}
		s := fmt.Sprintf("%s/%d type %d table %d protocol %d", address(a[unix.RTA_DST]), m.data[1], m.data[7], table, m.data[5])
		if gw := a[unix.RTA_GATEWAY]; gw != nil {
			s += " via " + address(gw)
		}
		if dev := u32(a[unix.RTA_OIF]); dev != 0 {
			s += " dev " + names[dev]
		}
		if metric := u32(a[unix.RTA_PRIORITY]); metric != 0 {
			s += fmt.Sprintf(" metric %d", metric)
		}
		t.add("route", s, "")
	}
	return err
}

// rules lists policy routing, IPv4 and IPv6.
func (t *taker) rules(c *conn, _ map[uint32]string) error {
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		body := make([]byte, unix.SizeofRtMsg)
		body[0] = family
		msgs, err := c.dump(unix.RTM_GETRULE, body)
		if err != nil {
			return err
		}
		for _, m := range msgs {
			a := attrs(m.data[unix.SizeofRtMsg:])
			table := max(u32(a[unix.FRA_TABLE]), uint32(m.data[4]))
			s := fmt.Sprintf("family %d priority %d from %s/%d to %s/%d table %d", m.data[0], u32(a[unix.FRA_PRIORITY]),
				address(a[unix.FRA_SRC]), m.data[2], address(a[unix.FRA_DST]), m.data[1], table)
			if mark := a[unix.FRA_FWMARK]; mark != nil {
				s += fmt.Sprintf(" mark %#x", u32(mark))
			}
			t.add("rule", strings.TrimSpace(s), "")
		}
	}
	return nil
}
