// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/internal/errs"
)

// bridgeCheck compares what ADD gave with what is there.
func (h *Host) bridgeCheck(ctx context.Context, c *Call, conf *bridgeConf) error {
	if err := h.ipam(ctx, c, conf, nil); err != nil {
		return err
	}
	prev, err := conf.previous()
	if err != nil {
		return err
	}
	if prev == nil {
		return errs.Newf(errs.Invalid, "Required prevResult missing")
	}
	br, err := h.rt.Link(conf.Bridge)
	if err != nil {
		return err
	}
	if br.Kind != "bridge" {
		return errs.Newf(errs.Precondition, "interface %s is not a bridge", br.Name)
	}
	if br.Promis != conf.PromiscMode {
		return errs.Newf(errs.Precondition, "bridge %s: promiscuous mode is %t, configured %t", br.Name, br.Promis, conf.PromiscMode)
	}
	host, err := h.rt.Link(vethName(c.Container, c.IfName))
	if err != nil {
		return err
	}
	if host.Master != br.Index {
		return errs.Newf(errs.Precondition, "interface %s is not a port of bridge %s", host.Name, br.Name)
	}
	for _, i := range prev.Interfaces {
		for _, l := range []rtnl.Link{br, host} {
			if i.Sandbox == "" && i.Name == l.Name && !sameMAC(l.MAC, i.Mac) {
				return errs.Newf(errs.Precondition, "interface %s has the address %s, not %s", l.Name, l.MAC, i.Mac)
			}
		}
	}
	if c.Pod == nil {
		return nil
	}
	return checkPod(c, prev, host)
}

// checkPod looks at the pod's end: that it is the peer, and has its addresses and routes.
func checkPod(c *Call, prev *current.Result, host rtnl.Link) error {
	pod, err := c.pod()
	if err != nil {
		return err
	}
	eth, err := pod.Link(c.IfName)
	if err != nil {
		return err
	}
	if eth.Kind != "veth" || host.Peer != eth.Index || eth.Peer != host.Index {
		return errs.Newf(errs.Precondition, "interface %s of the pod is not the other end of %s", c.IfName, host.Name)
	}
	for _, i := range prev.Interfaces {
		if i.Sandbox != "" && i.Name == c.IfName && !sameMAC(eth.MAC, i.Mac) {
			return errs.Newf(errs.Precondition, "interface %s of the pod has the address %s, not %s", c.IfName, eth.MAC, i.Mac)
		}
	}
	addrs, err := pod.Addrs(eth.Index)
	if err != nil {
		return err
	}
	for _, ip := range prev.IPs {
		if ip.Interface != nil && (*ip.Interface >= len(prev.Interfaces) || prev.Interfaces[*ip.Interface].Name != c.IfName) {
			continue
		}
		if want := prefixOf(ip.Address); !slices.Contains(addrs, want) {
			return errs.Newf(errs.Precondition, "interface %s of the pod lacks the address %s", c.IfName, want)
		}
	}
	return checkRoutes(pod, prev.Routes)
}

func checkRoutes(pod *rtnl.Conn, want []*types.Route) error {
	have, err := pod.Routes()
	if err != nil {
		return err
	}
	for _, w := range want {
		dst := prefixOf(w.Dst).Masked()
		gw, _ := netip.AddrFromSlice(w.GW)
		if !slices.ContainsFunc(have, func(r rtnl.Route) bool {
			return r.Dst == dst && (!gw.IsValid() || gw.Unmap() == r.Gateway)
		}) {
			return errs.Newf(errs.Precondition, "the pod lacks the route to %s", dst)
		}
	}
	return nil
}

// bridgeGC deletes what belongs to no valid attachment: with our own leases by those, so that pods of others on the bridge are safe;
// else every port with a name as ours has. Then the IPAM plugin does the same.
func (h *Host) bridgeGC(ctx context.Context, c *Call, conf *bridgeConf) error {
	valid := conf.valid()
	var dead []string
	if conf.ownIPAM() {
		store, err := hostLocalStore(h, &conf.header)
		if err != nil {
			return err
		}
		all, err := store.All()
		if err != nil {
			return err
		}
		for _, l := range all {
			if !l.Foreign && !valid[types.GCAttachment{ContainerID: l.Owner.Container, IfName: l.Owner.IfName}] {
				dead = append(dead, vethName(l.Owner.Container, l.Owner.IfName))
			}
		}
	} else if br, err := h.rt.Link(conf.Bridge); err == nil {
		links, err := h.rt.Links()
		if err != nil {
			return err
		}
		keep := map[string]bool{}
		for a := range valid {
			keep[vethName(a.ContainerID, a.IfName)] = true
		}
		for _, l := range links {
			if l.Kind == "veth" && l.Master == br.Index && isVethName(l.Name) && !keep[l.Name] {
				dead = append(dead, l.Name)
			}
		}
	}
	if err := h.DeleteLinks(dead); err != nil {
		return err
	}
	return h.ipam(ctx, c, conf, nil)
}

func isVethName(name string) bool {
	hash, ok := strings.CutPrefix(name, "veth")
	return ok && len(hash) == 11 && strings.Trim(hash, "0123456789abcdef") == ""
}
