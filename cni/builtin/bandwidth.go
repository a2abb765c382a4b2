// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/cni/builtin/shape"
	"crishim.dev/internal/errs"
	"crishim.dev/internal/undo"
)

// rates are bits per second and bits; ingress and egress as the pod sees them.
type rates struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

// bandwidthConf is the configuration of the bandwidth plugin: fixed limits, or those of the runtime.
type bandwidthConf struct {
	header
	rates
}

func checkBandwidth(config []byte) error {
	conf, err := parseBandwidth(&Call{Config: config})
	if err != nil {
		return err
	}
	return conf.validate()
}

func parseBandwidth(c *Call) (*bandwidthConf, error) {
	var conf bandwidthConf
	if err := c.decode(&conf); err != nil {
		return nil, err
	}
	if conf.rates != (rates{}) {
		return &conf, nil
	}
	var rc struct {
		Bandwidth rates `json:"bandwidth"`
	}
	if err := open(conf.RuntimeConfig, &rc); err != nil {
		return nil, err
	}
	conf.rates = rc.Bandwidth
	return &conf, nil
}

func (conf *bandwidthConf) validate() error {
	for _, p := range [][2]uint64{{conf.IngressRate, conf.IngressBurst}, {conf.EgressRate, conf.EgressBurst}} {
		switch rate, burst := p[0], p[1]; {
		case rate != 0 && burst == 0:
			return errs.Newf(errs.Invalid, "if rate is set, burst must also be set")
		case rate == 0 && burst != 0:
			return errs.Newf(errs.Invalid, "if burst is set, rate must also be set")
		case burst/8 >= math.MaxUint32:
			return errs.Newf(errs.Invalid, "burst cannot be more than 4GB")
		}
	}
	return nil
}

// runBandwidth shapes at the host's end: what goes to the pod by a queue of its own; what comes from it is sent through a queue on a
// device that exists only for that (ifb), since arriving packets can't be queued.
func runBandwidth(_ context.Context, h *Host, c *Call) (types.Result, error) {
	conf, err := parseBandwidth(c)
	if err != nil {
		return nil, err
	}
	switch c.Command {
	case "ADD":
		return bandwidthAdd(h, c, conf)
	case "DEL":
		return nil, bandwidthDel(h, c, conf)
	case "CHECK":
		return nil, bandwidthCheck(h, c, conf)
	case "GC", "STATUS":
		return nil, nil // the device goes with DEL of the attachment; without limits there is none
	}
	return nil, unknownCommand(c)
}

func bandwidthAdd(h *Host, c *Call, conf *bandwidthConf) (_ types.Result, err error) {
	var u undo.Stack
	defer u.Run(&err)
	if err := conf.validate(); err != nil {
		return nil, err
	}
	prev, err := conf.previous()
	if err != nil {
		return nil, err
	}
	if conf.rates == (rates{}) && prev != nil {
		return prev, nil
	}
	if prev == nil {
		return nil, errs.Newf(errs.Invalid, "must be called as chained plugin")
	}
	host, err := hostEnd(h, c, prev)
	if err != nil {
		return nil, err
	}
	if conf.IngressRate > 0 {
		if err := shape.Limit(asLink(host), conf.IngressRate, conf.IngressBurst); err != nil {
			return nil, err
		}
	}
	if conf.EgressRate == 0 {
		return prev, nil
	}
	name := ifbName(conf.Name, c.Container)
	ifb := &netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: host.MTU, Flags: 1}}
	if err := netlink.LinkAdd(ifb); err != nil {
		return nil, fmt.Errorf("create interface %s: %w", name, err)
	}
	u.Add(func() error { return h.rt.Do(rtnl.DeleteLink(name).Allow(enodev)) })
	l, err := h.rt.Link(name)
	if err != nil {
		return nil, err
	}
	if err := shape.Redirect(asLink(host), asLink(l)); err != nil {
		return nil, err
	}
	if err := shape.Limit(asLink(l), conf.EgressRate, conf.EgressBurst); err != nil {
		return nil, err
	}
	prev.Interfaces = append(prev.Interfaces, &current.Interface{Name: name, Mac: l.MAC.String()})
	return prev, nil
}

// hostEnd finds the host's end of the pod's interface among those of the previous result.
func hostEnd(h *Host, c *Call, prev *current.Result) (rtnl.Link, error) {
	peer := 0
	if c.Pod != nil {
		pod, err := c.pod()
		if err != nil {
			return rtnl.Link{}, err
		}
		eth, err := pod.Link(c.IfName)
		if err != nil {
			return rtnl.Link{}, err
		}
		peer = eth.Peer
	}
	for _, i := range prev.Interfaces {
		if i.Sandbox != "" {
			continue
		}
		l, err := h.rt.Link(i.Name)
		if err != nil && !errors.Is(err, enodev) {
			return l, err
		}
		if err == nil && l.Kind == "veth" && (peer == 0 || l.Index == peer) {
			return l, nil
		}
	}
	return rtnl.Link{}, errs.Newf(errs.Invalid, "no veth peer of container interface found in host ns")
}

func ifbName(network, container string) string {
	sum := sha256.Sum256([]byte(network + "/" + container))
	return "bwp" + hex.EncodeToString(sum[:])[:12]
}

func bandwidthDel(h *Host, c *Call, conf *bandwidthConf) error {
	if conf.rates == (rates{}) && conf.Capabilities["bandwidth"] {
		return nil // there was no limit
	}
	name := ifbName(conf.Name, c.Container)
	if c.Later != nil {
		c.Later([]string{name}, func() error { return nil })
		return nil
	}
	return h.rt.Do(rtnl.DeleteLink(name).Allow(enodev))
}

func bandwidthCheck(h *Host, c *Call, conf *bandwidthConf) error {
	prev, err := conf.previous()
	if err != nil {
		return err
	}
	if prev == nil {
		return errs.Newf(errs.Invalid, "must be called as a chained plugin")
	}
	host, err := hostEnd(h, c, prev)
	if err != nil || conf.rates == (rates{}) {
		return err
	}
	if conf.IngressRate > 0 {
		if err := shape.Check(asLink(host), conf.IngressRate, conf.IngressBurst); err != nil {
			return err
		}
	}
	if conf.EgressRate == 0 {
		return nil
	}
	l, err := h.rt.Link(ifbName(conf.Name, c.Container))
	if err != nil {
		return err
	}
	return shape.Check(asLink(l), conf.EgressRate, conf.EgressBurst)
}
