// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"bytes"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Foreign is a chain of somebody else's that drops forwarded packets unless one of its rules accepts them.
type Foreign struct {
	Family       string // "ip", "ip6" or "inet"
	Table, Chain string
	// Legacy: the table is not nftables' but of the interface before it, iptables-legacy's.
	Legacy bool

	rules map[string][]*nftables.Rule // of each chain of the table
}

// direction is one way of pods' packets, as each tool calls it.
type direction struct {
	nft, iptables string
	offset        [2]uint32 // of the address in the header: IPv4, IPv6
}

func directions() []direction {
	return []direction{{"saddr", "-s", [2]uint32{12, 8}}, {"daddr", "-d", [2]uint32{16, 24}}}
}

// Remedy gives the commands that let the pods of a subnet through, one for each direction in which the chain drops; none when it does not
// concern them, or has such rules already.
func (f Foreign) Remedy(subnet netip.Prefix) []string {
	if f.Family != "inet" && (f.Family == "ip") != subnet.Addr().Is4() {
		return nil
	}
	ip, tool := "ip", "iptables"
	if subnet.Addr().Is6() {
		ip, tool = "ip6", "ip6tables"
	}
	var out []string
	for _, dir := range directions() {
		switch {
		case f.accepts(f.Chain, dir, subnet, 0):
		case f.Legacy:
			out = append(out, fmt.Sprintf("%s-legacy -I FORWARD %s %s -j ACCEPT", tool, dir.iptables, subnet))
		case f.Family != "inet" && f.Table == "filter" && f.Chain == "FORWARD": // made by iptables-nft
			out = append(out, fmt.Sprintf("%s -I FORWARD %s %s -j ACCEPT", tool, dir.iptables, subnet))
		default:
			out = append(out, fmt.Sprintf("nft insert rule %s %s %s %s %s %s accept", f.Family, f.Table, f.Chain, ip, dir.nft, subnet))
		}
	}
	return out
}

// maxJumps is more than anybody nests chains.
const maxJumps = 16

// accepts says that a rule of the chain, or of one that it leads to, accepts every packet of the subnet in that direction. Rules that look at
// anything but the address don't count: they let some through.
func (f Foreign) accepts(chain string, dir direction, subnet netip.Prefix, depth int) bool {
	for _, r := range f.rules[chain] {
		v := verdictFor(r.Exprs, dir, subnet)
		switch {
		case v == nil:
		case v.Kind == expr.VerdictAccept:
			return true
		case (v.Kind == expr.VerdictJump || v.Kind == expr.VerdictGoto) && depth < maxJumps && f.accepts(v.Chain, dir, subnet, depth+1):
			return true
		}
	}
	return false
}

// verdictFor gives the verdict of a rule on all packets of the subnet in that direction, nil when it may be none.
func verdictFor(rule []expr.Any, dir direction, subnet netip.Prefix) *expr.Verdict {
	proto, offset := byte(unix.NFPROTO_IPV4), dir.offset[0]
	if subnet.Addr().Is6() {
		proto, offset = unix.NFPROTO_IPV6, dir.offset[1]
	}
	addr := subnet.Masked().Addr().AsSlice()
	var have, mask []byte // what the register holds of every packet, and the bits of it that are known
	for _, e := range rule {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Match:
			if e.Name != "comment" {
				return nil
			}
		case *expr.Meta:
			if e.Key != expr.MetaKeyNFPROTO {
				return nil
			}
			have, mask = []byte{proto}, []byte{0xff}
		case *expr.Payload:
			if e.Base != expr.PayloadBaseNetworkHeader || e.Offset != offset || int(e.Len) > len(addr) {
				return nil
			}
			have, mask = addr[:e.Len], maskOf(subnet.Bits(), int(e.Len))
		case *expr.Bitwise:
			if len(e.Mask) != len(have) {
				return nil
			}
			have, mask = and(have, e.Mask), or(mask, not(e.Mask)) // a bit that is masked out is known: 0
		case *expr.Cmp:
			if e.Op != expr.CmpOpEq || !full(mask) || !bytes.Equal(e.Data, have) {
				return nil
			}
		case *expr.Verdict:
			return e
		default:
			return nil
		}
	}
	return nil
}

func full(mask []byte) bool { return bytes.Count(mask, []byte{0xff}) == len(mask) }

func maskOf(bits, size int) []byte {
	m := make([]byte, size)
	for i := range min(bits, size*8) {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

func each(a, b []byte, f func(x, y byte) byte) []byte {
	out := make([]byte, len(a))
	for i := range a {
		out[i] = f(a[i], b[i])
	}
	return out
}

func and(a, b []byte) []byte { return each(a, b, func(x, y byte) byte { return x & y }) }
func or(a, b []byte) []byte  { return each(a, b, func(x, y byte) byte { return x | y }) }
func not(a []byte) []byte    { return each(a, a, func(x, _ byte) byte { return ^x }) }

// ForeignDrops lists chains of others at the forward hook whose policy is to drop. An accept of ours can't overrule them: a packet must
// pass every chain of a hook. They are only read.
func (t *Table) ForeignDrops() ([]Foreign, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	out, err := t.foreignDropsLocked()
	if err != nil {
		_ = t.hangUpLocked()
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, x := range legacyTables() {
		f, err := x.legacyDrops()
		if err != nil {
			return nil, err
		}
		if f != nil {
			out = append(out, *f)
		}
	}
	return out, nil
}

func (t *Table) foreignDropsLocked() ([]Foreign, error) {
	if err := t.dialLocked(); err != nil {
		return nil, err
	}
	if err := t.sock.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	chains, err := t.conn.ListChains()
	if err != nil {
		return nil, err
	}
	var out []Foreign
	for _, c := range chains {
		family, ok := familyWord(c.Table.Family)
		if !ok || c.Table.Name == TableName || c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward ||
			c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop {
			continue
		}
		f := Foreign{Family: family, Table: c.Table.Name, Chain: c.Name, rules: map[string][]*nftables.Rule{}}
		for _, other := range chains {
			if other.Table.Name != c.Table.Name || other.Table.Family != c.Table.Family {
				continue
			}
			if f.rules[other.Name], err = t.conn.GetRules(c.Table, other); err != nil {
				return nil, err
			}
		}
		out = append(out, f)
	}
	return out, nil
}

func familyWord(f nftables.TableFamily) (string, bool) {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip", true
	case nftables.TableFamilyIPv6:
		return "ip6", true
	case nftables.TableFamilyINet:
		return "inet", true
	default:
	}
	return "", false
}
