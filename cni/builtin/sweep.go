// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"crishim.dev/cni/builtin/lease"
	"crishim.dev/cni/builtin/nat"
	"crishim.dev/cni/builtin/rtnl"
)

// Sweep removes interfaces, leases and host ports of containers that keep doesn't want, in every network, also those that no
// configuration names any more.
func (h *Host) Sweep(keep func(container string) bool) error {
	err := h.nat.Release(keep)
	networks, e := os.ReadDir(filepath.Join(h.opts.StateDir, "leases"))
	if e != nil && !errors.Is(e, fs.ErrNotExist) {
		return errors.Join(err, fmt.Errorf("list leases: %w", e))
	}
	for _, n := range networks {
		err = errors.Join(err, h.sweepLeases(n.Name(), keep))
	}
	err = errors.Join(err, h.DeleteLinks(nil))
	return errors.Join(err, h.nat.SweepGuards(func(port string) bool {
		_, err := h.rt.Link(port)
		return !errors.Is(err, enodev)
	}))
}

func (h *Host) sweepLeases(network string, keep func(string) bool) error {
	store, err := h.leases(network, "")
	if err != nil {
		return err
	}
	all, err := store.All()
	if err != nil {
		return err
	}
	for _, l := range all {
		if l.Foreign || keep(l.Owner.Container) {
			continue
		}
		if err := h.rt.Do(rtnl.DeleteLink(vethName(l.Owner.Container, l.Owner.IfName)).Allow(enodev)); err != nil {
			return err
		}
		if err := store.Release(l.Owner); err != nil {
			return err
		}
	}
	return nil
}

// Leases lists the addresses of a network that are in use.
func (h *Host) Leases(network string) ([]lease.Lease, error) {
	store, err := h.leases(network, "")
	if err != nil {
		return nil, err
	}
	return store.All()
}

// HasLease says that the container holds an address in some network.
func (h *Host) HasLease(container string) bool {
	networks, err := os.ReadDir(filepath.Join(h.opts.StateDir, "leases"))
	for _, n := range networks {
		all, e := h.Leases(n.Name())
		if err = errors.Join(err, e); slices.ContainsFunc(all, func(l lease.Lease) bool { return l.Owner.Container == container }) {
			return true
		}
	}
	return err != nil && !errors.Is(err, fs.ErrNotExist) // when in doubt it has
}

// RemoveTable deletes the nftables table: for the end of a node.
func (h *Host) RemoveTable() error { return h.nat.Remove() }

// Ports gives the table of host ports.
func (h *Host) Ports() *nat.Table { return h.nat }

// Outlives says that a reboot leaves something of what the built-in plugin does by that configuration: an address that a binary keeps, or
// leases in a directory of the configuration's own.
func Outlives(typ string, config []byte) bool {
	switch typ {
	case "bridge":
		conf, err := parseBridge(&Call{Config: config})
		if err != nil || conf.ipam.Type == "" {
			return err != nil
		}
		l, err := parseHostLocal(&conf.header, "")
		return !conf.ownIPAM() || err != nil || l.DataDir != ""
	case "vxlan":
		conf, err := parseVXLAN(&Call{Config: config})
		return err != nil || conf.DataDir != ""
	}
	return false
}
