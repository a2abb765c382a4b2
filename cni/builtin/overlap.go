// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"net/netip"
	"slices"

	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/internal/errs"
)

// Overlap refuses a configuration whose addresses the host reaches elsewhere: pods there would cut the host off from what is behind
// that route, or be cut off themselves. Default routes don't count, nor those over the plugin's own interfaces.
func (h *Host) Overlap(typ string, config []byte) error {
	subnets, own := h.networks(typ, config)
	if len(subnets) == 0 {
		return nil
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
		dev := byIndex[r.Index].Name
		if r.Dst.Bits() == 0 || slices.Contains(own, dev) {
			continue
		}
		for _, s := range subnets {
			if s.Overlaps(r.Dst) {
				return errs.Newf(errs.Precondition, "subnet %s overlaps the host's route to %s (interface %s)", s, r.Dst, dev)
			}
		}
	}
	return nil
}

// Subnets lists the networks of pods of a built-in plugin's configuration; none if there are none or it makes no sense.
func (h *Host) Subnets(typ string, config []byte) []netip.Prefix {
	subnets, _ := h.networks(typ, config)
	return subnets
}

// networks gives the networks in which the configuration's pods have addresses, and the host's interfaces that lead there.
func (h *Host) networks(typ string, config []byte) (subnets []netip.Prefix, interfaces []string) {
	if typ == "vxlan" {
		conf, err := parseVXLAN(&Call{Config: config})
		if err != nil {
			return nil, nil
		}
		return conf.Network, []string{conf.Bridge, conf.Device}
	}
	if typ != "bridge" {
		return nil, nil
	}
	conf, err := parseBridge(&Call{Config: config})
	if err != nil || !conf.ownIPAM() {
		return nil, nil
	}
	l, err := parseHostLocal(&conf.header, "")
	if err != nil {
		return nil, nil
	}
	return l.subnets(), []string{conf.Bridge, conf.vlanPort()}
}
