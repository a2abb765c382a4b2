// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Guarding against forged hardware addresses is a second table, "bridge shim", for the family in which frames are seen before they are
// packets. It exists only once it is needed.
//
//	chain prerouting   from a port in @guarded, and port . source address not in @macs: drop

// guard describes the table.
type guard struct {
	table         *nftables.Table
	guarded, macs *nftables.Set
}

func describeGuard() *guard {
	g := &guard{table: &nftables.Table{Family: nftables.TableFamilyBridge, Name: TableName}}
	g.guarded = &nftables.Set{Table: g.table, Name: "guarded", KeyType: nftables.TypeIFName}
	g.macs = &nftables.Set{Table: g.table, Name: "macs", Concatenation: true, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr)}
	return g
}

const macKind = "mac"

// Guard lets only frames with that source address in from the bridge port.
func (t *Table) Guard(port string, mac net.HardwareAddr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	name := macKind + "," + port
	if err := os.Remove(t.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record port claim: %w", err)
	}
	if _, err := t.claim(name, mac.String()); err != nil {
		return err
	}
	return t.writeGuardLocked()
}

// Unguard forgets the port. One that is not guarded is fine.
func (t *Table) Unguard(port string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := os.Remove(t.path(macKind + "," + port))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("release port claim: %w", err)
	}
	return t.writeGuardLocked()
}

// writeGuardLocked makes the table what the claims say. Guarded ports are few, so it is always the whole.
func (t *Table) writeGuardLocked() error {
	names, err := t.names()
	if err != nil {
		return err
	}
	g := describeGuard()
	var guarded, macs []nftables.SetElement
	for _, n := range names {
		port, ok := strings.CutPrefix(n, macKind+",")
		mac, err := net.ParseMAC(t.holder(n))
		if !ok || err != nil {
			continue
		}
		key := make([]byte, unix.IFNAMSIZ)
		copy(key, port)
		guarded = append(guarded, nftables.SetElement{Key: key})
		macs = append(macs, nftables.SetElement{Key: append(append(append([]byte{}, key...), mac...), 0, 0)})
	}
	return t.commitLocked("guard bridge ports", func() error { return g.write(t.conn, guarded, macs) })
}

func (g *guard) write(c *nftables.Conn, guarded, macs []nftables.SetElement) error {
	c.AddTable(g.table)
	c.DelTable(g.table)
	if len(guarded) == 0 {
		return nil
	}
	c.AddTable(g.table)
	for set, elems := range map[*nftables.Set][]nftables.SetElement{g.guarded: guarded, g.macs: macs} {
		if err := c.AddSet(set, nil); err != nil {
			return err
		}
		for len(elems) > 0 {
			n := min(len(elems), batchElements)
			if err := c.SetAddElements(set, elems[:n]); err != nil {
				return err
			}
			elems = elems[n:]
		}
	}
	chain := c.AddChain(&nftables.Chain{Table: g.table, Name: "prerouting", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	// A name takes four registers.
	exprs := []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}}
	exprs = append(exprs, lookup(reg, g.guarded)...)
	exprs = append(exprs, &expr.Payload{DestRegister: reg + 4, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
		&expr.Lookup{SourceRegister: reg, SetName: g.macs.Name, SetID: g.macs.ID, Invert: true},
		&expr.Verdict{Kind: expr.VerdictDrop})
	c.AddRule(&nftables.Rule{Table: g.table, Chain: chain, Exprs: exprs})
	return nil
}

// SweepGuards forgets guarded ports that don't exist any more.
func (t *Table) SweepGuards(exists func(port string) bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	names, err := t.names()
	if err != nil {
		return err
	}
	gone := false
	for _, n := range names {
		if port, ok := strings.CutPrefix(n, macKind+","); ok && !exists(port) {
			gone = true
			if err := t.unclaim(n); err != nil {
				return err
			}
		}
	}
	if !gone {
		return nil
	}
	return t.writeGuardLocked()
}
