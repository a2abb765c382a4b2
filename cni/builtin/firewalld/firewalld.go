// SPDX-License-Identifier: Apache-2.0

// Package firewalld registers subnets as sources of a zone with firewalld, over D-Bus.
package firewalld

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"crishim.dev/internal/errs"
)

// ErrAbsent is returned when there is no system bus, or firewalld is not on it.
var ErrAbsent = errors.New("firewalld does not run")

const (
	name = "org.fedoraproject.FirewallD1"
	path = dbus.ObjectPath("/org/fedoraproject/FirewallD1")
	// patience bounds one call: a firewall that reloads is slow, one that hangs must not hang pods.
	patience = 10 * time.Second
)

// Trust makes the subnets sources of the zone. Those that are so already, or of another zone, stay.
func Trust(ctx context.Context, zone string, subnets []netip.Prefix) error {
	return dial(ctx, func(call caller) error {
		for _, s := range subnets {
			if ok, err := call.has(zone, s); err == nil && ok {
				continue
			}
			var in string
			err := call("zone.addSource", &in, zone, s.String())
			if err != nil && !strings.Contains(err.Error(), "ZONE_ALREADY_SET") {
				return errs.Newf(errs.Unavailable, "add %s to firewalld zone %s: %w", s, zone, err)
			}
		}
		return nil
	})
}

// Check says whether the subnets are sources of the zone: errs.Precondition if not.
func Check(ctx context.Context, zone string, subnets []netip.Prefix) error {
	return dial(ctx, func(call caller) error {
		for _, s := range subnets {
			if ok, err := call.has(zone, s); err != nil || !ok {
				return errs.Newf(errs.Precondition, "firewalld zone %s lacks the source %s (%v)", zone, s, err)
			}
		}
		return nil
	})
}

// caller calls one of firewalld's methods.
type caller func(method string, into any, args ...any) error

func (call caller) has(zone string, subnet netip.Prefix) (bool, error) {
	var yes bool
	err := call("zone.querySource", &yes, zone, subnet.String())
	return yes, err
}

// dial connects to firewalld for as long as f takes.
func dial(ctx context.Context, f func(caller) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return errs.Newf(errs.Unavailable, "connect to the system bus: %w (%w)", err, ErrAbsent)
	}
	defer bus.Close()
	var owner string
	if err := bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, name).Store(&owner); err != nil {
		return errs.Newf(errs.Unavailable, "find firewalld: %w (%w)", err, ErrAbsent)
	}
	object := bus.Object(owner, path)
	return f(func(method string, into any, args ...any) error {
		return object.CallWithContext(ctx, name+"."+method, 0, args...).Store(into)
	})
}
