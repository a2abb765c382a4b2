// SPDX-License-Identifier: Apache-2.0

// Package sysctl sets what the kernel has below /proc/sys for this process's network namespace.
package sysctl

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
)

// Forward lets this network namespace route for the families of the addresses.
func Forward(addrs []netip.Prefix) error {
	done := map[bool]bool{}
	for _, a := range addrs {
		v4 := a.Addr().Is4()
		if done[v4] {
			continue
		}
		done[v4] = true
		name := "net/ipv6/conf/all/forwarding"
		if v4 {
			name = "net/ipv4/ip_forward"
		}
		if on, err := Read(name); err != nil || on == "1" {
			if err != nil {
				return err
			}
			continue
		}
		if !v4 {
			if err := keepRouters(); err != nil {
				return err
			}
		}
		if err := Write(name, "1"); err != nil {
			return err
		}
	}
	return nil
}

// keepRouters raises accept_ra from 1 to 2 everywhere: with forwarding on, 1 means "ignore", and a host that learned its default route
// from a router would lose it when the route expires.
func keepRouters() error {
	names, err := os.ReadDir("/proc/sys/net/ipv6/conf")
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, n := range names {
		if n.Name() == "all" || n.Name() == "default" {
			continue
		}
		name := "net/ipv6/conf/" + n.Name() + "/accept_ra"
		v, err := Read(name)
		if err == nil && v == "1" {
			err = Write(name, "2")
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Read gives the value of a file below /proc/sys.
func Read(name string) (string, error) {
	b, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", name, err)
	}
	return string(bytes.TrimSpace(b)), nil
}

// Write sets a file below /proc/sys.
func Write(name, value string) error {
	if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl %s=%s: %w", name, value, err)
	}
	return nil
}
