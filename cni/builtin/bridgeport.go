// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/cni/builtin/vlan"
)

func (conf *bridgeConf) usesVLANs() bool { return conf.VLAN != 0 || conf.VLANTrunk != nil }

func (conf *bridgeConf) vlans() vlan.Port {
	return vlan.Port{Native: conf.VLAN, Trunk: conf.VLANTrunk, KeepDefault: conf.PreserveDefaultVLAN}
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
	return conf.vlans().Join(asLink(l))
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
	if err := netlink.LinkSetMasterByIndex(asLink(peer), br.Index); err != nil {
		return l, fmt.Errorf("connect %s to bridge %s: %w", port, br.Name, err)
	}
	access := conf.vlans()
	access.Trunk = nil
	if err := access.Join(asLink(peer)); err != nil {
		return l, err
	}
	if err := h.rt.Do(rtnl.SetUp(port, true), rtnl.SetUp(name, true)); err != nil {
		return l, err
	}
	return h.rt.Link(name)
}
