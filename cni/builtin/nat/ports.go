// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// Publish forwards the ports to the owner's addresses, all or none. A port that another owner holds is errs.Precondition unless
// live says that owner is gone; then it is taken over. Publishing what the owner holds already is fine.
func (t *Table) Publish(owner string, ports []Port, live func(owner string) bool) (err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var mine []string
	defer func() {
		if err != nil {
			for _, n := range mine {
				err = errors.Join(err, t.unclaim(n))
			}
		}
	}()
	for _, p := range ports {
		made, err := t.claimPortLocked(owner, p, live)
		if err != nil {
			return err
		}
		if made {
			mine = append(mine, p.name())
		}
	}
	err = t.commitLocked("publish host ports", func() error { return t.queueLocked(ports, true) })
	// No table, or a map that disagrees with the claims: the claims are right.
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) {
		return t.rebuildLocked()
	}
	return err
}

func (t *Table) claimPortLocked(owner string, p Port, live func(string) bool) (made bool, err error) {
	want := p.target(owner)
	for range 3 { // each turn removes a dead holder, or finds that it went by itself
		made, err := t.claim(p.name(), want)
		if err != nil || made {
			return made, err
		}
		have := t.holder(p.name())
		if have == want {
			return false, nil
		}
		holder, _, _ := strings.Cut(have, ",")
		if holder != "" && holder != owner && live(holder) {
			return false, errs.Newf(errs.Precondition, "publish host port %s: in use by pod %s", p, holder)
		}
		if err := t.withdrawLocked(p); err != nil {
			return false, err
		}
	}
	return false, errs.Newf(errs.Precondition, "publish host port %s: claimed again and again by others", p)
}

// Unpublish ends the forwarding of those of the ports that the owner holds. None is fine.
func (t *Table) Unpublish(owner string, ports []Port) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	held := slices.DeleteFunc(slices.Clone(ports), func(p Port) bool {
		holder, _, _ := strings.Cut(t.holder(p.name()), ",")
		return holder != owner
	})
	return t.withdrawLocked(held...)
}

// Release is Unpublish for all ports of every owner that is not live, whatever they are. It reads all claims: for clean-up, not for the
// way of a request.
func (t *Table) Release(live func(owner string) bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	names, err := t.names()
	if err != nil {
		return err
	}
	var dead []Port
	for _, n := range names {
		if p, owner, ok := parsePort(n, t.holder(n)); ok && !live(owner) {
			dead = append(dead, p)
		}
	}
	return t.withdrawLocked(dead...)
}

// Holds says that the owner's claim to every port stands and the kernel has it.
func (t *Table) Holds(owner string, ports []Port) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range ports {
		if t.holder(p.name()) != p.target(owner) {
			return errs.Newf(errs.NotFound, "host port %s is not published for %s", p, owner)
		}
	}
	present, err := t.presentLocked(nftables.TableFamilyINet)
	if err != nil || !present {
		return errors.Join(err, errs.Newf(errs.NotFound, "nftables table inet %s is missing", TableName))
	}
	for _, p := range ports {
		set, want := t.obj.port(p)
		elems, err := t.conn.GetSetElements(set)
		if err != nil {
			_ = t.hangUpLocked()
			return fmt.Errorf("read host ports: %w", err)
		}
		if !slices.ContainsFunc(elems, func(e element) bool { return string(e.Key) == string(want.Key) && string(e.Val) == string(want.Val) }) {
			return errs.Newf(errs.NotFound, "host port %s is missing in nftables map %s", p, set.Name)
		}
	}
	return nil
}

// withdrawLocked takes the ports out of the kernel first: a claim that is left can be released again, a port without one would stay.
func (t *Table) withdrawLocked(ports ...Port) error {
	if len(ports) == 0 {
		return nil
	}
	err := t.commitLocked("withdraw host ports", func() error { return t.queueLocked(ports, false) })
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	var failed []error
	for _, p := range ports {
		if err := t.unclaim(p.name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	if err != nil { // some were missing, so none went: start from the claims
		failed = append(failed, t.rebuildIfPresentLocked())
	}
	return errors.Join(failed...)
}

func (t *Table) rebuildIfPresentLocked() error {
	if present, err := t.presentLocked(nftables.TableFamilyINet); err != nil || !present {
		return err
	}
	return t.rebuildLocked()
}

func (t *Table) queueLocked(ports []Port, add bool) error {
	for _, p := range ports {
		set, e := t.obj.port(p)
		var err error
		if add {
			err = t.conn.SetAddElements(set, []element{e})
		} else {
			err = t.conn.SetDeleteElements(set, []element{e})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type element = nftables.SetElement

// Ports lists every forwarded port with its owner, by the claims.
func (t *Table) Ports() (map[Port]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	names, err := t.names()
	if err != nil {
		return nil, err
	}
	out := map[Port]string{}
	for _, n := range names {
		if p, owner, ok := parsePort(n, t.holder(n)); ok {
			out[p] = owner
		}
	}
	return out, nil
}
