// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/cni/builtin/sysctl"
	"crishim.dev/internal/errs"
)

func validName(ifname string) error {
	if err := utils.ValidateInterfaceName(ifname); err != nil {
		return errs.As(errs.Invalid, err)
	}
	if strings.ContainsAny(ifname, "%\x00") {
		return errs.Newf(errs.Invalid, "interface name %q", ifname)
	}
	return nil
}

// ensureBridge gives the bridge, made and set right when it is missing or not as configured, and the interface that has the gateways'
// addresses: the bridge, or with a VLAN one of its own. It looks each time: the bridge may have been deleted, and that costs a fraction of
// what follows.
func (h *Host) ensureBridge(conf *bridgeConf, own []netip.Prefix) (br, gateway rtnl.Link, err error) {
	h.bridge.Lock()
	defer h.bridge.Unlock()
	br, err = h.rt.Link(conf.Bridge)
	if errors.Is(err, unix.ENODEV) {
		if err := createBridge(conf); err != nil {
			return br, br, err
		}
		br, err = h.rt.Link(conf.Bridge)
	}
	if err != nil {
		return br, br, err
	}
	if br.Kind != "bridge" {
		return br, br, errs.Newf(errs.Precondition, "interface %s exists and is not a bridge", conf.Bridge)
	}
	if !br.Up {
		if err := h.rt.Do(rtnl.SetUp(br.Name, true)); err != nil {
			return br, br, err
		}
	}
	if conf.PromiscMode && !br.Promis {
		if err := netlink.SetPromiscOn(asLink(br)); err != nil {
			return br, br, fmt.Errorf("set bridge %s promiscuous: %w", br.Name, err)
		}
	}
	gateway = br
	if conf.VLAN != 0 && len(own) > 0 {
		if gateway, err = ensureVLANPort(h, conf, br); err != nil {
			return br, br, err
		}
	}
	if err := h.ensureAddrs(gateway, conf.ForceAddress, own); err != nil {
		return br, br, err
	}
	return br, gateway, sysctl.Forward(own)
}

// createBridge makes the bridge with an address of its own choice: with a given one it does not take over that of whichever port is
// lowest, which would change with the pods.
func createBridge(conf *bridgeConf) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = conf.Bridge, conf.MTU
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("create bridge %s: %w", conf.Bridge, err)
	}
	attrs.HardwareAddr = macOf(host + "/" + conf.Bridge)
	br := &netlink.Bridge{LinkAttrs: attrs}
	if filtering := conf.usesVLANs(); filtering {
		br.VlanFiltering = &filtering
	}
	err = netlink.LinkAdd(br)
	if errors.Is(err, unix.EOPNOTSUPP) && br.VlanFiltering != nil {
		return errs.Newf(errs.Unsupported, "create bridge %s: VLANs need a kernel with CONFIG_BRIDGE_VLAN_FILTERING: %w", conf.Bridge, err)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("create bridge %s: %w", conf.Bridge, err)
	}
	// The routes of this interface are ours: a pod that sends router advertisements must not change them. Without duplicate address detection
	// its link-local address works at once: until then the kernel could not ask for the neighbours of forwarded packets.
	for _, s := range []string{"accept_ra", "accept_dad"} {
		if err := sysctl.Write("net/ipv6/conf/"+conf.Bridge+"/"+s, "0"); err != nil && !errors.Is(err, os.ErrNotExist) { // no IPv6 here
			return err
		}
	}
	return nil
}

// ensureAddrs puts the gateways' addresses on the bridge. An IPv4 address, or one in an overlapping IPv6 subnet, that is there already
// is an error, unless force says to replace it.
func (h *Host) ensureAddrs(br rtnl.Link, force bool, own []netip.Prefix) error {
	if len(own) == 0 {
		return nil
	}
	have, err := h.rt.Addrs(br.Index)
	if err != nil {
		return err
	}
	for _, want := range own {
		present := false
		for _, a := range have {
			switch {
			case a == want:
				present = true
			case isOurs(own, a), a.Addr().Is4() != want.Addr().Is4(), want.Addr().Is6() && !a.Overlaps(want):
			case !force:
				return errs.Newf(errs.Precondition, "bridge %s already has the address %s, which differs from %s", br.Name, a, want)
			default:
				if err := h.rt.Do(rtnl.DeleteAddr(br.Index, a).Allow(unix.EADDRNOTAVAIL)); err != nil {
					return err
				}
			}
		}
		if present {
			continue
		}
		if err := h.rt.Do(rtnl.AddAddr(br.Index, want, false).Allow(unix.EEXIST)); err != nil {
			return prefixed("bridge "+br.Name, err)
		}
	}
	return nil
}

func isOurs(own []netip.Prefix, a netip.Prefix) bool {
	return slices.Contains(own, a)
}

func sameMAC(a net.HardwareAddr, text string) bool {
	b, err := net.ParseMAC(text)
	return text == "" || err == nil && bytes.Equal(a, b)
}

// asLink is an interface as package netlink wants it.
func asLink(l rtnl.Link) netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: l.Name, Index: l.Index}, LinkType: l.Kind}
}
