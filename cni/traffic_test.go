// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crishim.dev/cni/builtin/nat"
	"crishim.dev/cni/builtin/testpod"
	"crishim.dev/internal/errs"
)

// world is a host beyond the node's uplink: 192.0.2.2 and 2001:db8::2, the node being .1. It has no route to any pod.
func world(t testing.TB, i int) *testpod.Pod {
	t.Helper()
	w := testpod.New(t, 900000+i)
	ns, err := os.Open(w.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink0"
	err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd()))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if l, err := netlink.LinkByName("uplink0"); err == nil {
			_ = netlink.LinkDel(l)
		}
	})
	addresses(t, "uplink0", "192.0.2.1/24", "2001:db8::1/64")
	w.Do(t, func() error { return setAddresses("eth0", "192.0.2.2/24", "2001:db8::2/64") })
	return w
}

func addresses(t testing.TB, link string, addrs ...string) {
	t.Helper()
	if err := setAddresses(link, addrs...); err != nil {
		t.Fatal(err)
	}
}

func setAddresses(link string, addrs ...string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	err = netlink.LinkSetUp(l)
	for _, a := range addrs {
		addr, e := netlink.ParseAddr(a)
		if e != nil {
			return e
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		err = errors.Join(err, netlink.AddrAdd(l, addr))
	}
	return err
}

func dual(t testing.TB, n *Network) {
	t.Helper()
	if err := n.SetPodCIDRs([]netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd00:88::/64")}); err != nil {
		t.Fatal(err)
	}
}

func TestDualStack(t *testing.T) {
	n := open(t, nil)
	dual(t, n)
	a, b := testpod.New(t, 1), testpod.New(t, 2)
	start := time.Now()
	ra, rb := attach(t, n, podOf(a)), attach(t, n, podOf(b))
	if len(ra.IPs) != 2 || !ra.IPs[0].Is4() || !ra.IPs[1].Is6() {
		t.Fatalf("addresses %v", ra.IPs)
	}
	serve(t, b, "[::]:80")
	// At once: no waiting for duplicate address detection, which takes a second.
	if got, err := ask(t, a, addrPort(rb.IPs[1], 80)); err != nil || got != ra.IPs[1].String() {
		t.Errorf("IPv6: %q, %v", got, err)
	}
	if took := time.Since(start); took > 900*time.Millisecond {
		t.Errorf("took %s", took)
	}
	if got, err := ask(t, nil, addrPort(rb.IPs[1], 80)); err != nil || got != "fd00:88::1" {
		t.Errorf("IPv6 from the node: %q, %v", got, err)
	}
	a.Do(t, func() error {
		b, err := os.ReadFile("/proc/sys/net/ipv6/conf/eth0/accept_ra")
		if err != nil || strings.TrimSpace(string(b)) != "0" {
			return fmt.Errorf("accept_ra %q, %w", b, err)
		}
		return nil
	})
}

func TestMasquerade(t *testing.T) {
	n := open(t, nil)
	dual(t, n)
	w := world(t, 1)
	serve(t, w, "[::]:80")
	p := testpod.New(t, 1)
	attach(t, n, podOf(p))
	for to, as := range map[string]string{"192.0.2.2:80": "192.0.2.1", "[2001:db8::2]:80": "2001:db8::1"} {
		if got, err := ask(t, p, to); err != nil || got != as {
			t.Errorf("pod to %s: seen as %q, %v; want %s", to, got, err, as)
		}
	}
	// Flushed by somebody: back with the next pod.
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.FlushRuleset()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	attach(t, n, podOf(testpod.New(t, 2)))
	if got, err := ask(t, p, "192.0.2.2:80"); err != nil || got != "192.0.2.1" {
		t.Errorf("after a flush: seen as %q, %v", got, err)
	}
}

func TestHostPorts(t *testing.T) {
	n := open(t, nil)
	dual(t, n)
	w := world(t, 1)
	serve(t, w, "[::]:8080")
	a, b := testpod.New(t, 1), testpod.New(t, 2)
	pod := podOf(a)
	pod.PortMappings = []PortMapping{
		{HostPort: 8080, ContainerPort: 80}, {HostPort: 8081, ContainerPort: 81, HostIP: "192.0.2.1"},
		{HostPort: 8082, ContainerPort: 80, HostIP: "127.0.0.1"}, {ContainerPort: 443},
	}
	ra := attach(t, n, pod)
	rb := attach(t, n, podOf(b))
	serve(t, a, "[::]:80")
	serve(t, a, "[::]:81")
	loopback, err := net.Listen("tcp", "127.0.0.1:9999")
	if err != nil {
		t.Fatal(err)
	}
	defer loopback.Close()
	go answer(loopback)
	v4, v6 := ra.IPs[0].String(), ra.IPs[1].String()
	for _, c := range []struct {
		name string
		from *testpod.Pod
		to   string
		as   string // as whom the pod sees the caller; empty: no answer
	}{
		{"from outside", w, "192.0.2.1:8080", "192.0.2.2"},
		{"from outside, IPv6", w, "[2001:db8::1]:8080", "2001:db8::2"},
		{"from outside, to one address", w, "192.0.2.1:8081", "192.0.2.2"},
		{"the port of another address", nil, "10.88.0.1:8081", ""},
		{"from the node", nil, "192.0.2.1:8080", "192.0.2.1"},
		{"from the node, localhost", nil, "127.0.0.1:8080", "10.88.0.1"},
		{"from the node, only localhost", nil, "127.0.0.1:8082", "10.88.0.1"},
		{"only localhost, from outside", w, "192.0.2.1:8082", ""},
		{"from another pod", b, "192.0.2.1:8080", "10.88.0.1"},
		{"from the pod itself", a, "192.0.2.1:8080", "10.88.0.1"},
		{"from the pod itself, IPv6", a, "[2001:db8::1]:8080", "fd00:88::1"},
		{"traffic that the node forwards is not caught", b, "192.0.2.2:8080", "192.0.2.1"},
		{"to the pod directly", nil, net.JoinHostPort(v4, "80"), "10.88.0.1"},
		{"to the pod directly, IPv6", nil, net.JoinHostPort(v6, "80"), "fd00:88::1"},
		{"the node's loopback, for the node", nil, "127.0.0.1:9999", "127.0.0.1"},
	} {
		got, err := ask(t, c.from, c.to)
		if c.as == "" && err == nil || c.as != "" && (err != nil || got != c.as) {
			t.Errorf("%s: seen as %q, %v; want %q", c.name, got, err, c.as)
		}
	}
	attack(t, b, rb)
	detach(t, n, pod)
	if got, err := ask(t, w, "192.0.2.1:8080"); err == nil {
		t.Errorf("after detach the port still answers %q", got)
	}
}

// attack tries to reach the node's loopback from a pod, which route_localnet would allow (CVE-2020-8558).
func attack(t *testing.T, p *testpod.Pod, r Result) {
	t.Helper()
	p.Do(t, func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		addr, _ := netlink.ParseAddr("127.0.0.1/8")
		if err := netlink.AddrDel(lo, addr); err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0); err != nil {
			return err
		}
		_, dst, _ := net.ParseCIDR("127.0.0.1/32")
		return netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: dst, Gw: net.IPv4(10, 88, 0, 1), Src: r.IPs[0].AsSlice(),
			Flags: int(netlink.FLAG_ONLINK)})
	})
	if got, err := ask(t, p, "127.0.0.1:9999"); err == nil {
		t.Errorf("a pod reached the node's loopback: %q", got)
	}
}

// KUBELET.md 29 and 30.
func TestHostPortOwnership(t *testing.T) {
	n := open(t, nil)
	first, second := podOf(testpod.New(t, 1)), podOf(testpod.New(t, 2))
	first.PortMappings = []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "UDP"}, {HostPort: 8080, ContainerPort: 80, Protocol: "SCTP"}, {ContainerPort: 9}}
	second.PortMappings = first.PortMappings
	attach(t, n, first)
	before := testpod.Ruleset(t)
	_, err := n.Attach(context.Background(), second)
	if !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "0.0.0.0:8080/udp: in use by pod "+first.ID) {
		t.Fatalf("the port of a live pod: %v", err)
	}
	if after := testpod.Ruleset(t); strings.Join(after, "\n") != strings.Join(before, "\n") {
		t.Errorf("rules before %q after %q", before, after)
	}
	// Free as soon as Detach has returned, whatever is left to the background.
	if err := n.Detach(context.Background(), first); err != nil {
		t.Fatal(err)
	}
	attach(t, n, second)
	// A pod that has neither a record nor an address is not live: taken over.
	if err := n.records.forget(second.ID); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(n.opts.StateDir, "leases")); err != nil {
		t.Fatal(err)
	}
	if n, err = New(n.opts); err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	third := podOf(testpod.New(t, 3))
	third.PortMappings = first.PortMappings
	attach(t, n, third)
	// A late Detach of the former owner must not take the port from the new one.
	if err := n.host.Ports().Unpublish(second.ID, portsOf(t, n)); err != nil {
		t.Fatal(err)
	}
	if left := portsOf(t, n); len(left) != 2 {
		t.Errorf("ports left %v", left)
	}
}

func portsOf(t testing.TB, n *Network) []nat.Port {
	t.Helper()
	all, err := n.host.Ports().Ports()
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(maps.Keys(all))
}

// echo answers every datagram in the pod with the pod's name.
func echo(t testing.TB, p *testpod.Pod, addr, name string) {
	t.Helper()
	var c net.PacketConn
	p.Do(t, func() (err error) {
		c, err = net.ListenPacket("udp", addr)
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		b := make([]byte, 64)
		for {
			_, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(name), from)
		}
	}()
}

// A client that never stops sending UDP from one port reaches whoever has the host port now.
func TestStaleFlowsAreDropped(t *testing.T) {
	n := open(t, nil)
	w := world(t, 1)
	var client net.Conn
	w.Do(t, func() (err error) {
		client, err = net.Dial("udp", "192.0.2.1:5353")
		return err
	})
	defer client.Close()
	answered := func(by string) {
		t.Helper()
		b := make([]byte, 64)
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
			_, _ = client.Write([]byte("?"))
			_ = client.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			if k, err := client.Read(b); err == nil && string(b[:k]) == by {
				return
			}
		}
		t.Fatalf("%s does not answer", by)
	}
	_, _ = client.Write([]byte("?")) // tracked as a connection to the host itself
	for i, name := range []string{"first", "second", "third"} {
		p := testpod.New(t, i)
		pod := podOf(p)
		pod.PortMappings = []PortMapping{{HostPort: 5353, ContainerPort: 53, Protocol: "UDP"}}
		attach(t, n, pod)
		echo(t, p, ":53", name)
		answered(name)
		detach(t, n, pod)
		p.Kill()
	}
}

// With enabledad an address that somebody has already is refused.
func TestDuplicateAddress(t *testing.T) {
	n := open(t, nil)
	conf := strings.Replace(listOf("x", "fd00:4::/64"), `"isDefaultGateway"`, `"enabledad":true,"isDefaultGateway"`, 1)
	write(t, n, "10-x.conflist", conf)
	thief, pod := testpod.New(t, 1), podOf(testpod.New(t, 2))
	r := attach(t, n, podOf(thief))
	thief.Do(t, func() error { return setAddresses("eth0", r.IPs[0].Next().String()+"/64") })
	before := testpod.Links(t)
	_, err := n.Attach(context.Background(), pod)
	if !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "address "+r.IPs[0].Next().String()+" of interface eth0 is somebody else's too") {
		t.Errorf("error %v", err)
	}
	if after := testpod.Links(t); !slices.Equal(before, after) {
		t.Errorf("links before %q after %q", before, after)
	}
}
