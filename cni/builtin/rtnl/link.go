// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Retired is the interface group into which Retire puts veths that are to be deleted together ("shim" in ASCII).
const Retired = 0x7368696d

// skipStats is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h.
const skipStats = 1 << 3

// operUp is IF_OPER_UP of linux/if.h.
const operUp = 6

// Link is an interface as seen from the socket's namespace.
type Link struct {
	Index    int
	Name     string
	Kind     string // "veth", "bridge", …; empty for lo and hardware
	MAC      net.HardwareAddr
	MTU      int
	Up       bool // administratively
	Runs     bool // operationally: has a carrier
	Promis   bool
	Allmulti bool
	TxQLen   int
	Master   int // index of its bridge, 0: none
	Peer     int // veth: index of the other end in its own namespace
}

// Link finds an interface by name. A missing one is an *Error with ENODEV.
func (c *Conn) Link(name string) (Link, error) {
	r := newRequest("find interface "+name, unix.RTM_GETLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)),
		nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	out, err := c.query(r, unix.RTM_NEWLINK)
	if err != nil {
		return Link{}, err
	}
	if len(out) != 1 {
		return Link{}, &Error{What: r.What, Errno: unix.ENODEV}
	}
	return parseLink(out[0])
}

// Links lists all interfaces.
func (c *Conn) Links() ([]Link, error) {
	r := newRequest("list interfaces", unix.RTM_GETLINK, unix.NLM_F_DUMP, nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	out, err := c.query(r, unix.RTM_NEWLINK)
	if err != nil {
		return nil, err
	}
	links := make([]Link, 0, len(out))
	for _, b := range out {
		l, err := parseLink(b)
		if err != nil {
			return nil, err
		}
		links = append(links, l)
	}
	return links, nil
}

func parseLink(b []byte) (Link, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return Link{}, fmt.Errorf("parse interface: %d bytes", len(b))
	}
	info := nl.DeserializeIfInfomsg(b)
	l := Link{
		Index: int(info.Index), Up: info.Flags&unix.IFF_UP != 0,
		Promis: info.Flags&unix.IFF_PROMISC != 0, Allmulti: info.Flags&unix.IFF_ALLMULTI != 0,
	}
	attrs, err := nl.ParseRouteAttr(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return Link{}, fmt.Errorf("parse interface: %w", err)
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFLA_IFNAME:
			l.Name = nl.BytesToString(a.Value)
		case unix.IFLA_ADDRESS:
			l.MAC = append(net.HardwareAddr(nil), a.Value...)
		case unix.IFLA_MTU:
			l.MTU = int(binary.NativeEndian.Uint32(a.Value))
		case unix.IFLA_MASTER:
			l.Master = int(binary.NativeEndian.Uint32(a.Value))
		case unix.IFLA_LINK:
			l.Peer = int(binary.NativeEndian.Uint32(a.Value))
		case unix.IFLA_OPERSTATE:
			l.Runs = len(a.Value) == 1 && a.Value[0] == operUp
		case unix.IFLA_TXQLEN:
			l.TxQLen = int(binary.NativeEndian.Uint32(a.Value))
		case unix.IFLA_PROMISCUITY:
			l.Promis = binary.NativeEndian.Uint32(a.Value) > 0
		case unix.IFLA_LINKINFO:
			l.Kind = linkKind(a.Value)
		}
	}
	return l, nil
}

func linkKind(b []byte) string {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return ""
	}
	for _, a := range attrs {
		if a.Attr.Type == nl.IFLA_INFO_KIND {
			return nl.BytesToString(a.Value)
		}
	}
	return ""
}

// Veth describes a pair: one end here, on a bridge; the other in the namespace NetNS. Both are down.
type Veth struct {
	Name    string
	MAC     net.HardwareAddr
	MTU     int // 0: the kernel's default
	Master  int // index of the bridge, 0: none
	Peer    string
	PeerMAC net.HardwareAddr
	NetNS   *os.File
}

// AddVeth makes the pair in one message.
func AddVeth(v Veth) Request {
	data := append([]nl.NetlinkRequestData{nl.NewIfInfomsg(unix.AF_UNSPEC)}, endAttrs(v.Name, v.MAC, v.MTU)...)
	data = append(data, oneQueue()...)
	if v.Master != 0 {
		data = append(data, nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(v.Master))))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	for _, a := range append(endAttrs(v.Peer, v.PeerMAC, v.MTU), oneQueue()...) {
		peer.AddChild(a)
	}
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(v.NetNS.Fd())))
	return newRequest(fmt.Sprintf("create veth %s and %s in the pod", v.Name, v.Peer), unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		append(data, info)...)
}

func endAttrs(name string, mac net.HardwareAddr, mtu int) []nl.NetlinkRequestData {
	data := []nl.NetlinkRequestData{nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name))}
	if mac != nil {
		data = append(data, nl.NewRtAttr(unix.IFLA_ADDRESS, mac))
	}
	if mtu != 0 {
		data = append(data, nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	}
	return data
}

// oneQueue says how many queues an end of a pair has. Without it the kernel registers one for every CPU that the machine could have, each with
// its directories in sysfs, and then takes all but one away (drivers/net/veth.c, veth_init_queues).
func oneQueue() []nl.NetlinkRequestData {
	return []nl.NetlinkRequestData{attr32(unix.IFLA_NUM_TX_QUEUES, 1), attr32(unix.IFLA_NUM_RX_QUEUES, 1)}
}

// SetUp brings the interface up, or down.
func SetUp(name string, up bool) Request {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Change = unix.IFF_UP
	what := "bring down interface "
	if up {
		msg.Flags, what = unix.IFF_UP, "bring up interface "
	}
	return newRequest(what+name, unix.RTM_SETLINK, 0, msg, nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
}

// NoLinkLocal keeps IPv6 from giving the interface a link-local address when it comes up. A bridge's port needs none, and with the address go
// routes, which the kernel looks through each time a port comes or goes. Without IPv6 it is EAFNOSUPPORT.
func NoLinkLocal(name string) Request {
	const addrGenMode, none = 8, 1 // IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE of linux/if_link.h
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(addrGenMode, []byte{none})
	return newRequest("switch off link-local addresses of "+name, unix.RTM_SETLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)), spec)
}

// PortFlag is a property of a bridge port.
type PortFlag int

// Hairpin lets a frame out through the port it came in by; Isolated ports don't reach each other.
const (
	Hairpin  PortFlag = nl.IFLA_BRPORT_MODE
	Isolated PortFlag = nl.IFLA_BRPORT_ISOLATED
)

// SetPort turns on flags of a bridge port.
func SetPort(l Link, flags ...PortFlag) Request {
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(l.Index)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	for _, f := range flags {
		info.AddRtAttr(int(f), []byte{1})
	}
	return newRequest("set flags of bridge port "+l.Name, unix.RTM_SETLINK, 0, msg, info)
}

// Retire puts the interface into the group Retired.
func Retire(name string) Request {
	return newRequest("retire interface "+name, unix.RTM_SETLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)), nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(Retired)))
}

// DeleteRetired deletes all interfaces of the group Retired at once: fifty in the time of three, since the kernel waits for its readers
// once. None there is ENODEV.
func DeleteRetired() Request {
	return newRequest("delete retired interfaces", unix.RTM_DELLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(Retired)))
}

// DeleteLink deletes one interface by name; a veth takes its peer with it.
func DeleteLink(name string) Request {
	return newRequest("delete interface "+name, unix.RTM_DELLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
}

// Device is settings of an interface; those that are zero or nil stay as they are.
type Device struct {
	MAC      net.HardwareAddr `json:"mac,omitempty"`
	MTU      int              `json:"mtu,omitempty"`
	Promisc  *bool            `json:"promisc,omitempty"`
	Allmulti *bool            `json:"allmulti,omitempty"`
	TxQLen   *int             `json:"txQLen,omitempty"`
}

// IsZero says that there is nothing to set.
func (d Device) IsZero() bool {
	return d.MAC == nil && d.MTU == 0 && d.Promisc == nil && d.Allmulti == nil && d.TxQLen == nil
}

// SetDevice changes settings of an interface.
func SetDevice(name string, d Device) Request {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	for bit, on := range map[uint32]*bool{unix.IFF_PROMISC: d.Promisc, unix.IFF_ALLMULTI: d.Allmulti} {
		if on != nil {
			msg.Change |= bit
		}
		if on != nil && *on {
			msg.Flags |= bit
		}
	}
	data := append([]nl.NetlinkRequestData{msg}, endAttrs(name, d.MAC, d.MTU)...)
	if d.TxQLen != nil {
		data = append(data, nl.NewRtAttr(unix.IFLA_TXQLEN, nl.Uint32Attr(uint32(*d.TxQLen))))
	}
	return newRequest("change interface "+name, unix.RTM_SETLINK, 0, data...)
}
