// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/cni/builtin/testpod"
)

// upstream gives the directory of the reference plugins' binaries.
func upstream(t *testing.T) string {
	t.Helper()
	tool := exec.Command("../hack/tool", "cni-plugins") // make test has built them; the test's network leads nowhere
	tool.Stderr = os.Stderr
	dir, err := tool.Output()
	if err != nil {
		t.Fatalf("get the upstream plugins (run hack/tool cni-plugins): %v", err)
	}
	return strings.TrimSpace(string(dir))
}

// side is one of the two that are compared: each does the same steps and writes down what can be seen.
type side struct {
	t    *testing.T
	n    *Network
	pod  *testpod.Pod
	list *libcni.NetworkConfigList
	rt   *libcni.RuntimeConf
	log  []string
}

func (s *side) note(format string, args ...any) { s.log = append(s.log, fmt.Sprintf(format, args...)) }

func (s *side) lib() *libcni.CNIConfig {
	var pod *rtnl.Conn
	if s.rt.NetNS != "" {
		var err error
		if pod, err = rtnl.Wrap(s.pod.Socket); err != nil {
			s.t.Fatal(err)
		}
	}
	return libcni.NewCNIConfigWithCacheDir(s.n.opts.BinDirs, s.n.opts.CacheDir, &executor{n: s.n, pod: pod})
}

func (s *side) add() {
	res, err := s.lib().AddNetworkList(context.Background(), s.list, s.rt)
	if err != nil {
		s.note("ADD fails")
		s.t.Log("ADD:", err)
		return
	}
	b, err := json.Marshal(res)
	if err != nil {
		s.t.Fatal(err)
	}
	s.note("ADD %s", s.plain(string(b)))
}

func (s *side) check() { s.verb("CHECK", s.lib().CheckNetworkList(context.Background(), s.list, s.rt)) }
func (s *side) del()   { s.verb("DEL", s.lib().DelNetworkList(context.Background(), s.list, s.rt)) }
func (s *side) status() {
	s.verb("STATUS", s.lib().GetStatusNetworkList(context.Background(), s.list))
}
func (s *side) gc() {
	s.verb("GC", s.lib().GCNetworkList(context.Background(), s.list, &libcni.GCArgs{}))
}

func (s *side) verb(name string, err error) {
	s.note("%s fails: %t", name, err != nil)
	if err != nil {
		s.t.Log(name+":", err)
	}
}

// plain takes out what is random, or differs by design: names and addresses of hardware, the namespace's path, the bridge's address.
func (s *side) plain(text string) string {
	text = strings.ReplaceAll(text, s.pod.Path, "NETNS")
	text = regexp.MustCompile(`veth[0-9a-f]+`).ReplaceAllString(text, "veth")
	text = regexp.MustCompile(`bwp[0-9a-z]+`).ReplaceAllString(text, "ifb")
	return regexp.MustCompile(`([0-9a-f]{2}:){5}[0-9a-f]{2}`).ReplaceAllStringFunc(text, func(mac string) string {
		if mac == "00:00:00:00:00:00" || mac == "02:11:22:33:44:55" {
			return mac
		}
		return "MAC"
	})
}

// look writes down links, addresses and routes of the node and of the pod, and leases.
func (s *side) look() {
	for _, l := range testpod.Links(s.t) {
		s.note("node %s", s.plain(l))
	}
	links, err := netlink.LinkList()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, l := range links {
		if p, err := netlink.LinkGetProtinfo(l); err == nil && l.Type() == "veth" {
			s.note("node port hairpin %t isolated %t master %t", p.Hairpin, p.Isolated, l.Attrs().MasterIndex != 0)
		}
		if l.Type() != "device" && l.Attrs().Name != "lo" {
			s.note("node %s promiscuous %t", s.plain(l.Attrs().Name), l.Attrs().Promisc > 0 && l.Type() == "bridge")
		}
		s.lookQdiscs(l)
	}
	s.lookVLANs(links)
	if _, err := os.Stat(s.pod.Path); err == nil {
		s.pod.Do(s.t, func() error {
			for _, l := range testpod.Links(s.t) {
				s.note("pod %s", s.plain(l))
			}
			if eth, err := net.InterfaceByName(ifName); err == nil {
				s.note("pod eth0 flags %s", eth.Flags&^net.FlagRunning) // the kernel sets that when it gets to it
			}
			return s.lookDAD()
		})
	}
}

// lookVLANs writes down the VLANs of bridge ports.
func (s *side) lookVLANs(links []netlink.Link) {
	all, err := netlink.BridgeVlanList()
	if err != nil {
		s.t.Fatal(err)
	}
	var out []string
	for _, l := range links {
		if l.Type() != "veth" {
			continue
		}
		var ids []string
		for _, v := range all[int32(l.Attrs().Index)] {
			ids = append(ids, fmt.Sprintf("%d untagged %t pvid %t", v.Vid, v.EngressUntag(), v.PortVID()))
		}
		out = append(out, fmt.Sprintf("node port VLANs %q", ids))
	}
	slices.Sort(out)
	s.log = append(s.log, out...)
}

// lookDAD writes down which of the pod's IPv6 addresses can't be used yet, or never, for want of proof that nobody else has them.
func (s *side) lookDAD() error {
	l, err := netlink.LinkByName(ifName)
	if err != nil {
		return nil //nolint:nilerr // no interface has no addresses
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_V6)
	for _, a := range addrs {
		if !a.IP.IsLinkLocalUnicast() {
			s.note("pod %s tentative %t failed %t", a.IPNet, a.Flags&unix.IFA_F_TENTATIVE != 0, a.Flags&unix.IFA_F_DADFAILED != 0)
		}
	}
	return err
}

// bridge makes the bridge with an address before anybody else does.
func (s *side) bridge(addr string) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br9"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		s.t.Fatal(err)
	}
	addresses(s.t, "br9", addr)
}

func (s *side) lookQdiscs(l netlink.Link) {
	qdiscs, err := netlink.QdiscList(l)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, q := range qdiscs {
		if q.Type() == "noqueue" || q.Type() == "pfifo_fast" {
			continue
		}
		if tbf, ok := q.(*netlink.Tbf); ok {
			s.note("node %s tbf %d %d %d", s.plain(l.Attrs().Name), tbf.Rate, tbf.Limit, tbf.Buffer)
			continue
		}
		s.note("node %s %s", s.plain(l.Attrs().Name), q.Type())
	}
}

// leases lists what the built-in store or upstream's directory holds.
func (s *side) leases(dir string) {
	entries, err := os.ReadDir(filepath.Join(dir, s.list.Name))
	if err != nil {
		s.note("no leases")
		return
	}
	for _, e := range entries {
		if net.ParseIP(e.Name()) != nil {
			s.note("lease %s", e.Name())
		}
	}
}

// compare does the steps with the built-in plugins, with the upstream binaries, and with our own as binaries, and wants the same to be seen.
func compare(t *testing.T, config string, args [][2]string, steps func(s *side)) {
	t.Helper()
	bin := upstream(t)
	var logs [3][]string
	for i, name := range []string{"built in", "upstream", "as binaries"} {
		t.Run(name, func(t *testing.T) {
			n := open(t, func(o *Options) {
				if i == 1 {
					o.BinDirs = []string{bin}
				}
			})
			n.binaries = i > 0
			if i == 2 {
				install(t, n)
			}
			data := filepath.Join(t.TempDir(), "leases")
			list, err := parse([]byte(strings.ReplaceAll(config, "DATADIR", data)))
			if err != nil {
				t.Fatal(err)
			}
			s := &side{t: t, n: n, pod: testpod.New(t, 1), list: list}
			s.rt = &libcni.RuntimeConf{ContainerID: s.pod.ID, NetNS: s.pod.Path, IfName: ifName, Args: args}
			steps(s)
			s.leases(data)
			logs[i] = s.log
			n.binaries = false // for what cleans up
			clearNode(t, n.opts)
		})
	}
	if d := cmp.Diff(logs[0], logs[1]); d != "" {
		t.Errorf("built in (-) and upstream (+) differ:\n%s", d)
	}
	if d := cmp.Diff(logs[2], logs[1]); d != "" {
		t.Errorf("as binaries (-) and upstream (+) differ:\n%s", d)
	}
	if t.Failed() || testing.Verbose() {
		t.Log(strings.Join(logs[1], "\n"))
	}
}

func chainOf(version, bridge, ipam, more string) string {
	if ipam != "" {
		ipam = `,"ipam":{"type":"host-local","dataDir":"DATADIR",` + ipam + `}`
	}
	if more != "" {
		more = "," + more
	}
	return fmt.Sprintf(`{"cniVersion":%q,"name":"net","plugins":[{"type":"bridge","bridge":"br9",%s%s}%s]}`, version, bridge, ipam, more)
}

func TestEqualToUpstream(t *testing.T) {
	testpod.Node(t)
	life := func(s *side) {
		s.status()
		s.add()
		s.look()
		s.check()
		s.del()
		s.look()
		s.del()
		s.gc()
	}
	// Upstream leaves a pair and an address behind when ADD fails.
	refused := func(s *side) { s.add() }
	const subnet = `"subnet":"10.7.0.0/24"`
	for name, c := range map[string]struct {
		config string
		args   [][2]string
		steps  func(*side)
	}{
		"gateway":         {config: chainOf("1.0.0", `"isGateway":true`, subnet, "")},
		"default gateway": {config: chainOf("1.1.0", `"isDefaultGateway":true,"mtu":1400`, subnet, "")},
		"no gateway":      {config: chainOf("0.4.0", `"mtu":9000`, subnet+`,"gateway":"10.7.0.9","routes":[{"dst":"0.0.0.0/0"},{"dst":"10.99.0.0/16","gw":"10.7.0.7"}]`, "")},
		"old":             {config: chainOf("0.3.1", `"isGateway":true`, subnet, ""), steps: func(s *side) { s.add(); s.look(); s.del(); s.look() }},
		"oldest":          {config: chainOf("0.2.0", `"isGateway":true`, subnet, ""), steps: func(s *side) { s.add(); s.look(); s.del(); s.look() }},
		"dual-stack":      {config: chainOf("1.0.0", `"isDefaultGateway":true`, `"ranges":[[{"subnet":"10.7.0.0/24"}],[{"subnet":"fd00:7::/64","rangeStart":"fd00:7::50"}]]`, "")},
		"range":           {config: chainOf("1.0.0", `"isGateway":true`, `"ranges":[[{"subnet":"10.7.0.0/24","rangeStart":"10.7.0.50","rangeEnd":"10.7.0.60","gateway":"10.7.0.254"}]]`, "")},
		"hairpin":         {config: chainOf("1.0.0", `"isGateway":true,"hairpinMode":true`, subnet, "")},
		"isolation":       {config: chainOf("1.0.0", `"isGateway":true,"portIsolation":true`, subnet, "")},
		"promiscuous":     {config: chainOf("1.0.0", `"isGateway":true,"promiscMode":true`, subnet, "")},
		"vlan":            {config: chainOf("1.0.0", `"vlan":5`, subnet, "")},
		"vlan, gateway":   {config: chainOf("1.0.0", `"isGateway":true,"vlan":5`, subnet, "")},
		"vlan, kept":      {config: chainOf("1.0.0", `"vlan":5,"preserveDefaultVlan":true`, subnet, "")},
		"vlan, not kept":  {config: chainOf("1.0.0", `"vlan":5,"preserveDefaultVlan":false`, subnet, "")},
		"vlan, too great": {config: chainOf("1.0.0", `"vlan":4095`, subnet, ""), steps: refused},
		"trunk":           {config: chainOf("1.0.0", `"vlanTrunk":[{"id":7},{"minID":10,"maxID":12}]`, "", ""), steps: func(s *side) { s.add(); s.look(); s.del(); s.look() }},
		"trunk and vlan":  {config: chainOf("1.0.0", `"vlan":5,"vlanTrunk":[{"id":7}],"preserveDefaultVlan":false`, "", ""), steps: func(s *side) { s.add(); s.look(); s.del(); s.look() }},
		"trunk, bad":      {config: chainOf("1.0.0", `"vlanTrunk":[{"minID":12,"maxID":10}]`, "", ""), steps: refused},
		"dad":             {config: chainOf("1.0.0", `"isGateway":true,"enabledad":true`, `"subnet":"fd00:7::/64"`, "")},
		"forced address": {config: chainOf("1.0.0", `"isGateway":true,"forceAddress":true`, subnet, ""), steps: func(s *side) {
			s.bridge("10.7.0.99/24")
			s.add()
			s.look()
			s.del()
		}},
		"another address": {config: chainOf("1.0.0", `"isGateway":true`, subnet, ""), steps: func(s *side) {
			s.bridge("10.7.0.99/24")
			s.add()
		}},
		"layer 2":        {config: chainOf("1.0.0", `"mtu":1300`, "", ""), steps: func(s *side) { s.add(); s.look(); s.del(); s.look() }},
		"layer 2, down":  {config: chainOf("1.0.0", `"disableContainerInterface":true`, "", ""), steps: func(s *side) { s.add(); s.look(); s.del(); s.look() }},
		"down with ipam": {config: chainOf("1.0.0", `"disableContainerInterface":true`, subnet, ""), steps: refused},
		"requested":      {config: chainOf("1.0.0", `"isGateway":true`, subnet, ""), args: [][2]string{{"IgnoreUnknown", "1"}, {"IP", "10.7.0.77"}, {"MAC", "02:11:22:33:44:55"}}},
		"requested, out": {config: chainOf("1.0.0", `"isGateway":true`, subnet, ""), args: [][2]string{{"IgnoreUnknown", "1"}, {"IP", "10.8.0.77"}}, steps: refused},
		"requested, gw":  {config: chainOf("1.0.0", `"isGateway":true`, subnet, ""), args: [][2]string{{"IgnoreUnknown", "1"}, {"IP", "10.7.0.1"}}, steps: refused},
		"unknown args":   {config: chainOf("1.0.0", `"isGateway":true`, subnet, ""), args: [][2]string{{"COLOR", "blue"}}, steps: refused},
		"too small":      {config: chainOf("1.0.0", `"isGateway":true`, `"subnet":"10.7.0.0/31"`, ""), steps: refused},
		"host bits":      {config: chainOf("1.0.0", `"isGateway":true`, `"subnet":"10.7.0.5/24"`, ""), steps: refused},
		"overlap":        {config: chainOf("1.0.0", `"isGateway":true`, `"ranges":[[{"subnet":"10.7.0.0/16"}],[{"subnet":"10.7.5.0/24"}]]`, ""), steps: refused},
		"with loopback":  {config: strings.Replace(chainOf("1.0.0", `"isGateway":true`, subnet, ""), `"plugins":[`, `"plugins":[{"type":"loopback"},`, 1), steps: func(s *side) { s.add(); s.look(); s.del() }},
		"loopback alone": {config: `{"cniVersion":"1.0.0","name":"lo","plugins":[{"type":"loopback"}]}`, steps: func(s *side) { s.add(); s.check(); s.del(); s.look() }},
		"add twice": {config: chainOf("1.0.0", `"isGateway":true`, subnet, ""), steps: func(s *side) {
			s.add()
			s.add()
			s.look()
			s.check()
			s.del()
			s.look()
		}},
		"no del": {config: chainOf("1.0.0", `"isGateway":true`, subnet, ""), steps: func(s *side) { s.add() }},
		"gc":     {config: chainOf("1.1.0", `"isGateway":true`, subnet, ""), steps: func(s *side) { s.add(); s.gc(); s.look(); s.gc() }},
		"no netns": {config: chainOf("1.0.0", `"isGateway":true`, subnet, ""), steps: func(s *side) {
			s.add()
			s.pod.Kill()
			s.rt.NetNS = ""
			s.del()
			s.del()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			steps := c.steps
			if steps == nil {
				steps = life
			}
			if (strings.HasPrefix(name, "vlan") || strings.HasPrefix(name, "trunk")) && name != "vlan, too great" && name != "trunk, bad" {
				needVLANs(t)
			}
			compare(t, c.config, c.args, steps)
		})
	}
}

func TestCheckAfterTamperingEqualToUpstream(t *testing.T) {
	testpod.Node(t)
	inPod := func(f func(eth netlink.Link) error) func(*side) {
		return func(s *side) {
			s.pod.Do(s.t, func() error {
				eth, err := netlink.LinkByName(ifName)
				if err != nil {
					return err
				}
				return f(eth)
			})
		}
	}
	for name, tamper := range map[string]func(*side){
		"address": inPod(func(eth netlink.Link) error {
			addrs, err := netlink.AddrList(eth, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			return netlink.AddrDel(eth, &addrs[0])
		}),
		"route": inPod(func(eth netlink.Link) error {
			return netlink.RouteDel(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}})
		}),
		"hardware address": inPod(func(eth netlink.Link) error {
			return netlink.LinkSetHardwareAddr(eth, net.HardwareAddr{2, 1, 1, 1, 1, 1})
		}),
		"interface": inPod(netlink.LinkDel),
		"bridge port": func(s *side) {
			links, err := netlink.LinkList()
			if err != nil {
				s.t.Fatal(err)
			}
			for _, l := range links {
				if l.Type() == "veth" {
					if err := netlink.LinkSetNoMaster(l); err != nil {
						s.t.Fatal(err)
					}
				}
			}
		},
		"bridge": func(s *side) {
			br, err := netlink.LinkByName("br9")
			if err != nil {
				s.t.Fatal(err)
			}
			if err := netlink.LinkDel(br); err != nil {
				s.t.Fatal(err)
			}
		},
		"nothing": func(*side) {},
	} {
		t.Run(name, func(t *testing.T) {
			compare(t, chainOf("1.1.0", `"isDefaultGateway":true`, `"subnet":"10.7.0.0/24"`, ""), nil, func(s *side) {
				s.add()
				tamper(s)
				s.check()
				s.del()
				s.look()
			})
		})
	}
}

func TestMetaPluginsEqualToUpstream(t *testing.T) {
	testpod.Node(t)
	const bridge, subnet = `"isGateway":true`, `"subnet":"10.7.0.0/24"`
	life := func(s *side) {
		s.add()
		s.look()
		s.check()
		s.del()
		s.look()
		s.del()
	}
	refused := func(s *side) { s.add() }
	for name, c := range map[string]struct {
		more  string
		steps func(*side)
	}{
		"bandwidth, both":         {`{"type":"bandwidth","ingressRate":8000000,"ingressBurst":800000,"egressRate":16000000,"egressBurst":1600000}`, life},
		"bandwidth, ingress":      {`{"type":"bandwidth","ingressRate":1000000,"ingressBurst":80000}`, life},
		"bandwidth, none":         {`{"type":"bandwidth","capabilities":{"bandwidth":true}}`, life},
		"bandwidth, no burst":     {`{"type":"bandwidth","ingressRate":1000000}`, refused},
		"bandwidth, no rate":      {`{"type":"bandwidth","egressBurst":1000000}`, refused},
		"bandwidth, burst":        {`{"type":"bandwidth","egressRate":1,"egressBurst":40000000000}`, refused},
		"tuning, address and mtu": {`{"type":"tuning","mac":"02:11:22:33:44:55","mtu":1234}`, life},
		"tuning, flags":           {`{"type":"tuning","promisc":true,"allmulti":true,"txQLen":77}`, life},
		"tuning, nothing":         {`{"type":"tuning"}`, life},
		"tuning, bad address":     {`{"type":"tuning","mac":"02:11"}`, refused},
		"tuning, args":            {`{"type":"tuning","mtu":1200,"args":{"cni":{"mtu":1100,"promisc":true}}}`, life},
		"tuning, changed": {`{"type":"tuning","mtu":1200}`, func(s *side) {
			s.add()
			s.pod.Do(s.t, func() error {
				eth, err := netlink.LinkByName(ifName)
				if err != nil {
					return err
				}
				return netlink.LinkSetMTU(eth, 1300)
			})
			s.check()
			s.del()
		}},
	} {
		t.Run(name, func(t *testing.T) { compare(t, chainOf("1.0.0", bridge, subnet, c.more), nil, c.steps) })
	}
}
