// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crishim.dev/cni/builtin/testpod"
)

// needVLANs skips a test where the kernel's bridges have no VLANs (CONFIG_BRIDGE_VLAN_FILTERING).
func needVLANs(t *testing.T) {
	t.Helper()
	testpod.Node(t)
	attrs, filtering := netlink.NewLinkAttrs(), true
	attrs.Name = "vlans0"
	br := &netlink.Bridge{LinkAttrs: attrs, VlanFiltering: &filtering}
	if err := netlink.LinkAdd(br); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("needs a kernel with CONFIG_BRIDGE_VLAN_FILTERING")
	} else if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(br); err != nil {
		t.Fatal(err)
	}
}

// Without VLANs in the kernel the reason says so, and nothing is left.
func TestNoVLANs(t *testing.T) {
	n := open(t, nil)
	write(t, n, "10-x.conflist", strings.Replace(listOf("x", "10.4.0.0/24"), `"isDefaultGateway"`, `"vlan":5,"isDefaultGateway"`, 1))
	_, err := n.Attach(t.Context(), podOf(testpod.New(t, 1)))
	if err != nil && !strings.Contains(err.Error(), "CONFIG_BRIDGE_VLAN_FILTERING") {
		t.Errorf("error %v", err)
	}
	if leases, e := n.host.Leases("x"); err != nil && (e != nil || len(leases) > 0) {
		t.Errorf("left %v, %v", leases, e)
	}
}

// What separates the ports of a bridge does so for packets: pods that are isolated reach the node and not each other; pods of two VLANs
// don't reach each other, those of one do.
func TestSeparatedPods(t *testing.T) {
	for name, c := range map[string]struct {
		keys  [3]string // of three pods
		reach bool      // the second by the first
	}{
		"isolated": {[3]string{`"portIsolation":true`, `"portIsolation":true`, `"portIsolation":true`}, false},
		"vlans":    {[3]string{`"vlan":5`, `"vlan":6`, `"vlan":5`}, false},
		"plain":    {[3]string{`"mtu":1400`, `"mtu":1400`, `"mtu":1400`}, true},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "vlans" {
				needVLANs(t)
			}
			n := open(t, nil)
			var pods [3]*testpod.Pod
			var ips [3]string
			for i, key := range c.keys {
				conf := `{"cniVersion":"1.1.0","name":"x","plugins":[{"type":"bridge","bridge":"x0",` + key + `,"ipam":{"type":"host-local","subnet":"10.4.0.0/24"}}]}`
				if name == "isolated" {
					conf = strings.Replace(conf, `"portIsolation"`, `"isGateway":true,"portIsolation"`, 1)
				}
				write(t, n, "10-x.conflist", conf)
				pods[i] = testpod.New(t, i)
				ips[i] = attach(t, n, podOf(pods[i])).IPs[0].String()
				serve(t, pods[i], ":80")
			}
			if _, err := ask(t, pods[0], ips[1]+":80"); (err == nil) != c.reach {
				t.Errorf("the first pod reaches the second: %v", err)
			}
			if _, err := ask(t, pods[0], ips[2]+":80"); (err == nil) != (name != "isolated") {
				t.Errorf("the first pod reaches the third: %v", err)
			}
			if name == "isolated" {
				if _, err := ask(t, nil, ips[1]+":80"); err != nil {
					t.Errorf("the node does not reach an isolated pod: %v", err)
				}
			}
		})
	}
}

// The node's ends of pods have no addresses: each would bring routes with it, and the kernel looks through all of them for every pod.
func TestHostEndsHaveNoAddress(t *testing.T) {
	n := open(t, nil)
	dual(t, n)
	for i := range 3 {
		attach(t, n, podOf(testpod.New(t, i)))
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() != "veth" {
			continue
		}
		if addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL); err != nil || len(addrs) > 0 {
			t.Errorf("%s has %v, %v", l.Attrs().Name, addrs, err)
		}
	}
}

// A bridge in promiscuous mode stays so, and CHECK sees when it is not.
func TestPromiscuousBridge(t *testing.T) {
	n := open(t, nil)
	write(t, n, "10-x.conflist", strings.Replace(listOf("x", "10.4.0.0/24"), `"isDefaultGateway"`, `"promiscMode":true,"isDefaultGateway"`, 1))
	p := podOf(testpod.New(t, 1))
	attach(t, n, p)
	br, err := netlink.LinkByName("x0")
	if err != nil || br.Attrs().Promisc == 0 {
		t.Fatalf("the bridge is not promiscuous: %v", err)
	}
	if err := n.Check(t.Context(), p); err != nil {
		t.Error(err)
	}
	if err := netlink.SetPromiscOff(br); err != nil {
		t.Fatal(err)
	}
	if err := n.Check(t.Context(), p); err == nil || !strings.Contains(err.Error(), "promiscuous mode is false, configured true") {
		t.Errorf("CHECK: %v", err)
	}
}
