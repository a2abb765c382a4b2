// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/godbus/dbus/v5"

	"crishim.dev/internal/errs"
)

// firewallConf is the configuration of the firewall plugin. Policies and names that are made of iptables rules are not understood.
type firewallConf struct {
	header
	Backend       string `json:"backend"`
	FirewalldZone string `json:"firewalldZone"`
	IngressPolicy string `json:"ingressPolicy"`
}

const (
	firewalld     = "org.fedoraproject.FirewallD1"
	firewalldPath = dbus.ObjectPath("/org/fedoraproject/FirewallD1")
	// firewalldPatience bounds one call: a firewall that reloads is slow, one that hangs must not hang pods.
	firewalldPatience = 10 * time.Second
)

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
		return prev, conf.eachSubnet(ctx, prev, conf.trust)
	case "CHECK":
		if prev == nil {
			return nil, errs.Newf(errs.Invalid, "missing prevResult from earlier plugin")
		}
		return nil, conf.eachSubnet(ctx, prev, func(call firewalldCall, subnet string) error {
			if ok, err := call.trusts(conf.FirewalldZone, subnet); err != nil || !ok {
				return errs.Newf(errs.Precondition, "firewalld zone %s lacks the source %s (%v)", conf.FirewalldZone, subnet, err)
			}
			return nil
		})
	case "DEL", "GC", "STATUS":
		return nil, nil
	}
	return nil, unknownCommand(c)
}

type firewalldCall func(method string, into any, args ...any) error

func (call firewalldCall) trusts(zone, subnet string) (bool, error) {
	var yes bool
	err := call("zone.querySource", &yes, zone, subnet)
	return yes, err
}

// eachSubnet connects to firewalld and calls f for each of the result's subnets; nothing happens where firewalld doesn't run.
func (conf *firewallConf) eachSubnet(ctx context.Context, prev *current.Result, f func(firewalldCall, string) error) error {
	ctx, cancel := context.WithTimeout(ctx, firewalldPatience)
	defer cancel()
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return conf.absent(fmt.Errorf("connect to the system bus: %w", err))
	}
	defer bus.Close()
	var owner string
	if err := bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, firewalld).Store(&owner); err != nil {
		return conf.absent(fmt.Errorf("find firewalld: %w", err))
	}
	object := bus.Object(owner, firewalldPath)
	call := func(method string, into any, args ...any) error {
		return object.CallWithContext(ctx, firewalld+"."+method, 0, args...).Store(into)
	}
	done := map[netip.Prefix]bool{}
	for _, ip := range prev.IPs {
		subnet := prefixOf(ip.Address).Masked()
		if done[subnet] {
			continue
		}
		done[subnet] = true
		if err := f(call, subnet.String()); err != nil {
			return err
		}
	}
	return nil
}

// absent says whether it matters that firewalld doesn't run.
func (conf *firewallConf) absent(why error) error {
	if conf.Backend == "firewalld" {
		return errs.As(errs.Unavailable, why)
	}
	return nil
}

// trust registers a subnet.
func (conf *firewallConf) trust(call firewalldCall, subnet string) error {
	if ok, err := call.trusts(conf.FirewalldZone, subnet); err == nil && ok {
		return nil
	}
	var zone string
	err := call("zone.addSource", &zone, conf.FirewalldZone, subnet)
	if err != nil && !strings.Contains(err.Error(), "ZONE_ALREADY_SET") {
		return errs.Newf(errs.Unavailable, "add %s to firewalld zone %s: %w", subnet, conf.FirewalldZone, err)
	}
	return nil
}
