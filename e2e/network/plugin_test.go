// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
)

// chain is a bridge network with a third party's plugin in the middle.
const chain = `{"cniVersion":"1.1.0","name":"chain","plugins":[
	{"type":"bridge","bridge":"chain0","isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.60.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
	{"type":"third","color":"blue"},
	{"type":"portmap","capabilities":{"portMappings":true}}]}`

// passOn is a plugin that gives on what it was given, and writes down what it was asked for.
const passOn = `conf=$(cat); echo "$CNI_COMMAND $CNI_CONTAINERID" >> DIR/asked
[ $CNI_COMMAND = ADD ] && printf '%s' "$conf" | sed 's/.*"prevResult":\({.*}\),"type".*/\1/'
`

// TestThirdParty has a plugin of others between built-in ones: it is run for each pod and for nothing else, and one whose DEL fails holds
// up neither the end of the pod's processes nor, once its cause is gone, the pod.
func TestThirdParty(t *testing.T) {
	n := startNode(t)
	script := strings.ReplaceAll(passOn, "DIR", n.Dir)
	n.plugin("third", script+"exit 0")
	n.configure(chain)
	kit.RunPod(t, n.Node).Remove()
	n.mark()
	web, inside := n.web("behind a chain", hostPort(8080, 80))
	client, _ := n.web("client")
	hears(t, inside, "http://"+client.IP()+"/", "client")
	hears(t, inside, "http://10.60.0.1:8080/", "behind a chain")
	asked := func() string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(n.Dir, "asked"))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if !strings.Contains(asked(), "ADD "+web.ID) {
		t.Errorf("the plugin was asked for %q", asked())
	}

	n.plugin("third", script+`[ $CNI_COMMAND = DEL ] && { echo '{"cniVersion":"1.1.0","code":11,"msg":"the server is down"}'; exit 1; }; exit 0`)
	ip := web.IP()
	_, err := n.Runtime.StopPodSandbox(kit.Context(t), &cri.StopPodSandboxRequest{PodSandboxId: web.ID})
	if err == nil || !strings.Contains(err.Error(), `type="third"`) || !strings.Contains(err.Error(), "the server is down") {
		t.Errorf("stop: %v; want an error that names the plugin and its reason", err)
	}
	if s := inside.Status(); s.GetState() != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("the container is %v; want it to have ended", s.GetState())
	}
	if s := web.Status().GetStatus(); s.GetState() != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the pod is %v", s.GetState())
	}
	if other, _ := n.web("other"); other.IP() == ip {
		t.Error("another pod has the address of one that is not detached")
	}
	n.plugin("third", script+"exit 0")
	web.Stop()
	client.Remove()
	if strings.Count(asked(), "DEL "+web.ID) < 2 {
		t.Errorf("the plugin was asked for %q", asked())
	}
	web.Remove()

	// It is detached without being asked again, and nobody waits for a plugin of a network that is gone.
	stuck, _ := n.web("stuck")
	n.plugin("third", script+`[ $CNI_COMMAND = DEL ] && exit 1; exit 0`)
	if _, err := n.Runtime.StopPodSandbox(kit.Context(t), &cri.StopPodSandboxRequest{PodSandboxId: stuck.ID}); err == nil {
		t.Error("stop succeeds though the plugin fails")
	}
	n.tell("restart") // the next daemon goes on with it
	n.plugin("third", script+"exit 0")
	kit.Until(t, func() error {
		if _, err := os.Stat(filepath.Join(n.Dir, "lib/network", stuck.ID)); err == nil {
			return fmt.Errorf("pod %s is still attached", stuck.ID)
		}
		return nil
	})
	gone, _ := n.web("gone")
	n.plugin("third", "exit 1")
	if err := os.Remove(filepath.Join(n.Dir, "cni/net.d/10-test.conflist")); err != nil {
		t.Fatal(err)
	}
	gone.Stop()
	if err := os.Remove(filepath.Join(n.Dir, "asked")); err != nil {
		t.Fatal(err)
	}
}

// TestWhyOfAHangingPlugin sees which plugin a call waits for.
func TestWhyOfAHangingPlugin(t *testing.T) {
	n := startNode(t)
	free := filepath.Join(n.Dir, "free")
	script := strings.ReplaceAll(passOn, "DIR", n.Dir)
	n.plugin("third", script+"exit 0")
	n.configure(chain)
	kit.RunPod(t, n.Node).Remove()
	n.mark()
	n.plugin("third", script+`while [ $CNI_COMMAND = ADD ] && [ ! -e `+free+` ]; do sleep 0.05; done; exit 0`)
	done := make(chan error, 1)
	config := kit.PodConfig(t, n.Node)
	go func() {
		r, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: config})
		if err == nil {
			_, err = n.Runtime.RemovePodSandbox(kit.Context(t), &cri.RemovePodSandboxRequest{PodSandboxId: r.GetPodSandboxId()})
		}
		done <- err
	}()
	kit.Until(t, func() error {
		out := n.output("shim", "--config", filepath.Join(n.Dir, "config.toml"), "why")
		if !strings.Contains(out, "wait for plugin") || !strings.Contains(out, "third (ADD)") {
			return fmt.Errorf("why says %q", out)
		}
		return nil
	})
	if err := os.WriteFile(free, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// KUBELET.md 29: ports of 0, and all of pods in the host's network, are ignored.
func TestKubelet29IgnoredPorts(t *testing.T) {
	n := startNode(t)
	ports := func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{{ContainerPort: 80}, {ContainerPort: 81, HostPort: 0, Protocol: cri.Protocol_UDP}}
	}
	kit.RunPod(t, n.Node, ports)
	kit.RunPod(t, n.Node, ports, onHostNetwork, hostPort(8080, 80))
	_, inside := n.web("holder", hostPort(8080, 80)) // it is nobody's
	hears(t, inside, "http://192.0.2.1:8080/", "holder")
}

// KUBELET.md 30: a host port is free as soon as its pod is stopped; that of a live pod is refused, by name.
func TestKubelet30HostPorts(t *testing.T) {
	n := startNode(t)
	first, _ := n.web("first", hostPort(8080, 80))
	_, client := n.web("client")
	config := kit.PodConfig(t, n.Node, hostPort(8080, 80))
	_, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: config})
	if err == nil || !strings.Contains(err.Error(), "8080/tcp: in use by pod "+first.ID) {
		t.Errorf("the port of a live pod: %v", err)
	}
	hears(t, client, "http://192.0.2.1:8080/", "first")
	first.Stop()
	n.web("second", hostPort(8080, 80))
	hears(t, client, "http://192.0.2.1:8080/", "second")
}

// KUBELET.md 31: the node's pod CIDR is the built-in network's; a configuration that appears is used at once.
func TestKubelet31Range(t *testing.T) {
	n := startNode(t)
	remove := func() {
		t.Helper()
		if err := os.Remove(filepath.Join(n.Dir, "cni/net.d/10-test.conflist")); err != nil {
			t.Fatal(err)
		}
	}
	plain := strings.ReplaceAll(chain, `{"type":"third","color":"blue"},`, "")
	_, err := n.Runtime.UpdateRuntimeConfig(kit.Context(t), &cri.UpdateRuntimeConfigRequest{RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: "10.77.3.0/24"}}})
	if err != nil {
		t.Fatal(err)
	}
	kit.RunPod(t, n.Node).Remove()
	n.configure(plain)
	kit.RunPod(t, n.Node).Remove()
	remove()
	n.mark()
	pod, inside := n.web("built in")
	if !strings.HasPrefix(pod.IP(), "10.77.3.") {
		t.Errorf("address %s", pod.IP())
	}
	hears(t, inside, "http://"+pod.IP()+"/", "built in")
	n.configure(plain)
	if other := kit.RunPod(t, n.Node); !strings.HasPrefix(other.IP(), "10.60.0.") {
		t.Errorf("with a configuration, address %s", other.IP())
	}
	n.configure("{")
	s, err := n.Runtime.Status(kit.Context(t), &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.GetStatus().GetConditions() {
		if c.GetType() == cri.NetworkReady && (c.GetStatus() || c.GetReason() != "NetworkPluginNotReady" || !strings.Contains(c.GetMessage(), "10-test.conflist")) {
			t.Errorf("condition %v", c)
		}
	}
	remove()
}
