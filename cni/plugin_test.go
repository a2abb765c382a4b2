// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"crishim.dev/cni/builtin/lease"
	"crishim.dev/cni/builtin/testpod"
)

const sharedConf = `{"cniVersion":"1.0.0","name":"shared","type":"bridge","bridge":"shared0","isGateway":true,"ipam":{"type":"host-local","subnet":"10.6.0.0/24"}}`

// pluginCall runs one of our plugins as another runtime would: a process, not started by a daemon of ours.
func pluginCall(n *Network, verb, conf string, p *testpod.Pod) (string, error) {
	cmd := exec.Command(filepath.Join(n.opts.BinDirs[0], "bridge"))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+p.ID, "CNI_NETNS="+p.Path, "CNI_IFNAME=eth0", "CNI_PATH="+n.opts.BinDirs[0])
	cmd.Stdin = strings.NewReader(conf)
	out, err := cmd.Output()
	return string(out), err
}

// The daemon and plugin processes take addresses of one network at one time: none is given twice, and what another runtime has is left alone.
func TestOneLeaseStore(t *testing.T) {
	n := open(t, nil)
	install(t, n)
	write(t, n, "10-shared.conf", sharedConf)
	const each = 15
	var ours, theirs []*testpod.Pod
	for i := range each {
		ours, theirs = append(ours, testpod.New(t, i)), append(theirs, testpod.New(t, 1000+i))
	}
	var all sync.WaitGroup
	for i := range each {
		all.Go(func() {
			if _, err := n.Attach(context.Background(), podOf(ours[i])); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			if out, err := pluginCall(n, "ADD", sharedConf, theirs[i]); err != nil {
				t.Error(out, err)
			}
		})
	}
	all.Wait()
	leases, err := n.host.Leases("shared")
	if err != nil || len(leases) != 2*each {
		t.Fatalf("%d leases, %v; want %d", len(leases), err, 2*each)
	}
	if err := n.GC(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	leases, err = n.host.Leases("shared")
	if err != nil || len(leases) != each || slices.ContainsFunc(leases, func(l lease.Lease) bool { return !l.Foreign }) {
		t.Errorf("after GC: %v, %v; want those of the other runtime", leases, err)
	}
	serve(t, theirs[0], ":80")
	at := slices.IndexFunc(leases, func(l lease.Lease) bool { return l.Owner.Container == theirs[0].ID })
	if _, err := ask(t, theirs[1], addrPort(leases[at].Addr, 80)); err != nil {
		t.Errorf("their pods after our GC: %v", err)
	}
	for _, p := range theirs {
		if out, err := pluginCall(n, "DEL", sharedConf, p); err != nil {
			t.Error(out, err)
		}
	}
	if leases, err = n.host.Leases("shared"); err != nil || len(leases) != 0 {
		t.Errorf("at the end: %v, %v", leases, err)
	}
}

// A plugin of a third party that hands on to bridge by exec finds ours (flannel, multus).
func TestDelegation(t *testing.T) {
	n := open(t, nil)
	install(t, n)
	script(t, n, "flannel", `conf=$(cat); printf '%s' "$conf" | sed 's/.*"delegate":\({.*}\),"name".*/\1/' | sed 's/}$/,"name":"d","cniVersion":"1.0.0"}/' | "$CNI_PATH/bridge"`)
	write(t, n, "10-x.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"flannel","delegate":{"type":"bridge","bridge":"d0","isGateway":true,
		"ipam":{"type":"host-local","subnet":"10.5.0.0/24"}}},{"type":"portmap","capabilities":{"portMappings":true}}]}`)
	pod := podOf(testpod.New(t, 1))
	pod.PortMappings = []PortMapping{{HostPort: 8080, ContainerPort: 80}}
	if r := attach(t, n, pod); r.IPs[0] != netip.MustParseAddr("10.5.0.2") {
		t.Errorf("got %v", r.IPs)
	}
	if len(portsOf(t, n)) != 1 {
		t.Error("no host port")
	}
	// The owner of the port is live: it has a record here.
	other := podOf(testpod.New(t, 2))
	other.PortMappings = pod.PortMappings
	if _, err := n.Attach(context.Background(), other); err == nil || !strings.Contains(err.Error(), "in use by pod "+pod.ID) {
		t.Errorf("second pod: %v", err)
	}
	detach(t, n, pod)
	leases, err := n.host.Leases("d")
	if err != nil || len(leases) != 0 || len(portsOf(t, n)) != 0 {
		t.Errorf("left: %v, %v, %v", leases, portsOf(t, n), err)
	}
}

func TestPluginProtocol(t *testing.T) {
	n := open(t, nil)
	install(t, n)
	p := testpod.New(t, 1)
	for name, c := range map[string]struct{ verb, conf, want string }{
		"version":      {"VERSION", "", `"supportedVersions":["0.1.0"`},
		"status":       {"STATUS", strings.Replace(sharedConf, "1.0.0", "1.1.0", 1), ``},
		"unknown verb": {"DANCE", sharedConf, `"code": 4`},
		"unknown key":  {"ADD", strings.Replace(sharedConf, `"isGateway"`, `"novelty":1,"isGateway"`, 1), `unknown field \"novelty\" is not understood by the built-in plugin`},
		"no json":      {"ADD", "{", `"code": 6`},
		"bad name":     {"ADD", strings.Replace(sharedConf, `"shared"`, `"../x"`, 1), `"code": 7`},
		"bad subnet":   {"ADD", strings.Replace(sharedConf, `10.6.0.0/24`, `10.6.0.1/24`, 1), `host bits`},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := pluginCall(n, c.verb, c.conf, p)
			var exit *exec.ExitError
			if bad := strings.Contains(c.want, "code") || strings.Contains(c.want, "not understood") || c.want == "host bits"; bad != errors.As(err, &exit) {
				t.Errorf("%v", err)
			}
			if !strings.Contains(out, c.want) {
				t.Errorf("printed %s; want %s", out, c.want)
			}
		})
	}
	// The tuning plugin can write sysctls here, unlike in the daemon; but not those of the whole machine.
	chain := `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge","bridge":"x0","ipam":{"type":"host-local","subnet":"10.5.0.0/24"}},{"type":"tuning","sysctl":{"NAME":"1"}}]}`
	write(t, n, "10-x.conflist", strings.Replace(chain, "NAME", "net.ipv4.conf.IFNAME.arp_filter", 1))
	attach(t, n, podOf(p))
	p.Do(t, func() error {
		b, err := os.ReadFile("/proc/sys/net/ipv4/conf/eth0/arp_filter")
		if err == nil && strings.TrimSpace(string(b)) != "1" {
			err = errors.New("arp_filter is " + string(b))
		}
		return err
	})
	for _, name := range []string{"kernel.hostname", "net/../kernel/hostname", "net.ipv4/../../kernel/hostname"} {
		write(t, n, "10-x.conflist", strings.Replace(chain, "NAME", name, 1))
		if _, err := n.Attach(context.Background(), podOf(testpod.New(t, 2))); err == nil || !strings.Contains(err.Error(), "sysctl") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
