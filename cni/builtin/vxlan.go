// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"

	"crishim.dev/cni/builtin/lease"
	"crishim.dev/cni/builtin/overlay"
	"crishim.dev/internal/errs"
)

// vxlanConf is the configuration of the vxlan plugin: pods of several nodes in one flat network. On each node they are on a bridge with
// addresses of the node's own subnet; between nodes their packets travel in VXLAN, and what leaves the network is masqueraded.
//
//	{"type": "vxlan", "network": ["10.244.0.0/16"], "peersFile": "/etc/shim/peers.json"}
//
// with the same file on every node: [{"node": "192.0.2.1", "subnets": ["10.244.1.0/24"]}, …].
type vxlanConf struct {
	header
	// Network is the whole, for each family; Subnets this node's parts of it, by default those of its entry among the peers.
	Network []netip.Prefix `json:"network"`
	Subnets []netip.Prefix `json:"subnets"`
	// Node is this node's address; by default that of the peer which is an address of this host.
	Node      netip.Addr     `json:"node"`
	Peers     []overlay.Peer `json:"peers"`
	PeersFile string         `json:"peersFile"`
	VNI       int            `json:"vni"`
	Port      int            `json:"port"`
	Device    string         `json:"device"`
	Bridge    string         `json:"bridge"`
	// MTU of pods; by default what fits into the node's interface.
	MTU     int    `json:"mtu"`
	IPMasq  *bool  `json:"ipMasq"`
	DataDir string `json:"dataDir"`
}

const maxVNI = 1<<24 - 1

func checkVXLAN(config []byte) error {
	conf, err := parseVXLAN(&Call{Config: config})
	if err != nil {
		return err
	}
	return conf.validate()
}

func parseVXLAN(c *Call) (*vxlanConf, error) {
	conf := &vxlanConf{VNI: 1, Port: 4789, Device: "shimvx", Bridge: "shimvx0"}
	if err := c.decode(conf); err != nil {
		return nil, err
	}
	return conf, nil
}

func (conf *vxlanConf) validate() error {
	switch {
	case len(conf.Network) == 0:
		return errs.Newf(errs.Invalid, "vxlan: no network")
	case conf.VNI < 1 || conf.VNI > maxVNI:
		return errs.Newf(errs.Invalid, "vxlan: vni %d", conf.VNI)
	case conf.Port < 1 || conf.Port > 65535:
		return errs.Newf(errs.Invalid, "vxlan: port %d", conf.Port)
	case conf.MTU < 0 || conf.MTU > 65535:
		return errs.Newf(errs.Invalid, "vxlan: mtu %d", conf.MTU)
	case len(conf.Peers) == 0 && conf.PeersFile == "" && (len(conf.Subnets) == 0 || !conf.Node.IsValid()):
		return errs.Newf(errs.Invalid, "vxlan: neither peers nor a file of peers")
	}
	for _, n := range conf.Network {
		if n.Masked() != n || n.Bits() == 0 {
			return errs.Newf(errs.Invalid, "vxlan: network %s is none", n)
		}
	}
	return errors.Join(prefixed("bridge", validName(conf.Bridge)), prefixed("device", validName(conf.Device)), conf.inside(conf.Subnets))
}

// inside checks that subnets are parts of the network, with room for pods.
func (conf *vxlanConf) inside(subnets []netip.Prefix) error {
	for _, s := range subnets {
		if !slices.ContainsFunc(conf.Network, func(n netip.Prefix) bool { return n.Bits() <= s.Bits() && n.Contains(s.Addr()) }) {
			return errs.Newf(errs.Invalid, "vxlan: subnet %s is not in the network %v", s, conf.Network)
		}
		r := lease.Range{Subnet: s}
		if err := r.Complete(); err != nil {
			return prefixed("vxlan", err)
		}
	}
	return nil
}

// join makes the overlay, or sees that it is there.
func (h *Host) join(conf *vxlanConf) (overlay.Self, error) {
	self, err := h.over.Ensure(overlay.Spec{Device: conf.Device, VNI: conf.VNI, Port: conf.Port, Node: conf.Node, Subnets: conf.Subnets,
		MTU: conf.MTU, Peers: conf.Peers, File: conf.PeersFile})
	if err == nil {
		err = conf.inside(self.Subnets)
	}
	return self, err
}

// Prepare sets up what a configuration needs before the first pod: for vxlan the tunnel, so that it follows its file of peers from the
// daemon's start on.
func (h *Host) Prepare(typ string, config []byte) error {
	if typ != "vxlan" {
		return nil
	}
	conf, err := parseVXLAN(&Call{Config: config})
	if err == nil {
		err = conf.validate()
	}
	if err != nil {
		return err
	}
	_, err = h.join(conf)
	return err
}

func runVXLAN(ctx context.Context, h *Host, c *Call) (types.Result, error) {
	conf, err := parseVXLAN(c)
	if err != nil {
		return nil, err
	}
	var self overlay.Self
	switch c.Command {
	case "ADD":
		if err := conf.validate(); err != nil {
			return nil, err
		}
		if self, err = h.join(conf); err != nil {
			return nil, err
		}
		masq := self.Subnets
		if conf.IPMasq != nil && !*conf.IPMasq {
			masq = nil
		}
		if err := h.nat.Masquerade(conf.Network, masq); err != nil {
			return nil, err
		}
	case "CHECK":
		if err := h.checkOverlay(conf); err != nil {
			return nil, err
		}
		self.Subnets = conf.Network // any will do: the lease is looked up by its owner
	case "STATUS":
		return nil, h.Prepare("vxlan", c.Config)
	default:
		self.Subnets = conf.Network
	}
	bridge := *c
	if bridge.Config, err = conf.bridge(self); err != nil {
		return nil, err
	}
	return runBridge(ctx, h, &bridge)
}

func (h *Host) checkOverlay(conf *vxlanConf) error {
	l, err := h.rt.Link(conf.Device)
	if err != nil {
		return err
	}
	if l.Kind != "vxlan" || !l.Up {
		return errs.Newf(errs.Precondition, "interface %s is no tunnel that is up", conf.Device)
	}
	return nil
}

// bridge is the configuration of the bridge on which this node's pods are.
func (conf *vxlanConf) bridge(self overlay.Self) ([]byte, error) {
	type object = map[string]any
	var ranges [][]object
	for _, s := range self.Subnets {
		ranges = append(ranges, []object{{"subnet": s}})
	}
	ipam := object{"type": "host-local", "ranges": ranges}
	if conf.DataDir != "" {
		ipam["dataDir"] = conf.DataDir
	}
	b := object{"cniVersion": conf.CNIVersion, "name": conf.Name, "type": "bridge", "bridge": conf.Bridge, "isDefaultGateway": true,
		"mtu": self.MTU, "dns": conf.DNS, "ipam": ipam}
	for key, raw := range map[string]json.RawMessage{"args": conf.Args, "prevResult": conf.PrevResult} {
		if len(raw) > 0 {
			b[key] = raw
		}
	}
	if len(conf.Attachments)+len(conf.OtherAttachments) > 0 {
		b["cni.dev/valid-attachments"] = append(conf.Attachments, conf.OtherAttachments...)
	}
	out, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("configure bridge of vxlan: %w", err)
	}
	return out, nil
}
