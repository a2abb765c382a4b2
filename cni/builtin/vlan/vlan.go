// SPDX-License-Identifier: Apache-2.0

// Package vlan makes ports of a bridge members of VLANs, which needs a kernel with CONFIG_BRIDGE_VLAN_FILTERING.
package vlan

import (
	"fmt"
	"maps"
	"slices"

	"github.com/vishvananda/netlink"

	"crishim.dev/internal/errs"
)

// Range is an entry of a trunk: one ID, or a range of them, or both.
type Range struct {
	MinID *int `json:"minID"`
	MaxID *int `json:"maxID"`
	ID    *int `json:"id"`
}

// Port says what VLANs a port is in.
type Port struct {
	Native      int     // untagged; 0 is none, or with a trunk VLAN 1
	Trunk       []Range // tagged
	KeepDefault bool    // the VLANs that the bridge gives to new ports stay
}

const maxID = 4094

// Validate refuses, as errs.Invalid, what is no VLAN ID.
func (p Port) Validate() error {
	if p.Native < 0 || p.Native > maxID {
		return errs.Newf(errs.Invalid, "invalid VLAN ID %d (must be between 0 and 4094)", p.Native)
	}
	for _, r := range p.Trunk {
		if (r.MinID == nil) != (r.MaxID == nil) {
			return errs.Newf(errs.Invalid, "vlanTrunk: minID and maxID go together")
		}
		for _, id := range []*int{r.MinID, r.MaxID, r.ID} {
			if id != nil && (*id <= 0 || *id > maxID) {
				return errs.Newf(errs.Invalid, "vlanTrunk: VLAN ID %d", *id)
			}
		}
		if r.MinID != nil && *r.MinID > *r.MaxID {
			return errs.Newf(errs.Invalid, "vlanTrunk: minID is greater than maxID")
		}
	}
	return nil
}

// tagged lists the VLANs of the trunk.
func (p Port) tagged() []int {
	ids := map[int]bool{}
	for _, r := range p.Trunk {
		if r.ID != nil {
			ids[*r.ID] = true
		}
		if r.MinID != nil && r.MaxID != nil {
			for id := *r.MinID; id <= *r.MaxID; id++ {
				ids[id] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(ids))
}

// Join makes the port of a bridge a member of its VLANs.
func (p Port) Join(link netlink.Link) error {
	l := link.Attrs()
	tagged, native := p.tagged(), p.Native
	if native == 0 && len(tagged) > 0 {
		native = 1
	}
	if native != 0 && !p.KeepDefault {
		all, err := netlink.BridgeVlanList()
		if err != nil {
			return fmt.Errorf("list VLANs of %s: %w", l.Name, err)
		}
		for _, v := range all[int32(l.Index)] {
			if err := netlink.BridgeVlanDel(link, v.Vid, false, false, false, true); err != nil {
				return fmt.Errorf("remove VLAN %d of %s: %w", v.Vid, l.Name, err)
			}
		}
	}
	if native != 0 {
		if err := netlink.BridgeVlanAdd(link, uint16(native), true, true, false, true); err != nil {
			return fmt.Errorf("set VLAN %d of %s: %w", native, l.Name, err)
		}
	}
	for _, id := range tagged {
		if err := netlink.BridgeVlanAdd(link, uint16(id), false, false, false, true); err != nil {
			return fmt.Errorf("add VLAN %d to %s: %w", id, l.Name, err)
		}
	}
	return nil
}
