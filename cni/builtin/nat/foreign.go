// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
)

// Foreign is a chain of somebody else's that drops forwarded packets unless one of its rules accepts them.
type Foreign struct {
	Family       string // "ip", "ip6" or "inet"
	Table, Chain string
}

// Remedy gives the commands that let the pods of a subnet through.
func (f Foreign) Remedy(subnet netip.Prefix) []string {
	ip, tool := "ip", "iptables"
	if subnet.Addr().Is6() {
		ip, tool = "ip6", "ip6tables"
	}
	var out []string
	for _, dir := range []struct{ nft, iptables string }{{"saddr", "-s"}, {"daddr", "-d"}} {
		if f.Family != "inet" && f.Table == "filter" && f.Chain == "FORWARD" { // made by iptables-nft
			out = append(out, fmt.Sprintf("%s -I FORWARD %s %s -j ACCEPT", tool, dir.iptables, subnet))
		} else {
			out = append(out, fmt.Sprintf("nft insert rule %s %s %s %s %s %s accept", f.Family, f.Table, f.Chain, ip, dir.nft, subnet))
		}
	}
	return out
}

// Concerns says whether packets of that subnet's family pass the chain.
func (f Foreign) Concerns(subnet netip.Prefix) bool {
	return f.Family == "inet" || (f.Family == "ip") == subnet.Addr().Is4()
}

// ForeignDrops lists chains of others at the forward hook whose policy is to drop. An accept of ours can't overrule them: a packet must
// pass every chain of a hook. They are only read.
func (t *Table) ForeignDrops() ([]Foreign, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.dialLocked(); err != nil {
		return nil, err
	}
	if err := t.sock.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	chains, err := t.conn.ListChains()
	if err != nil {
		_ = t.hangUpLocked()
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	var out []Foreign
	for _, c := range chains {
		family, ok := familyWord(c.Table.Family)
		if ok && c.Table.Name != TableName && c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward &&
			c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			out = append(out, Foreign{family, c.Table.Name, c.Name})
		}
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
