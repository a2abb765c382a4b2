// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"context"
	"net"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/internal/errs"
)

const loopbackName = "lo"

func checkLoopback(config []byte) error {
	var conf header
	return decode(config, &conf)
}

// loopback brings lo up. With a previous result it passes that on.
func loopback(_ context.Context, h *Host, c *Call) (types.Result, error) {
	var conf header
	if err := c.decode(&conf); err != nil {
		return nil, err
	}
	switch c.Command {
	case "ADD":
		return loopbackAdd(c, &conf)
	case "CHECK":
		return nil, loopbackCheck(c)
	case "DEL":
		if c.Pod == nil {
			return nil, nil // lo ends with its namespace
		}
		pod, err := c.pod()
		if err != nil {
			return nil, err
		}
		return nil, pod.Do(rtnl.SetUp(loopbackName, false))
	case "GC", "STATUS":
		return nil, nil
	}
	return nil, unknownCommand(c)
}

func loopbackAdd(c *Call, conf *header) (types.Result, error) {
	pod, err := c.pod()
	if err != nil {
		return nil, err
	}
	if err := pod.Do(rtnl.SetUp(loopbackName, true)); err != nil {
		return nil, err
	}
	prev, err := conf.previous()
	if err != nil || prev != nil {
		return prev, err
	}
	lo, err := pod.Link(loopbackName)
	if err != nil {
		return nil, err
	}
	addrs, err := pod.Addrs(lo.Index)
	if err != nil {
		return nil, err
	}
	res := result(&current.Interface{Name: loopbackName, Mac: "00:00:00:00:00:00", Sandbox: c.NetNS})
	for _, a := range addrs {
		if !a.Addr().IsLoopback() {
			return nil, errs.Newf(errs.Precondition, "loopback interface has the address %s", a)
		}
		res.IPs = append(res.IPs, &current.IPConfig{Interface: new(0),
			Address: net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}})
	}
	return res, nil
}

func loopbackCheck(c *Call) error {
	if c.Pod == nil {
		return nil
	}
	pod, err := c.pod()
	if err != nil {
		return err
	}
	lo, err := pod.Link(loopbackName)
	if err != nil {
		return err
	}
	if !lo.Up {
		return errs.Newf(errs.Precondition, "loopback interface is down")
	}
	return nil
}
