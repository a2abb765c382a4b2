// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"crishim.dev/cni/builtin/testpod"
	"crishim.dev/internal/errs"
)

func TestPodsReachEachOtherAndTheNode(t *testing.T) {
	n := open(t, nil)
	a, b := testpod.New(t, 1), testpod.New(t, 2)
	ra, rb := attach(t, n, podOf(a)), attach(t, n, podOf(b))
	if ra.IPs[0] != netip.MustParseAddr("10.88.0.2") || rb.IPs[0] != netip.MustParseAddr("10.88.0.3") {
		t.Fatalf("addresses %v %v", ra.IPs, rb.IPs)
	}
	serve(t, a, ":80")
	serve(t, b, ":80")
	for _, c := range []struct {
		from *testpod.Pod
		to   netip.Addr
		as   string
	}{{a, rb.IPs[0], "10.88.0.2"}, {b, ra.IPs[0], "10.88.0.3"}, {nil, ra.IPs[0], "10.88.0.1"}, {a, ra.IPs[0], "10.88.0.2"}} {
		got, err := ask(t, c.from, addrPort(c.to, 80))
		if err != nil || got != c.as {
			t.Errorf("to %s: %q, %v; want to be seen as %s", c.to, got, err, c.as)
		}
	}
	if got, err := ask(t, a, "127.0.0.1:80"); err != nil || got != "127.0.0.1" {
		t.Errorf("over lo: %q, %v", got, err)
	}
	detach(t, n, podOf(a))
	detach(t, n, podOf(b))
}

func TestNothingIsLeft(t *testing.T) {
	n := open(t, nil)
	warm := testpod.New(t, 1000)
	pod := podOf(warm)
	pod.PortMappings = []PortMapping{{HostPort: 8000, ContainerPort: 80}}
	attach(t, n, pod)
	detach(t, n, pod)
	warm.Kill()
	before := testpod.Census(t)
	for i := range 5 {
		p := testpod.New(t, i)
		pod := podOf(p)
		pod.PortMappings = []PortMapping{{HostPort: int32(8000 + i), ContainerPort: 80}, {ContainerPort: 443}}
		attach(t, n, pod)
		detach(t, n, pod)
		p.Kill()
	}
	same(t, before)
	for _, dir := range []string{n.opts.CacheDir, filepath.Join(n.opts.StateDir, "leases", builtinName)} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != "lock" {
				t.Errorf("%s is left in %s", e.Name(), dir)
			}
		}
	}
}

func TestDetachAlwaysWorks(t *testing.T) {
	n := open(t, nil)
	unknown := testpod.New(t, 77)
	detach(t, n, podOf(unknown))
	cases := map[string]func(t *testing.T, p *testpod.Pod){
		"twice":     func(*testing.T, *testpod.Pod) {},
		"no netns":  func(_ *testing.T, p *testpod.Pod) { p.Kill() },
		"interface": func(t *testing.T, p *testpod.Pod) { deleteVeths(t) },
		"bridge": func(t *testing.T, _ *testpod.Pod) {
			br, err := netlink.LinkByName(builtinBridge)
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.LinkDel(br); err != nil {
				t.Fatal(err)
			}
		},
		"configuration":        func(t *testing.T, _ *testpod.Pod) { write(t, n, "10-other.conf", `{"name":"other","type":"nosuch"}`) },
		"broken configuration": func(t *testing.T, _ *testpod.Pod) { write(t, n, "09-broken.conf", `{`) },
	}
	i := 0
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			for _, f := range []string{"10-other.conf", "09-broken.conf"} {
				_ = os.Remove(filepath.Join(n.opts.ConfDir, f))
			}
			i++
			p := testpod.New(t, i)
			attach(t, n, podOf(p))
			spoil(t, p)
			detach(t, n, Pod{ID: p.ID})
			detach(t, n, Pod{ID: p.ID})
			if n.records.has(p.ID) {
				t.Error("still attached")
			}
			leases, err := n.host.Leases(builtinName)
			if err != nil || len(leases) != 0 {
				t.Errorf("leases %v, %v", leases, err)
			}
		})
	}
}

func deleteVeths(t *testing.T) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "veth" {
			if err := netlink.LinkDel(l); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestRestartKeepsLeases(t *testing.T) {
	n := open(t, nil)
	a, b := testpod.New(t, 1), testpod.New(t, 2)
	ra := attach(t, n, podOf(a))
	again, err := New(n.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	rb := attach(t, again, podOf(b))
	if ra.IPs[0] == rb.IPs[0] {
		t.Fatalf("both have %s", ra.IPs[0])
	}
	if err := again.GC(context.Background(), []string{b.ID}); err != nil {
		t.Fatal(err)
	}
	leases, err := again.host.Leases(builtinName)
	if err != nil || len(leases) != 1 || leases[0].Addr != rb.IPs[0] {
		t.Fatalf("after GC: %v, %v", leases, err)
	}
	if again.records.has(a.ID) {
		t.Error("GC left the attachment of a dead pod")
	}
}

func TestAttachFailingInTheMiddleLeavesNothing(t *testing.T) {
	n := open(t, nil)
	warm := testpod.New(t, 1000)
	attach(t, n, podOf(warm))
	detach(t, n, podOf(warm))
	warm.Kill()
	before := testpod.Census(t)

	script(t, n, "spoiler", `case $CNI_COMMAND in ADD) echo '{"cniVersion":"1.0.0","code":11,"msg":"not today"}'; exit 1;; esac`)
	write(t, n, "10-chain.conflist", `{"cniVersion":"1.0.0","name":"shim","plugins":[
		{"type":"bridge","bridge":"shim0","isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.88.0.0/16"}]]}},
		{"type":"spoiler"}]}`)
	p := testpod.New(t, 1)
	_, err := n.Attach(context.Background(), podOf(p))
	if err == nil || !strings.Contains(err.Error(), "not today") || !strings.Contains(err.Error(), "spoiler") {
		t.Fatalf("error %v", err)
	}
	if n.records.has(p.ID) {
		t.Error("still attached")
	}
	leases, err := n.host.Leases("shim")
	if err != nil || len(leases) != 0 {
		t.Errorf("leases %v, %v", leases, err)
	}
	p.Kill()
	same(t, before)
}

func script(t testing.TB, n *Network, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(n.opts.BinDirs[0], name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestExhaustedRange(t *testing.T) {
	n := open(t, nil)
	write(t, n, "10-small.conflist", `{"cniVersion":"1.0.0","name":"small","plugins":[
		{"type":"bridge","bridge":"small0","isGateway":true,"ipam":{"type":"host-local","subnet":"10.9.0.0/29","rangeEnd":"10.9.0.3"}}]}`)
	a, b, c := testpod.New(t, 1), testpod.New(t, 2), testpod.New(t, 3)
	attach(t, n, podOf(a))
	attach(t, n, podOf(b))
	before := testpod.Links(t)
	_, err := n.Attach(context.Background(), podOf(c))
	if !errors.Is(err, errs.Exhausted) || !strings.Contains(err.Error(), "10.9.0.1-10.9.0.3") {
		t.Fatalf("error %v", err)
	}
	if after := testpod.Links(t); strings.Join(before, "\n") != strings.Join(after, "\n") {
		t.Errorf("links before %q after %q", before, after)
	}
	// An address that is about to become free is waited for.
	if err := n.Detach(context.Background(), podOf(a)); err != nil {
		t.Fatal(err)
	}
	attach(t, n, podOf(c))
}
