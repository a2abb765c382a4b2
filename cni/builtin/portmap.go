// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"context"
	"errors"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"crishim.dev/cni/builtin/nat"
	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/internal/errs"
)

// portmapConf is the configuration of the portmap plugin. Keys that shape iptables rules or add foreign conditions are not understood.
type portmapConf struct {
	header
	Backend *string `json:"backend"`
	SNAT    *bool   `json:"snat"`

	mappings []portMapping
}

type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

func checkPortmap(config []byte) error {
	_, err := parsePortmap(&Call{Config: config})
	return err
}

func parsePortmap(c *Call) (*portmapConf, error) {
	var conf portmapConf
	if err := c.decode(&conf); err != nil {
		return nil, err
	}
	if conf.Backend != nil && *conf.Backend != "nftables" {
		return nil, notUnderstood("backend %q", *conf.Backend)
	}
	if conf.SNAT != nil && !*conf.SNAT {
		return nil, notUnderstood("snat false")
	}
	var rc struct {
		PortMappings []portMapping `json:"portMappings"`
	}
	if err := open(conf.RuntimeConfig, &rc); err != nil {
		return nil, err
	}
	for _, m := range rc.PortMappings {
		switch {
		case m.ContainerPort <= 0 || m.ContainerPort > 65535:
			return nil, errs.Newf(errs.Invalid, "Invalid container port number: %d", m.ContainerPort)
		case m.HostPort <= 0 || m.HostPort > 65535:
			return nil, errs.Newf(errs.Invalid, "Invalid host port number: %d", m.HostPort)
		}
	}
	conf.mappings = rc.PortMappings
	return &conf, nil
}

func runPortmap(_ context.Context, h *Host, c *Call) (types.Result, error) {
	conf, err := parsePortmap(c)
	if err != nil {
		return nil, err
	}
	prev, err := conf.previous()
	if err != nil {
		return nil, err
	}
	switch c.Command {
	case "ADD":
		if prev == nil {
			return nil, errs.Newf(errs.Invalid, "must be called as chained plugin")
		}
		return prev, portmapAdd(h, c, conf, prev)
	case "DEL":
		if len(conf.mappings) == 0 {
			return nil, nil
		}
		if prev == nil { // whatever its addresses were
			return nil, h.nat.Release(func(owner string) bool { return owner != c.Container })
		}
		ports, err := conf.ports(c, prev)
		if err != nil {
			return nil, err
		}
		return nil, h.nat.Unpublish(c.Container, ports)
	case "CHECK":
		if prev == nil {
			return nil, errs.Newf(errs.Invalid, "Required prevResult missing")
		}
		ports, err := conf.ports(c, prev)
		if err != nil || len(ports) == 0 {
			return nil, err
		}
		return nil, h.nat.Holds(c.Container, ports)
	case "GC":
		keep := map[string]bool{}
		for a := range conf.valid() {
			keep[a.ContainerID] = true
		}
		return nil, h.nat.Release(func(owner string) bool { return keep[owner] })
	case "STATUS":
		return nil, nil
	}
	return nil, unknownCommand(c)
}

func portmapAdd(h *Host, c *Call, conf *portmapConf, prev *current.Result) error {
	ports, err := conf.ports(c, prev)
	if err != nil || len(ports) == 0 {
		return err
	}
	var subnets []netip.Prefix
	for _, ip := range prev.IPs {
		subnets = append(subnets, prefixOf(ip.Address).Masked())
	}
	if err := h.nat.Masquerade(subnets, nil); err != nil {
		return err
	}
	live := h.opts.Live
	if live == nil {
		live = func(string) bool { return true }
	}
	if err := h.nat.Publish(c.Container, ports, live); err != nil {
		return err
	}
	h.old.Drop(ports)
	return reachable(h, prev)
}

// reachable prepares the bridge port and the bridge that the pod is on. Hairpin mode lets the pod reach itself over its host port even where
// bridge-nf-call-iptables makes the kernel rewrite destinations on the bridge, below routing.
func reachable(h *Host, prev *current.Result) error {
	for _, i := range prev.Interfaces {
		if i.Sandbox != "" {
			continue
		}
		l, err := h.rt.Link(i.Name)
		if errors.Is(err, enodev) {
			continue // some plugins list interfaces that they have moved elsewhere
		}
		if err != nil {
			return err
		}
		switch {
		case l.Kind == "bridge":
			err = h.nat.Localnet(l.Name)
		case l.Kind == "veth" && l.Master != 0:
			err = h.rt.Do(rtnl.SetPort(l, rtnl.Hairpin))
		case l.Kind == "veth": // of a plugin that routes to it
			err = h.nat.Localnet(l.Name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ports pairs the mappings with the pod's first address of each family. A mapping with a host address goes to that family only.
func (conf *portmapConf) ports(c *Call, prev *current.Result) ([]nat.Port, error) {
	var addrs []netip.Addr
	seen := map[bool]bool{}
	for _, ip := range prev.IPs {
		addr := prefixOf(ip.Address).Addr()
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(prev.Interfaces) {
			if on := prev.Interfaces[*i]; on.Name != c.IfName || on.Sandbox == "" {
				continue
			}
		}
		if !seen[addr.Is4()] {
			seen[addr.Is4()] = true
			addrs = append(addrs, addr)
		}
	}
	var out []nat.Port
	for _, m := range conf.mappings {
		proto, err := nat.ParseProto(m.Protocol)
		if err != nil {
			return nil, err
		}
		var host netip.Addr
		if m.HostIP != "" {
			if host, err = netip.ParseAddr(m.HostIP); err != nil {
				return nil, errs.Newf(errs.Invalid, "port mapping: %w", err)
			}
			host = host.Unmap()
		}
		for _, a := range addrs {
			if host.IsValid() && host.Is4() != a.Is4() {
				continue
			}
			p := nat.Port{Proto: proto, HostPort: uint16(m.HostPort), Addr: a, ContainerPort: uint16(m.ContainerPort)}
			if host.IsValid() && !host.IsUnspecified() {
				p.HostIP = host
			}
			out = append(out, p)
		}
	}
	return out, nil
}
