// SPDX-License-Identifier: Apache-2.0

// Package nat keeps one nftables table, "inet shim": masquerading of pod subnets and forwarding of host ports.
//
// The number of rules is constant; what changes are elements of sets and maps. What should be in them is recorded as symbolic links
// in a directory on tmpfs (claim.go); the table in the kernel is derived from it and made again whenever it is found missing (somebody ran
// "nft flush ruleset") or different. Everything goes over one lasting netlink connection; no other table is ever read or touched.
//
//	chain guard        raw prerouting: packets for 127.0.0.0/8 that did not come from lo are dropped on bridges with route_localnet
//	chain prerouting   destination is one of this host's own addresses: jump ports
//	chain output       the same for the host's own packets
//	chain ports        @ports4ip, @ports4, @ports6ip, @ports6: destination NAT
//	chain postrouting  forwarded port and both ends in one pod subnet, or from 127.0.0.0/8: masquerade (or the answer would take a short cut);
//	                   else inside one subnet or to multicast: leave alone; else from @masq4, @masq6: masquerade
package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TableName is the name of the table, in the family inet.
const TableName = "shim"

// patience bounds one exchange with the kernel, which answers in microseconds: a lost answer must not hang a pod.
const patience = 10 * time.Second

// Table is the table. Safe for concurrent use.
type Table struct {
	dir string

	mu   sync.Mutex // guards all below
	conn *nftables.Conn
	sock *netlink.Conn
	obj  *objects
	seen map[string]bool // claims of masquerading that are known to be in the kernel
	gen  uint32          // generation of the kernel's rules at which the table was there; 0: not known
}

// Open uses the claims in dir, making it when missing. The kernel is not touched before the first change.
func Open(dir string) (*Table, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open port claims: %w", err)
	}
	return &Table{dir: dir, obj: describe(), seen: map[string]bool{}}, nil
}

// Close ends the connection; table and claims stay.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hangUpLocked()
}

func (t *Table) hangUpLocked() error {
	if t.conn == nil {
		return nil
	}
	err := t.conn.CloseLasting()
	t.conn, t.sock = nil, nil
	return err
}

// dialLocked opens the lasting connection if there is none.
func (t *Table) dialLocked() error {
	if t.conn != nil {
		return nil
	}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		t.sock = c
		return c.SetWriteBuffer(1 << 20)
	}))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t.conn = conn
	return nil
}

// commitLocked sends what change has queued as one transaction. After an error the connection is given up: answers to the rest of the
// batch may still be under way on it.
func (t *Table) commitLocked(what string, change func() error) error {
	if err := t.dialLocked(); err != nil {
		return err
	}
	err := t.sock.SetDeadline(time.Now().Add(patience))
	if err == nil {
		err = change()
	}
	if err == nil {
		err = t.conn.Flush()
	}
	if err != nil {
		_ = t.hangUpLocked()
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// presentLocked says whether the kernel has our table of that family.
func (t *Table) presentLocked(family nftables.TableFamily) (bool, error) {
	if err := t.dialLocked(); err != nil {
		return false, err
	}
	if err := t.sock.SetDeadline(time.Now().Add(patience)); err != nil {
		return false, fmt.Errorf("find nftables table: %w", err)
	}
	_, err := t.conn.ListTableOfFamily(TableName, family)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		_ = t.hangUpLocked()
		return false, fmt.Errorf("find nftables table: %w", err)
	}
	return true, nil
}

// unchangedLocked is presentLocked for the table that matters, quick while nobody has changed any rules since the last time.
func (t *Table) unchangedLocked() (bool, error) {
	if err := t.dialLocked(); err != nil {
		return false, err
	}
	gen, err := t.generationLocked()
	if err != nil {
		_ = t.hangUpLocked()
		return false, fmt.Errorf("read generation of nftables rules: %w", err)
	}
	if gen == t.gen {
		return true, nil
	}
	present, err := t.presentLocked(nftables.TableFamilyINet)
	if t.gen = 0; present {
		t.gen = gen // as it was before the look: a change in between is seen next time
	}
	return present, err
}

// generationLocked asks for the counter of changes that the kernel keeps, per network namespace, for all of nftables.
func (t *Table) generationLocked() (uint32, error) {
	if err := t.sock.SetDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	answers, err := t.sock.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return 0, err
	}
	if len(answers) != 1 || len(answers[0].Data) < 4 {
		return 0, fmt.Errorf("%d answers", len(answers))
	}
	attrs, err := netlink.NewAttributeDecoder(answers[0].Data[4:])
	if err != nil {
		return 0, err
	}
	attrs.ByteOrder = binary.BigEndian
	for attrs.Next() {
		if attrs.Type() == unix.NFTA_GEN_ID {
			return attrs.Uint32(), attrs.Err()
		}
	}
	return 0, errors.Join(attrs.Err(), errors.New("no generation in the answer"))
}

// Masquerade makes packets from the networks masq carry the host's address, except those that stay inside one of the networks local.
// Host ports need the pods' network among those too.
func (t *Table) Masquerade(local, masq []netip.Prefix) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	present, err := t.unchangedLocked()
	if err != nil {
		return err
	}
	fresh := false
	for kind, networks := range map[string][]netip.Prefix{localKind: local, masqKind: masq} {
		for _, p := range networks {
			name := subnetClaim(kind, p.Masked())
			if t.seen[name] {
				continue
			}
			made, err := t.claim(name, "subnet")
			if err != nil {
				return err
			}
			fresh = fresh || made
			t.seen[name] = true
		}
	}
	if present && !fresh {
		return nil
	}
	return t.rebuildLocked()
}

// Localnet prepares the bridge ifname for connections from 127.0.0.0/8 on this host to its pods: the guard first, then the sysctl that
// makes the kernel route such packets. The guard keeps pods from reaching what listens on the host's loopback (CVE-2020-8558).
func (t *Table) Localnet(ifname string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	name := localnetClaim(ifname)
	if !t.seen[name] {
		if _, err := t.claim(name, "localnet"); err != nil {
			return err
		}
		if err := t.rebuildLocked(); err != nil {
			return err
		}
		t.seen[name] = true
	}
	path := "/proc/sys/net/ipv4/conf/" + ifname + "/route_localnet"
	if err := os.WriteFile(path, []byte("1"), 0); err != nil {
		return fmt.Errorf("allow local connections to host ports on %s: %w", ifname, err)
	}
	return nil
}

// Rebuild makes the kernel's table what the claims say, in one transaction: there is no moment without it.
func (t *Table) Rebuild() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rebuildLocked()
}

func (t *Table) rebuildLocked() error {
	want, err := t.claims()
	if err != nil {
		return err
	}
	err = t.commitLocked("write nftables table", func() error { return t.obj.write(t.conn, want) })
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w (the kernel lacks part of nftables: CONFIG_NF_TABLES_INET, NFT_NAT, NFT_MASQ and NFT_FIB_INET are needed)", err)
	}
	return err
}

// Remove deletes the table and all claims: for the end of a node, and of a test.
func (t *Table) Remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	names, err := t.names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := t.unclaim(n); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	clear(t.seen)
	for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyBridge} {
		present, err := t.presentLocked(family)
		if err == nil && present {
			err = t.commitLocked("delete nftables table", func() error {
				t.conn.DelTable(&nftables.Table{Family: family, Name: TableName})
				return nil
			})
		}
		if err != nil {
			return err
		}
	}
	return nil
}
