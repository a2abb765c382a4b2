// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

// flat is one network over all nodes; %s is the file of peers.
const flat = `{"cniVersion":"1.1.0","name":"flat","plugins":[
	{"type":"vxlan","network":["10.244.0.0/16","fd00:244::/48"],"peersFile":%q},
	{"type":"portmap","capabilities":{"portMappings":true}}]}`

// peers lists nodes as the file of peers has them.
func peers(nodes ...int) string {
	var out []string
	for _, i := range nodes {
		out = append(out, fmt.Sprintf(`{"node":"198.51.100.%[1]d","subnets":["10.244.%[1]d.0/24","fd00:244:0:%[1]d::/64"]}`, i))
	}
	return "[" + strings.Join(out, ",") + "]"
}

// replace writes a file of peers as a tool does: by rename.
func replace(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// join starts node i on the switch, in the flat network, and takes stock once it has had a pod.
func join(t *testing.T, sw netlink.Link, i int, file string) *member {
	t.Helper()
	m := startNode(t)
	m.plug(sw, i)
	m.configure(fmt.Sprintf(flat, file))
	first, err := m.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: kit.PodConfig(t, m.Node)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Runtime.RemovePodSandbox(kit.Context(t), &cri.RemovePodSandboxRequest{PodSandboxId: first.GetPodSandboxId()}); err != nil {
		t.Fatal(err)
	}
	m.mark()
	return m
}

func hostPort(host, inner int32) func(*cri.PodSandboxConfig) {
	return func(c *cri.PodSandboxConfig) {
		c.PortMappings = append(c.PortMappings, &cri.PortMapping{HostPort: host, ContainerPort: inner})
	}
}

func onHostNetwork(c *cri.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
}

func addresses(t *testing.T, p *kit.Pod) (v4, v6 string) {
	t.Helper()
	n := p.Status().GetStatus().GetNetwork()
	if len(n.GetAdditionalIps()) != 1 || !strings.Contains(n.GetAdditionalIps()[0].GetIp(), ":") || strings.Contains(n.GetIp(), ":") {
		t.Fatalf("addresses %v; want one of each family, IPv4 first", n)
	}
	return n.GetIp(), "[" + n.GetAdditionalIps()[0].GetIp() + "]"
}

// Pods of several nodes ping and speak HTTP to each other; a node is lost, comes back, is cut off; another joins.
func TestPodsAcrossNodes(t *testing.T) {
	sw := cable(t)
	file := filepath.Join(t.TempDir(), "peers.json")
	replace(t, file, peers(1, 2))
	a, b := join(t, sw, 1, file), join(t, sw, 2, file)
	podA, inA := a.web("pod on a", hostPort(8080, 80), hostPort(53, 80))
	podB, inB := b.web("pod on b")
	v4A, v6A := addresses(t, podA)
	v4B, v6B := addresses(t, podB)
	for _, url := range []string{v4B, v6B} {
		hears(t, inA, "http://"+url+"/", "pod on b")
	}
	for _, url := range []string{v4A, v6A} {
		hears(t, inB, "http://"+url+"/", "pod on a")
	}
	inA.Exec("ping", "-c", "2", "-W", "5", v4B)
	inB.Exec("ping", "-c", "2", "-W", "5", strings.Trim(v6A, "[]"))
	if got := inA.Exec("wget", "http://"+v4B+"/remote"); !strings.HasPrefix(got, v4A+":") {
		t.Errorf("the other node's pod sees %q; want the pod's own address %s", got, v4A)
	}

	t.Run("mtu", func(t *testing.T) {
		if got := inA.Exec("cat", "/sys/class/net/eth0/mtu"); got != "1450\n" {
			t.Errorf("MTU %q; want what the cable has less the tunnel's 50", got)
		}
		inA.Exec("ping", "-c", "1", "-W", "5", "-s", "1422", v4B) // with its headers 1450
	})
	t.Run("host ports", func(t *testing.T) {
		node := kit.RunPod(t, b.Node, onHostNetwork).Run(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
		})
		hears(t, node, "http://198.51.100.1:8080/", "pod on a")
		hears(t, node, "http://[2001:db8:100::1]:8080/", "pod on a")
		hears(t, inB, "http://198.51.100.1:8080/", "pod on a")
		hearsNothing(t, node, "http://198.51.100.2:8080/")
	})
	t.Run("a host port 53 leaves what pods ask others alone", func(t *testing.T) {
		server := kit.RunPod(t, b.Node, onHostNetwork).Run(testimage.Busybox, []string{"probe", "http", "198.51.100.2:53", "name server"}, func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
		})
		_, other := a.web("other pod on a")
		hears(t, other, "http://198.51.100.2:53/", "name server")
		hears(t, other, "http://198.51.100.1:53/", "pod on a")
		server.Stop(0)
	})
	t.Run("a cable is pulled", func(t *testing.T) {
		setPort(t, 2, false)
		hearsNothing(t, inA, "http://"+v4B+"/")
		setPort(t, 2, true)
		hears(t, inA, "http://"+v4B+"/", "pod on b")
	})
	t.Run("a node joins, is lost and returns", func(t *testing.T) {
		replace(t, file, peers(1, 2, 3))
		c := join(t, sw, 3, file)
		kit.Pull(t, c.Node, testimage.Busybox)
		url := c.doomed("pod on c")
		hears(t, inA, "http://"+url+"/", "pod on c")
		c.crash()
		hears(t, inA, "http://"+v4B+"/", "pod on b")
		hearsNothing(t, inA, "http://"+url+"/")
		c = join(t, sw, 3, file)
		podC, inC := c.web("pod on c again")
		url, _ = addresses(t, podC)
		hears(t, inB, "http://"+url+"/", "pod on c again")
		hears(t, inC, "http://"+v4A+"/", "pod on a")
	})
	replace(t, file, peers(1, 2)) // the nodes are compared with when there were two
}
