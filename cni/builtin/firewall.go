// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"crishim.dev/cni/builtin/firewalld"
	"crishim.dev/internal/errs"
)

// firewallConf is the configuration of the firewall plugin. Policies and names that are made of iptables rules are not understood.
type firewallConf struct {
	header
	Backend       string `json:"backend"`
	FirewalldZone string `json:"firewalldZone"`
	IngressPolicy string `json:"ingressPolicy"`
}

func checkFirewall(config []byte) error {
	_, err := parseFirewall(&Call{Config: config})
	return err
}

func parseFirewall(c *Call) (*firewallConf, error) {
	conf := &firewallConf{FirewalldZone: "trusted"}
	if err := c.decode(conf); err != nil {
		return nil, err
	}
	if conf.Backend != "" && conf.Backend != "firewalld" {
		return nil, notUnderstood("backend %q of firewall", conf.Backend)
	}
	if conf.IngressPolicy != "" && conf.IngressPolicy != "open" {
		return nil, notUnderstood("ingressPolicy %q of firewall", conf.IngressPolicy)
	}
	if conf.FirewalldZone == "" {
		conf.FirewalldZone = "trusted"
	}
	return conf, nil
}

// runFirewall makes firewalld, where it runs, treat the pods' subnets as a trusted zone. A subnet stays registered: others of its pods
// may come, and firewalld forgets it when it restarts. Without firewalld there is nothing to do: what other rules do to pods is theirs.
func runFirewall(ctx context.Context, h *Host, c *Call) (types.Result, error) {
	conf, err := parseFirewall(c)
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
			return nil, errs.Newf(errs.Invalid, "missing prevResult from earlier plugin")
		}
		return prev, conf.present(firewalld.Trust(ctx, conf.FirewalldZone, subnetsOf(prev)))
	case "CHECK":
		if prev == nil {
			return nil, errs.Newf(errs.Invalid, "missing prevResult from earlier plugin")
		}
		return nil, conf.present(firewalld.Check(ctx, conf.FirewalldZone, subnetsOf(prev)))
	case "DEL", "GC", "STATUS":
		return nil, nil
	}
	return nil, unknownCommand(c)
}

// present says whether it matters that firewalld doesn't run.
func (conf *firewallConf) present(err error) error {
	if errors.Is(err, firewalld.ErrAbsent) && conf.Backend != "firewalld" {
		return nil
	}
	return err
}

// subnetsOf lists the subnets of a result's addresses, each once.
func subnetsOf(res *current.Result) []netip.Prefix {
	var out []netip.Prefix
	for _, ip := range res.IPs {
		if n := prefixOf(ip.Address).Masked(); !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}
