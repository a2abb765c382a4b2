// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"crishim.dev/cni/builtin/testpod"
	"crishim.dev/internal/errs"
)

const bridgeList = `{"cniVersion":"1.1.0","name":"%NAME","plugins":[{"type":"bridge","bridge":"%NAME0","isDefaultGateway":true,
	"ipam":{"type":"host-local","subnet":"%NET"}}]}`

func listOf(name, subnet string) string {
	return strings.NewReplacer("%NAME", name, "%NET", subnet).Replace(bridgeList)
}

// KUBELET.md 31: no configuration is not ready, with the reason; one that appears is used at once.
func TestStatusFollowsTheDirectory(t *testing.T) {
	n := open(t, func(o *Options) { o.Builtin = false; o.ConfDir += "/later" })
	want := "cni: no configuration in " + n.opts.ConfDir
	if err := n.Status(); err == nil || err.Error() != want || !errors.Is(err, errs.Unavailable) {
		t.Fatalf("no directory: %v; want %s", err, want)
	}
	if err := os.Mkdir(n.opts.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := n.Status(); err == nil || err.Error() != want {
		t.Fatalf("empty directory: %v", err)
	}
	p := testpod.New(t, 1)
	if _, err := n.Attach(context.Background(), podOf(p)); err == nil || err.Error() != want {
		t.Fatalf("attach without configuration: %v", err)
	}
	write(t, n, "20-b.conflist", listOf("b", "10.2.0.0/24"))
	is := func(name string) {
		t.Helper()
		if err := n.Status(); err != nil || n.Info().Name != name {
			t.Fatalf("%s: %v, %+v", name, err, n.Info())
		}
	}
	is("b")
	write(t, n, "10-a.conflist", listOf("a", "10.1.0.0/24"))
	is("a")
	write(t, n, "10-a.conflist", listOf("c", "10.1.0.0/24")) // the same size, at once
	is("c")
	write(t, n, "05-broken.conflist", `{"cniVersion":`)
	if err := n.Status(); err == nil || !strings.Contains(err.Error(), "05-broken.conflist") {
		t.Fatalf("broken: %v", err)
	}
	if err := os.Remove(filepath.Join(n.opts.ConfDir, "05-broken.conflist")); err != nil {
		t.Fatal(err)
	}
	is("c")
	for _, f := range []string{"00-notes.txt", "00-backup.conflist~"} {
		write(t, n, f, "not json")
	}
	if err := os.Mkdir(filepath.Join(n.opts.ConfDir, "00-dir.conflist"), 0o755); err != nil {
		t.Fatal(err)
	}
	is("c")
	write(t, n, "01-single.conf", `{"cniVersion":"0.4.0","name":"one","type":"bridge","ipam":{"type":"host-local","subnet":"10.3.0.0/24"}}`)
	is("one")
}

func TestBuiltinYieldsToAFile(t *testing.T) {
	n := open(t, nil)
	if i := n.Info(); i.Name != "shim" || i.Source != "built in" {
		t.Fatalf("%+v", i)
	}
	a, b := testpod.New(t, 1), testpod.New(t, 2)
	attach(t, n, podOf(a))
	write(t, n, "10-a.conflist", listOf("a", "10.1.0.0/24"))
	if r := attach(t, n, podOf(b)); r.IPs[0] != netip.MustParseAddr("10.1.0.2") {
		t.Errorf("got %v", r.IPs)
	}
	detach(t, n, podOf(a))
	leases, err := n.host.Leases("shim")
	if err != nil || len(leases) != 0 {
		t.Errorf("built-in network's leases %v, %v", leases, err)
	}
}

func TestSetPodCIDRs(t *testing.T) {
	n := open(t, nil)
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.200.3.0/24"), netip.MustParsePrefix("fd00:3::/64")}
	if err := n.SetPodCIDRs(cidrs); err != nil {
		t.Fatal(err)
	}
	p := testpod.New(t, 1)
	r := attach(t, n, podOf(p))
	if len(r.IPs) != 2 || r.IPs[0] != netip.MustParseAddr("10.200.3.2") || r.IPs[1] != netip.MustParseAddr("fd00:3::2") {
		t.Errorf("got %v", r.IPs)
	}
	for _, bad := range []string{"10.0.0.1/24", "10.0.0.0/31"} {
		if err := n.SetPodCIDRs([]netip.Prefix{netip.MustParsePrefix(bad)}); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestBadConfigurations(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"no json":          {`]`, "parse"},
		"no name":          {`{"cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}`, "no name"},
		"no plugins":       {`{"cniVersion":"1.0.0","name":"x","plugins":[]}`, "no plugins"},
		"null plugin":      {`{"cniVersion":"1.0.0","name":"x","plugins":[null]}`, "type"},
		"type with path":   {`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"../../bin/sh"}]}`, "not a file name"},
		"type dot dot":     {`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":".."}]}`, "not a file name"},
		"ipam with path":   {`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge","ipam":{"type":"../x"}}]}`, "not a file name"},
		"name with path":   {`{"cniVersion":"1.0.0","name":"../x","plugins":[{"type":"bridge"}]}`, "network name"},
		"unknown plugin":   {`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"nosuch"}]}`, `no plugin "nosuch"`},
		"unknown key":      {`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge","bogus":1}]}`, `unknown field "bogus" is not understood by the built-in plugin, and no plugin "bridge"`},
		"bad value":        {`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge","mtu":"big"}]}`, "mtu"},
		"too long a file":  {strings.Repeat(" ", maxConfig+1), "larger than"},
		"deep nesting":     {strings.Repeat("[", 20000), "depth"},
		"version too new":  {`{"cniVersion":"9.0.0","name":"x","plugins":[{"type":"bridge","ipam":{"type":"host-local","subnet":"10.0.0.0/24"}}]}`, `version "9.0.0"`},
		"excluding values": {`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge","hairpinMode":true,"promiscMode":true}]}`, "exclude"},
	} {
		t.Run(name, func(t *testing.T) {
			n := open(t, nil)
			write(t, n, "10-x.conflist", c.text)
			before := testpod.Links(t)
			err := n.Status()
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("status: %v; want %q", err, c.want)
			}
			p := testpod.New(t, 1)
			if _, err := n.Attach(context.Background(), podOf(p)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("attach: %v; want %q", err, c.want)
			}
			if after := testpod.Links(t); strings.Join(before, "\n") != strings.Join(after, "\n") {
				t.Errorf("links before %q after %q", before, after)
			}
			if n.records.has(p.ID) {
				t.Error("still attached")
			}
		})
	}
}

func TestExternalPlugins(t *testing.T) {
	n := open(t, func(o *Options) { o.Timeout = 300 * time.Millisecond })
	chain := func(plugin string) {
		t.Helper()
		list := strings.Replace(listOf("x", "10.4.0.0/24"), "}}]}", "}},"+plugin+"]}", 1)
		write(t, n, "10-x.conflist", list)
	}
	attempt := func(i int) error {
		_, err := n.Attach(context.Background(), podOf(testpod.New(t, i)))
		return err
	}
	script(t, n, "hang", `[ $CNI_COMMAND = ADD ] && sleep 1000; exit 0`)
	chain(`{"type":"hang"}`)
	err := attempt(1)
	if err == nil || !strings.Contains(err.Error(), `type="hang"`) || !strings.Contains(err.Error(), "did not finish ADD within 300ms and was killed") {
		t.Errorf("hang: %v", err)
	}
	script(t, n, "garbage", `[ $CNI_COMMAND = ADD ] && echo "<html>"; exit 0`)
	chain(`{"type":"garbage"}`)
	if err := attempt(2); err == nil || !strings.Contains(err.Error(), `garbage`) || !strings.Contains(err.Error(), "printed no JSON: \"<html>\"") {
		t.Errorf("garbage: %v", err)
	}
	script(t, n, "endless", `[ $CNI_COMMAND = ADD ] && head -c 3000000 /dev/zero; exit 0`)
	chain(`{"type":"endless"}`)
	if err := attempt(3); err == nil || !strings.Contains(err.Error(), "wrote more than") {
		t.Errorf("endless: %v", err)
	}
	script(t, n, "crash", `[ $CNI_COMMAND = ADD ] && { echo "it broke" >&2; kill -9 $$; }; exit 0`)
	chain(`{"type":"crash"}`)
	if err := attempt(4); err == nil || !strings.Contains(err.Error(), "signal: killed") || !strings.Contains(err.Error(), "it broke") {
		t.Errorf("crash: %v", err)
	}
	// In the middle of built-ins it sees what they did and passes it on; it gets what the runtime knows of the pod.
	seen := filepath.Join(t.TempDir(), "seen")
	script(t, n, "middle", `cat > `+seen+`.$CNI_COMMAND; env | grep ^CNI_ >> `+seen+`.$CNI_COMMAND
[ $CNI_COMMAND = ADD ] && sed -n 's/.*"prevResult":\({.*}\),"runtimeConfig".*/\1/p' `+seen+`.ADD; exit 0`)
	chain(`{"type":"middle","capabilities":{"io.kubernetes.cri.pod-annotations":true,"bandwidth":true}},{"type":"portmap","capabilities":{"portMappings":true}}`)
	pod := podOf(testpod.New(t, 5))
	pod.Annotations = map[string]string{"color": "blue"}
	pod.Bandwidth = Bandwidth{IngressRate: 1000}
	pod.PortMappings = []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "TCP"}}
	// The addresses before went to the attempts that failed, and came back; round robin goes on behind them.
	if r := attach(t, n, pod); r.IPs[0] != netip.MustParseAddr("10.4.0.6") {
		t.Errorf("got %v", r.IPs)
	}
	detach(t, n, pod)
	for verb, wants := range map[string][]string{
		"ADD": {"CNI_COMMAND=ADD", "CNI_CONTAINERID=" + pod.ID, "CNI_NETNS=" + pod.NetNS, "CNI_IFNAME=eth0", "K8S_POD_NAME=web", `"color":"blue"`, `"ingressRate":1000`, `"prevResult":{`},
		"DEL": {"CNI_COMMAND=DEL", "CNI_CONTAINERID=" + pod.ID, `"color":"blue"`, `"prevResult":{`},
	} {
		b, err := os.ReadFile(seen + "." + verb)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range wants {
			if !strings.Contains(string(b), w) {
				t.Errorf("%s: no %s in %s", verb, w, b)
			}
		}
	}
}

// Every capability that a plugin declares gets what the runtime knows; those that it doesn't declare are not told.
func TestCapabilities(t *testing.T) {
	n := open(t, nil)
	seen := filepath.Join(t.TempDir(), "seen")
	script(t, n, "curious", `tee `+seen+` | sed -n 's/.*"prevResult":\({.*}\),"runtimeConfig".*/\1/p'`)
	declared := `"portMappings":true,"bandwidth":true,"ipRanges":true,"mac":true,"aliases":true,"dns":true,"io.kubernetes.cri.pod-annotations":true,"cgroupPath":false`
	write(t, n, "10-x.conflist", strings.Replace(listOf("x", "10.4.0.0/24"), "}}]}", `}},{"type":"curious","capabilities":{`+declared+`}}]}`, 1))
	pod := podOf(testpod.New(t, 1))
	pod.PortMappings = []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "UDP", HostIP: "192.0.2.1"}, {ContainerPort: 9}}
	pod.Bandwidth = Bandwidth{IngressRate: 8000, IngressBurst: 80000}
	pod.MAC, pod.Aliases, pod.CgroupParent = "02:11:22:33:44:55", []string{"www"}, "/pods/x"
	pod.DNS = DNS{Servers: []string{"10.0.0.10"}, Searches: []string{"svc"}, Options: []string{"ndots:5"}}
	pod.Annotations = map[string]string{"color": "blue"}
	attach(t, n, pod)
	b, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		RuntimeConfig map[string]any `json:"runtimeConfig"`
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	type (
		object = map[string]any
		list   = []any
	)
	want := object{
		"portMappings": list{object{"hostPort": 8080.0, "containerPort": 80.0, "protocol": "udp", "hostIP": "192.0.2.1"}},
		"bandwidth":    object{"ingressRate": 8000.0, "ingressBurst": 80000.0, "egressRate": 0.0, "egressBurst": 0.0},
		"ipRanges":     list{list{object{"subnet": "10.88.0.0/16"}}},
		"mac":          "02:11:22:33:44:55", "aliases": list{"www"},
		"dns":                               object{"servers": list{"10.0.0.10"}, "searches": list{"svc"}, "options": list{"ndots:5"}},
		"io.kubernetes.cri.pod-annotations": object{"color": "blue"},
	}
	if d := cmp.Diff(want, got.RuntimeConfig); d != "" {
		t.Error("runtimeConfig:", d)
	}
}

// What a binary answers to STATUS is the network's state, though nobody waits for it.
func TestStatusOfBinaries(t *testing.T) {
	n := open(t, nil)
	withPlugin(t, n, "moody", `[ $CNI_COMMAND = STATUS ] && { echo '{"cniVersion":"1.1.0","code":50,"msg":"no server yet"}'; exit 1; }; exit 0`)
	until(t, "the plugin's answer is known", func() bool {
		err := n.Status()
		return err != nil && strings.Contains(err.Error(), "no server yet") && strings.Contains(err.Error(), "10-x.conflist")
	})
	withPlugin(t, n, "moody", `exit 0`)
	until(t, "it is well again", func() bool { return n.Status() == nil })
}

// A key that a built-in doesn't know: the binary of that name serves the configuration.
func TestUnknownKeyRunsTheBinary(t *testing.T) {
	n := open(t, nil)
	seen := filepath.Join(t.TempDir(), "seen")
	script(t, n, "host-local", `cat > `+seen+`
[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.5.0.77/24","gateway":"10.5.0.1"}]}'; exit 0`)
	write(t, n, "10-x.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge","bridge":"x0","isGateway":true,
		"ipam":{"type":"host-local","subnet":"10.5.0.0/24","novelty":true}}]}`)
	p := testpod.New(t, 1)
	if r := attach(t, n, podOf(p)); r.IPs[0] != netip.MustParseAddr("10.5.0.77") {
		t.Errorf("got %v", r.IPs)
	}
	if err := os.Remove(seen); err != nil {
		t.Fatal(err)
	}
	detach(t, n, podOf(p))
	if _, err := os.Stat(seen); err != nil {
		t.Error("DEL did not reach the binary:", err)
	}
}

func TestOverlappingSubnet(t *testing.T) {
	n := open(t, nil)
	world(t, 1) // the node has 192.0.2.0/24 and 2001:db8::/64 on uplink0
	for subnet, want := range map[string]string{
		"192.0.2.0/24":    "subnet 192.0.2.0/24 overlaps the host's route to 192.0.2.0/24 (interface uplink0)",
		"192.0.2.128/25":  "overlaps",
		"192.0.0.0/16":    "overlaps",
		"2001:db8::/48":   "overlaps the host's route to 2001:db8::/64 (interface uplink0)",
		"192.0.3.0/24":    "",
		"2001:db8:1::/64": "",
	} {
		write(t, n, "10-x.conflist", listOf("x", subnet))
		err := n.Status()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v; want %q", subnet, err, want)
		}
		_, err = n.Attach(context.Background(), podOf(testpod.New(t, 1)))
		if (want == "") != (err == nil) {
			t.Errorf("attach to %s: %v", subnet, err)
		}
		if err := n.GC(context.Background(), nil); err != nil {
			t.Fatal(err)
		}
		if l, err := netlink.LinkByName("x0"); err == nil {
			_ = netlink.LinkDel(l)
		}
	}
	// In use, and after a restart, its own route is no conflict.
	write(t, n, "10-x.conflist", listOf("x", "10.1.0.0/24"))
	attach(t, n, podOf(testpod.New(t, 2)))
	again, err := New(n.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Status(); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(listOf("a", "10.1.0.0/24")))
	f.Add([]byte(`{"cniVersion":"0.4.0","name":"one","type":"bridge","ipam":{"type":"host-local","ranges":[[{"subnet":"fd00::/64"}]]}}`))
	f.Add([]byte(`{"cniVersions":["1.0.0"],"name":"x","plugins":[null]}`))
	n := &Network{opts: Options{BinDirs: []string{"/nonexistent"}}}
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parse(data)
		if err != nil {
			return
		}
		for _, p := range list.Plugins {
			if strings.ContainsAny(p.Network.Type, "/\x00") || p.Network.Type == ".." {
				t.Fatalf("type %q", p.Network.Type)
			}
			_, _ = n.runBy(p)
		}
	})
}
