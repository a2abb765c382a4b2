// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"net/netip"

	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/internal/errs"
)

// Overlap refuses a configuration whose addresses the host reaches elsewhere: pods there would cut the host off from what is behind
// that route, or be cut off themselves. Default routes don't count, nor those over the plugin's own bridge.
func (h *Host) Overlap(typ string, config []byte) error {
	if typ != "bridge" {
		return nil
	}
	conf, err := parseBridge(&Call{Config: config})
	if err != nil || !conf.ownIPAM() {
		return err
	}
	l, err := parseHostLocal(&conf.header, "")
	if err != nil {
		return err
	}
	routes, err := h.rt.Routes()
	if err != nil {
		return err
	}
	links, err := h.rt.Links()
	if err != nil {
		return err
	}
	byIndex := map[int]rtnl.Link{}
	for _, l := range links {
		byIndex[l.Index] = l
	}
	for _, r := range routes {
		dev := byIndex[r.Index]
		if r.Dst.Bits() == 0 || dev.Name == conf.Bridge || dev.Name == conf.vlanPort() {
			continue
		}
		for _, s := range l.subnets() {
			if s.Overlaps(r.Dst) {
				return errs.Newf(errs.Precondition, "subnet %s overlaps the host's route to %s (interface %s)", s, r.Dst, dev.Name)
			}
		}
	}
	return nil
}

// Subnets lists the networks of pods of a built-in plugin's configuration; none if there are none or it makes no sense.
func Subnets(typ string, config []byte) []netip.Prefix {
	if typ != "bridge" {
		return nil
	}
	conf, err := parseBridge(&Call{Config: config})
	if err != nil || !conf.ownIPAM() {
		return nil
	}
	l, err := parseHostLocal(&conf.header, "")
	if err != nil {
		return nil
	}
	return l.subnets()
}
