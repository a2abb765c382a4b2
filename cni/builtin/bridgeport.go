// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/internal/errs"
)

// vlanRange is an entry of vlanTrunk: one ID, or a range of them.
type vlanRange struct {
	MinID *int `json:"minID"`
	MaxID *int `json:"maxID"`
	ID    *int `json:"id"`
}

const maxVLAN = 4094

func (conf *bridgeConf) usesVLANs() bool { return conf.VLAN != 0 || conf.VLANTrunk != nil }

func (conf *bridgeConf) checkVLANs() error {
	if conf.VLAN < 0 || conf.VLAN > maxVLAN {
		return errs.Newf(errs.Invalid, "invalid VLAN ID %d (must be between 0 and 4094)", conf.VLAN)
	}
	for _, r := range conf.VLANTrunk {
		if (r.MinID == nil) != (r.MaxID == nil) {
			return errs.Newf(errs.Invalid, "vlanTrunk: minID and maxID go together")
		}
		for _, id := range []*int{r.MinID, r.MaxID, r.ID} {
			if id != nil && (*id <= 0 || *id > maxVLAN) {
				return errs.Newf(errs.Invalid, "vlanTrunk: VLAN ID %d", *id)
			}
		}
		if r.MinID != nil && *r.MinID > *r.MaxID {
			return errs.Newf(errs.Invalid, "vlanTrunk: minID is greater than maxID")
		}
	}
	return nil
}

// trunk lists the tagged VLANs of the port.
func (conf *bridgeConf) trunk() []int {
	ids := map[int]bool{}
	for _, r := range conf.VLANTrunk {
		if r.ID != nil {
			ids[*r.ID] = true
		}
		for id := range vlansOf(r) {
			ids[id] = true
		}
	}
	return slices.Sorted(maps.Keys(ids))
}

func vlansOf(r vlanRange) map[int]bool {
	ids := map[int]bool{}
	if r.MinID != nil && r.MaxID != nil {
		for id := *r.MinID; id <= *r.MaxID; id++ {
			ids[id] = true
		}
	}
	return ids
}

// portFlags sets what a bridge port can have besides its master. Rarely used, so it is not in the one message that makes the pair.
func portFlags(h *Host, name string, conf *bridgeConf) error {
	var flags []rtnl.PortFlag
	if conf.HairpinMode {
		flags = append(flags, rtnl.Hairpin)
	}
	if conf.PortIsolation {
		flags = append(flags, rtnl.Isolated)
	}
	if len(flags) == 0 && !conf.usesVLANs() {
		return nil
	}
	l, err := h.rt.Link(name)
	if err != nil {
		return err
	}
	if len(flags) > 0 {
		if err := h.rt.Do(rtnl.SetPort(l, flags...)); err != nil {
			return err
		}
	}
	if !conf.usesVLANs() {
		return nil
	}
	return conf.setVLANs(l)
}

// setVLANs makes the port a member of its VLANs: vlan untagged, those of the trunk tagged. A trunk without vlan has VLAN 1 untagged.
func (conf *bridgeConf) setVLANs(l rtnl.Link) error {
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: l.Name, Index: l.Index}}
	trunk := conf.trunk()
	if (conf.VLAN != 0 || len(trunk) > 0) && !conf.PreserveDefaultVLAN {
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
	native := conf.VLAN
	if native == 0 && len(trunk) > 0 {
		native = 1
	}
	if native != 0 {
		if err := netlink.BridgeVlanAdd(link, uint16(native), true, true, false, true); err != nil {
			return fmt.Errorf("set VLAN %d of %s: %w (needs CONFIG_BRIDGE_VLAN_FILTERING)", native, l.Name, err)
		}
	}
	for _, id := range trunk {
		if err := netlink.BridgeVlanAdd(link, uint16(id), false, false, false, true); err != nil {
			return fmt.Errorf("add VLAN %d to %s: %w", id, l.Name, err)
		}
	}
	return nil
}

// vlanPort names the interface with the gateways' addresses of a VLAN.
func (conf *bridgeConf) vlanPort() string { return fmt.Sprintf("%s.%d", conf.Bridge, conf.VLAN) }

// ensureVLANPort gives the interface that has the gateways' addresses of a VLAN: one end of a pair whose other end is a port of the
// bridge in that VLAN.
func ensureVLANPort(h *Host, conf *bridgeConf, br rtnl.Link) (rtnl.Link, error) {
	name := conf.vlanPort()
	if err := validName(name); err != nil {
		return rtnl.Link{}, err
	}
	l, err := h.rt.Link(name)
	if err == nil || !errors.Is(err, unix.ENODEV) {
		return l, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = name, conf.MTU, macOf(name)
	port := vethName(name, conf.Bridge)
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: port}); err != nil {
		return l, fmt.Errorf("create interface %s: %w", name, err)
	}
	peer, err := h.rt.Link(port)
	if err != nil {
		return l, err
	}
	on := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port, Index: peer.Index}}
	if err := netlink.LinkSetMasterByIndex(on, br.Index); err != nil {
		return l, fmt.Errorf("connect %s to bridge %s: %w", port, br.Name, err)
	}
	access := *conf
	access.VLANTrunk = nil
	if err := access.setVLANs(peer); err != nil {
		return l, err
	}
	if err := h.rt.Do(rtnl.SetUp(port, true), rtnl.SetUp(name, true)); err != nil {
		return l, err
	}
	return h.rt.Link(name)
}
