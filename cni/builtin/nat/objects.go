// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// reg is the first of the sixteen 32-bit registers. A concatenation takes one per field, an IPv6 address four.
const reg = unix.NFT_REG32_00

// batchElements bounds one message: a netlink attribute holds at most 64 KiB.
const batchElements = 256

// objects is the table's fixed part.
type objects struct {
	table    *nftables.Table
	localnet *nftables.Set
	fam      [2]familyObjects // IPv4, IPv6
}

type familyObjects struct {
	proto             byte   // NFPROTO_IPV4 or NFPROTO_IPV6
	size              uint32 // of an address
	saddr, daddr      uint32 // offsets in the header
	local, masq       *nftables.Set
	portsIP, portsAny *nftables.Set
}

func describe() *objects {
	o := &objects{table: &nftables.Table{Family: nftables.TableFamilyINet, Name: TableName}}
	o.localnet = &nftables.Set{Table: o.table, Name: "localnet", KeyType: nftables.TypeIFName}
	for i, f := range []familyObjects{
		{proto: unix.NFPROTO_IPV4, size: 4, saddr: 12, daddr: 16},
		{proto: unix.NFPROTO_IPV6, size: 16, saddr: 8, daddr: 24},
	} {
		addr, v := nftables.TypeIPAddr, "4"
		if f.size == 16 {
			addr, v = nftables.TypeIP6Addr, "6"
		}
		pair := nftables.MustConcatSetType(addr, addr)
		dest := nftables.MustConcatSetType(addr, nftables.TypeInetService)
		f.local = &nftables.Set{Table: o.table, Name: "local" + v, KeyType: pair, Concatenation: true, Interval: true}
		f.masq = &nftables.Set{Table: o.table, Name: "masq" + v, KeyType: addr, Interval: true}
		f.portsAny = &nftables.Set{Table: o.table, Name: "ports" + v, IsMap: true, Concatenation: true, DataType: dest,
			KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)}
		f.portsIP = &nftables.Set{Table: o.table, Name: "ports" + v + "ip", IsMap: true, Concatenation: true, DataType: dest,
			KeyType: nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService)}
		o.fam[i] = f
	}
	return o
}

func (o *objects) family(a netip.Addr) *familyObjects {
	if a.Is4() {
		return &o.fam[0]
	}
	return &o.fam[1]
}

// write queues the whole table: the old one, if any, goes in the same transaction.
func (o *objects) write(c *nftables.Conn, s state) error {
	c.AddTable(o.table) // so that the next line has something to delete
	c.DelTable(o.table)
	c.AddTable(o.table)
	elems := o.elements(s)
	for _, set := range o.sets() {
		if err := c.AddSet(set, nil); err != nil {
			return err
		}
		for e := elems[set]; len(e) > 0; {
			n := min(len(e), batchElements)
			if err := c.SetAddElements(set, e[:n]); err != nil {
				return err
			}
			e = e[n:]
		}
	}
	o.writeChains(c)
	return nil
}

func (o *objects) sets() []*nftables.Set {
	sets := []*nftables.Set{o.localnet}
	for _, f := range o.fam {
		sets = append(sets, f.local, f.masq, f.portsIP, f.portsAny)
	}
	return sets
}

func (o *objects) elements(s state) map[*nftables.Set][]nftables.SetElement {
	out := map[*nftables.Set][]nftables.SetElement{}
	for _, n := range s.localnet {
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, n)
		out[o.localnet] = append(out[o.localnet], nftables.SetElement{Key: name})
	}
	for _, p := range s.local {
		f := o.family(p.Addr())
		first, last := p.Masked().Addr().AsSlice(), lastOf(p)
		out[f.local] = append(out[f.local], nftables.SetElement{Key: twice(first), KeyEnd: twice(last)})
	}
	for _, p := range s.masq {
		f := o.family(p.Addr())
		out[f.masq] = append(out[f.masq], nftables.SetElement{Key: p.Masked().Addr().AsSlice()})
		if end, ok := behind(p); ok {
			out[f.masq] = append(out[f.masq], nftables.SetElement{Key: end, IntervalEnd: true})
		}
	}
	for _, p := range s.ports {
		set, e := o.port(p)
		out[set] = append(out[set], e)
	}
	return out
}

// port gives the map and element of a host port.
func (o *objects) port(p Port) (*nftables.Set, nftables.SetElement) {
	f := o.family(p.Addr)
	e := nftables.SetElement{Key: append([]byte{p.Proto, 0, 0, 0}, portField(p.HostPort)...), Val: append(p.Addr.AsSlice(), portField(p.ContainerPort)...)}
	if !p.HostIP.IsValid() {
		return f.portsAny, e
	}
	e.Key = append(p.HostIP.AsSlice(), e.Key...)
	return f.portsIP, e
}

// portField is a port in a register: network order, padded to four bytes.
func portField(p uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, p), 0, 0) }

func twice(b []byte) []byte { return append(append([]byte{}, b...), b...) }

func lastOf(p netip.Prefix) []byte {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return b
}

// behind is the first address after the prefix; none for one that reaches to the end.
func behind(p netip.Prefix) ([]byte, bool) {
	a, _ := netip.AddrFromSlice(lastOf(p))
	a = a.Next()
	return a.AsSlice(), a.IsValid()
}

func (o *objects) writeChains(c *nftables.Conn) {
	base := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Table: o.table, Name: name, Type: typ, Hooknum: hook, Priority: prio})
	}
	guard := base("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	ports := c.AddChain(&nftables.Chain{Table: o.table, Name: "ports"})
	pre := base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	out := base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	post := base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	rule := func(chain *nftables.Chain, parts ...[]expr.Any) {
		r := &nftables.Rule{Table: o.table, Chain: chain}
		for _, p := range parts {
			r.Exprs = append(r.Exprs, p...)
		}
		c.AddRule(r)
	}
	verdict := func(k expr.VerdictKind, chain string) []expr.Any {
		return []expr.Any{&expr.Verdict{Kind: k, Chain: chain}}
	}
	v4 := &o.fam[0]

	rule(guard, []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}}, lookup(1, o.localnet), v4.only(),
		v4.inNet(v4.daddr, netip.MustParsePrefix("127.0.0.0/8")), verdict(expr.VerdictDrop, ""))
	for _, chain := range []*nftables.Chain{pre, out} {
		rule(chain, toThisHost(), verdict(expr.VerdictJump, ports.Name))
	}
	for i := range o.fam {
		f := &o.fam[i]
		rule(ports, f.only(), f.dnat(true))
		rule(ports, f.only(), f.dnat(false))
	}
	masq := []expr.Any{&expr.Masq{}}
	rule(post, v4.only(), dnatted(), v4.inNet(v4.saddr, netip.MustParsePrefix("127.0.0.0/8")), masq)
	for i, multicast := range []string{"224.0.0.0/4", "ff00::/8"} {
		f := &o.fam[i]
		rule(post, f.only(), dnatted(), f.insideOne(), masq)
		rule(post, f.only(), f.insideOne(), verdict(expr.VerdictReturn, ""))
		rule(post, f.only(), f.inNet(f.daddr, netip.MustParsePrefix(multicast)), verdict(expr.VerdictReturn, ""))
		rule(post, f.only(), f.load(f.saddr, reg), lookup(reg, f.masq), masq)
	}
}

func lookup(register uint32, s *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: register, SetName: s.Name, SetID: s.ID}}
}

// only matches the family.
func (f *familyObjects) only() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Register: 1, Op: expr.CmpOpEq, Data: []byte{f.proto}}}
}

func (f *familyObjects) load(offset, register uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size}}
}

// inNet matches an address of the header against a prefix whose length is a multiple of four.
func (f *familyObjects) inNet(offset uint32, p netip.Prefix) []expr.Any {
	mask := make([]byte, f.size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(f.load(offset, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.size, Mask: mask, Xor: make([]byte, f.size)},
		&expr.Cmp{Register: 1, Op: expr.CmpOpEq, Data: p.Addr().AsSlice()})
}

// insideOne matches source and destination in one pod subnet.
func (f *familyObjects) insideOne() []expr.Any {
	out := append(f.load(f.saddr, reg), f.load(f.daddr, reg+f.size/4)...)
	return append(out, lookup(reg, f.local)...)
}

// dnat looks the host port up, with the destination address or without, and rewrites the destination.
func (f *familyObjects) dnat(withIP bool) []expr.Any {
	var out []expr.Any
	next, set := uint32(reg), f.portsAny
	if withIP {
		out, next, set = f.load(f.daddr, reg), reg+f.size/4, f.portsIP
	}
	return append(out,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
		&expr.Payload{DestRegister: next + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: set.Name, SetID: set.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg, RegProtoMin: reg + f.size/4, Specified: true})
}

// toThisHost matches packets for one of the host's own addresses: what the node only forwards is left alone.
func toThisHost() []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Register: 1, Op: expr.CmpOpEq, Data: native(unix.RTN_LOCAL)}}
}

// dnatted matches connections whose destination was rewritten.
func dnatted() []expr.Any {
	const ipsDstNAT = 1 << 5 // IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h
	return []expr.Any{&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(ipsDstNAT), Xor: native(0)},
		&expr.Cmp{Register: 1, Op: expr.CmpOpNeq, Data: native(0)}}
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
