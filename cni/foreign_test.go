// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"

	"crishim.dev/cni/builtin/testpod"
)

// foreign makes tables as iptables-nft (with a FORWARD policy of drop), kube-proxy and a firewall have them.
func foreign(t *testing.T) func() {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	drop := nftables.ChainPolicyDrop
	filter := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
	c.AddChain(&nftables.Chain{Table: filter, Name: "FORWARD", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter, Policy: &drop})
	kube := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "kube-proxy"})
	c.AddChain(&nftables.Chain{Table: kube, Name: "nat-prerouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting,
		Priority: nftables.ChainPriorityNATDest})
	if err := c.AddSet(&nftables.Set{Table: kube, Name: "services", KeyType: nftables.TypeIPAddr}, []nftables.SetElement{{Key: []byte{10, 96, 0, 1}}}); err != nil {
		t.Fatal(err)
	}
	own := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "firewall"})
	c.AddChain(&nftables.Chain{Table: own, Name: "fwd", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter, Policy: &drop})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	return func() {
		for _, table := range []*nftables.Table{filter, kube, own} {
			c.DelTable(table)
		}
		if err := c.Flush(); err != nil {
			t.Error(err)
		}
	}
}

func TestOthersTablesAreNotTouched(t *testing.T) {
	n := open(t, nil)
	if f, err := n.Findings(); err != nil || len(f) != 0 {
		t.Errorf("findings on an empty host: %q, %v", f, err)
	}
	remove := foreign(t)
	theirs := func() []string {
		return slices.DeleteFunc(testpod.Ruleset(t), func(l string) bool { return strings.Contains(l, " shim") })
	}
	before := theirs()
	pod := podOf(testpod.New(t, 1))
	pod.PortMappings = []PortMapping{{HostPort: 8080, ContainerPort: 80}}
	attach(t, n, pod)
	detach(t, n, pod)
	if err := n.host.Ports().Rebuild(); err != nil {
		t.Fatal(err)
	}
	if after := theirs(); !slices.Equal(before, after) {
		t.Errorf("before %q after %q", before, after)
	}
	want := []string{
		"chain FORWARD of nftables table ip filter drops what no rule of it accepts, pod traffic (10.88.0.0/16) too; let it through: " +
			"iptables -I FORWARD -s 10.88.0.0/16 -j ACCEPT ; iptables -I FORWARD -d 10.88.0.0/16 -j ACCEPT",
		"chain fwd of nftables table inet firewall drops what no rule of it accepts, pod traffic (10.88.0.0/16) too; let it through: " +
			"nft insert rule inet firewall fwd ip saddr 10.88.0.0/16 accept ; nft insert rule inet firewall fwd ip daddr 10.88.0.0/16 accept",
	}
	got, err := n.Findings()
	slices.Sort(got)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("findings %q, %v; want %q", got, err, want)
	}
	remove()
}

// Once the remedy is applied, with whatever tool, nothing is found any more; and the remedy is right.
func TestRemedyOfForeignDrops(t *testing.T) {
	n := open(t, nil)
	dual(t, n)
	run := func(t *testing.T, command string) {
		t.Helper()
		if _, err := exec.LookPath(strings.Fields(command)[0]); err != nil {
			t.Skip("needs nft and iptables (hack/deps)")
		}
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	t.Cleanup(func() {
		run(t, "nft flush ruleset; for t in iptables-legacy ip6tables-legacy; do $t -F && $t -X && $t -P FORWARD ACCEPT || exit 1; done")
	})
	w := world(t, 1)
	serve(t, w, "[::]:80")
	p := testpod.New(t, 1)
	attach(t, n, podOf(p))
	type foreign struct {
		drop string
		most int // commands
	}
	cases := map[string]foreign{
		"nft":                {"nft 'table inet fw { chain forward_all { type filter hook forward priority 0; policy drop; }; }'", 4},
		"iptables":           {"iptables -P FORWARD DROP", 2},
		"ip6tables":          {"ip6tables -P FORWARD DROP", 2},
		"one way":            {"iptables -P FORWARD DROP; iptables -A FORWARD -d 10.0.0.0/8 -j ACCEPT", 1},
		"in another chain":   {"iptables -P FORWARD DROP; iptables -N USER; iptables -A FORWARD -j USER; iptables -A USER -s 10.88.0.0/16 -j ACCEPT", 1},
		"part of the subnet": {"iptables -P FORWARD DROP; iptables -A FORWARD -d 10.88.0.0/24 -j ACCEPT; iptables -A FORWARD -d 10.88.0.0/16 -p udp -j ACCEPT", 2},
		"from an interface":  {"iptables -P FORWARD DROP; iptables -A FORWARD -d 10.88.0.0/16 -i eth9 -j ACCEPT", 2},
		"with a comment":     {"iptables -P FORWARD DROP; iptables -A FORWARD -d 10.88.0.0/16 -m comment --comment x -j ACCEPT", 1},
	}
	// The kernel has two places for iptables' rules; a packet must pass both.
	for name, c := range maps.Clone(cases) {
		cases[name+", legacy"] = foreign{strings.ReplaceAll(c.drop, "tables ", "tables-legacy "), c.most}
	}
	delete(cases, "nft, legacy")
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			run(t, "nft delete table inet fw 2>/dev/null; for t in iptables ip6tables iptables-legacy ip6tables-legacy; do $t -F && $t -X && $t -P FORWARD ACCEPT || exit 1; done")
			run(t, c.drop)
			texts, err := n.Findings()
			if err != nil || len(texts) == 0 {
				t.Fatalf("findings %q, %v", texts, err)
			}
			commands := 0
			for _, text := range texts {
				_, remedy, _ := strings.Cut(text, "let it through: ")
				for command := range strings.SplitSeq(remedy, " ; ") {
					run(t, command)
					commands++
				}
			}
			if commands != c.most {
				t.Errorf("%d commands; want %d: %q", commands, c.most, texts)
			}
			if again, err := n.Findings(); err != nil || len(again) != 0 {
				t.Errorf("after the remedy %q, %v", again, err)
			}
			for _, to := range []string{"192.0.2.2:80", "[2001:db8::2]:80"} {
				if _, err := ask(t, p, to); err != nil {
					t.Errorf("pod to %s: %v", to, err)
				}
			}
		})
	}
}

// The number of rules is the same whatever there is of pods and ports.
func TestRulesDoNotGrow(t *testing.T) {
	n := open(t, nil)
	rules := func() []string {
		return slices.DeleteFunc(testpod.Ruleset(t), func(l string) bool { return !strings.HasPrefix(l, "chain shim") })
	}
	var before []string
	for i := range 20 {
		pod := podOf(testpod.New(t, i))
		for j := range 5 {
			pod.PortMappings = append(pod.PortMappings, PortMapping{HostPort: int32(1000 + 10*i + j), ContainerPort: 80})
		}
		attach(t, n, pod)
		if i == 0 {
			before = rules()
		}
	}
	if after := rules(); !slices.Equal(before, after) || len(portsOf(t, n)) != 100 {
		t.Errorf("with one pod %q, with twenty %q", before, after)
	}
}
