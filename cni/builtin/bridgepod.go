// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"net/netip"

	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"crishim.dev/cni/builtin/rtnl"
)

// configurePod brings lo and the pod's end up and gives it addresses and routes: one question for its index, then one datagram.
func configurePod(pod *rtnl.Conn, ifname string, res *current.Result, conf *bridgeConf) (rtnl.Link, error) {
	eth, err := pod.Link(ifname)
	if err != nil || conf.DisableContainerInterface {
		return eth, err
	}
	reqs := []rtnl.Request{rtnl.SetUp(ifname, true)}
	gateways := map[bool]netip.Addr{}
	for _, ip := range res.IPs {
		addr := prefixOf(ip.Address)
		reqs = append(reqs, rtnl.AddAddr(eth.Index, addr, conf.EnableDAD))
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok {
			if v4 := gw.Unmap().Is4(); !gateways[v4].IsValid() {
				gateways[v4] = gw.Unmap()
			}
		}
	}
	for _, r := range res.Routes {
		route := rtnl.Route{Dst: prefixOf(r.Dst), Index: eth.Index, Priority: r.Priority, Scope: r.Scope, MTU: r.MTU, AdvMSS: r.AdvMSS}
		if r.Table != nil {
			route.Table = *r.Table
		}
		if gw, ok := netip.AddrFromSlice(r.GW); ok {
			route.Gateway = gw.Unmap()
		} else {
			route.Gateway = gateways[route.Dst.Addr().Is4()]
		}
		// The same route twice (one of the configuration's, one for the default gateway) is one route.
		reqs = append(reqs, rtnl.AddRoute(route).Allow(unix.EEXIST))
	}
	return eth, pod.Do(reqs...)
}
