// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"crishim.dev/cni/builtin/testpod"
)

// With macspoofchk a pod's frames with another source address go nowhere.
func TestForgedHardwareAddress(t *testing.T) {
	n := open(t, nil)
	write(t, n, "10-x.conflist", strings.Replace(listOf("x", "10.4.0.0/24"), `"isDefaultGateway"`, `"macspoofchk":true,"isDefaultGateway"`, 1))
	a, b := testpod.New(t, 1), testpod.New(t, 2)
	attach(t, n, podOf(a))
	rb := attach(t, n, podOf(b))
	serve(t, b, ":80")
	if _, err := ask(t, a, addrPort(rb.IPs[0], 80)); err != nil {
		t.Fatal("with its own address:", err)
	}
	a.Do(t, func() error {
		eth, err := netlink.LinkByName(ifName)
		if err != nil {
			return err
		}
		return netlink.LinkSetHardwareAddr(eth, net.HardwareAddr{2, 1, 2, 3, 4, 5})
	})
	if _, err := ask(t, a, addrPort(rb.IPs[0], 80)); err == nil {
		t.Error("with a forged address it is answered")
	}
	detach(t, n, podOf(a))
	detach(t, n, podOf(b))
	if left := slices.DeleteFunc(testpod.Ruleset(t), func(l string) bool { return !strings.Contains(l, "guarded") && !strings.Contains(l, "macs") }); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
