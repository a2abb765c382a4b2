// SPDX-License-Identifier: Apache-2.0

package census

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// NFTA_FLOWTABLE_* of linux/netfilter/nf_tables.h.
const (
	flowtableTable = 1
	flowtableName  = 2
)

// nft lists tables, chains, rules, sets, elements, named objects and flow tables of every family.
func (t *taker) nft(c *conn) error {
	get := func(cmd uint16, body ...byte) ([]message, error) {
		// struct nfgenmsg: family (0: any), version, resource id
		return c.dump(unix.NFNL_SUBSYS_NFTABLES<<8|cmd, append([]byte{0, 0, 0, 0}, body...))
	}
	for _, k := range []struct {
		cmd  uint16
		kind string
		name func(a map[uint16][]byte) (name, note string)
	}{
		{unix.NFT_MSG_GETTABLE, "nft table", func(a map[uint16][]byte) (string, string) { return text(a[unix.NFTA_TABLE_NAME]), "" }},
		{unix.NFT_MSG_GETCHAIN, "nft chain", func(a map[uint16][]byte) (string, string) {
			return text(a[unix.NFTA_CHAIN_TABLE]) + " " + text(a[unix.NFTA_CHAIN_NAME]), ""
		}},
		{unix.NFT_MSG_GETRULE, "nft rule", rule},
		{unix.NFT_MSG_GETOBJ, "nft object", func(a map[uint16][]byte) (string, string) {
			return fmt.Sprintf("%s %s type %d", text(a[unix.NFTA_OBJ_TABLE]), text(a[unix.NFTA_OBJ_NAME]), binary.BigEndian.Uint32(a[unix.NFTA_OBJ_TYPE])), ""
		}},
		{unix.NFT_MSG_GETFLOWTABLE, "nft flowtable", func(a map[uint16][]byte) (string, string) {
			return text(a[flowtableTable]) + " " + text(a[flowtableName]), ""
		}},
	} {
		msgs, err := get(k.cmd)
		if err != nil {
			return fmt.Errorf("list %ss: %w", k.kind, err)
		}
		for _, m := range msgs {
			name, note := k.name(attrs(m.data[4:]))
			t.add(k.kind, family(m)+" "+name, note)
		}
	}
	return t.nftSets(c, get)
}

// family names the nfgenmsg's.
func family(m message) string {
	switch m.data[0] {
	case unix.NFPROTO_INET:
		return "inet"
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	case unix.NFPROTO_BRIDGE:
		return "bridge"
	case unix.NFPROTO_NETDEV:
		return "netdev"
	case unix.NFPROTO_ARP:
		return "arp"
	}
	return fmt.Sprint(m.data[0])
}

// rule describes a rule by its expressions; those that count are not compared.
func rule(a map[uint16][]byte) (name, note string) {
	var exprs []string
	eachAttr(a[unix.NFTA_RULE_EXPRESSIONS], func(_ uint16, elem []byte) {
		e := attrs(elem)
		s := text(e[unix.NFTA_EXPR_NAME])
		if !slices.Contains([]string{"counter", "quota", "limit", "last", "connlimit"}, s) {
			s += fmt.Sprintf(":%x", e[unix.NFTA_EXPR_DATA])
		}
		exprs = append(exprs, s)
	})
	name = text(a[unix.NFTA_RULE_TABLE]) + " " + text(a[unix.NFTA_RULE_CHAIN]) + " " + strings.Join(exprs, " ")
	if h := a[unix.NFTA_RULE_HANDLE]; len(h) == 8 {
		note = fmt.Sprintf("handle %d", binary.BigEndian.Uint64(h))
	}
	return name, note
}

// nftSets lists sets (maps are sets) and their elements: keys and data, not timeouts or counters.
func (t *taker) nftSets(c *conn, get func(uint16, ...byte) ([]message, error)) error {
	sets, err := get(unix.NFT_MSG_GETSET)
	if err != nil {
		return fmt.Errorf("list nft sets: %w", err)
	}
	for _, m := range sets {
		a := attrs(m.data[4:])
		name := family(m) + " " + text(a[unix.NFTA_SET_TABLE]) + " " + text(a[unix.NFTA_SET_NAME])
		t.add("nft set", name, "")
		body := append([]byte{m.data[0], 0, 0, 0}, attr(unix.NFTA_SET_ELEM_LIST_TABLE, a[unix.NFTA_SET_TABLE])...)
		body = append(body, attr(unix.NFTA_SET_ELEM_LIST_SET, a[unix.NFTA_SET_NAME])...)
		lists, err := c.dump(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETSETELEM, body)
		if err != nil {
			return fmt.Errorf("list elements of nft set %s: %w", name, err)
		}
		for _, l := range lists {
			eachAttr(attrs(l.data[4:])[unix.NFTA_SET_ELEM_LIST_ELEMENTS], func(_ uint16, elem []byte) {
				e := attrs(elem)
				value := func(b []byte) string {
					d := attrs(b)
					if v := d[unix.NFTA_DATA_VALUE]; v != nil {
						return fmt.Sprintf("%x", v)
					}
					return fmt.Sprintf("verdict %x", d[unix.NFTA_DATA_VERDICT])
				}
				s := name + " " + value(e[unix.NFTA_SET_ELEM_KEY])
				if data := e[unix.NFTA_SET_ELEM_DATA]; data != nil {
					s += " : " + value(data)
				}
				t.add("nft element", s, "")
			})
		}
	}
	return nil
}
