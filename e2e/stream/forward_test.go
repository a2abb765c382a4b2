// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

// echoing runs a server on an address of the pod's that gives back what comes and ends a connection when the client has no more.
func echoing(p *kit.Pod, address string, mods ...func(*cri.ContainerConfig)) {
	p.Run(testimage.Busybox, []string{"probe", "echo", address}, mods...).WaitLog("listening")
}

// TestPortForward: 50 connections at once into the pod's namespace, by IPv4 and, where only that answers, IPv6; the end
// of the answer comes after the half-close. A port that nobody listens on, or that is the host's, is refused.
func TestPortForward(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	for port, address := range map[int]string{7000: "127.0.0.1:7000", 7001: "[::1]:7001", 7002: ":7002"} {
		echoing(pod, address)
		conn := forwarding(t, forwardURL(t, pod))
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				data, errs := forward(t, conn, port, i)
				text := strings.Repeat(fmt.Sprintf("%d ", i), 20000)
				go func() {
					_, _ = io.WriteString(data, text)
					_ = data.Close()
				}()
				if got := all(t, data); got != text {
					t.Errorf("%s, connection %d: %d bytes of %d", address, i, len(got), len(text))
				}
				if got := all(t, errs); got != "" {
					t.Errorf("%s, connection %d: %s", address, i, got)
				}
			})
		}
		wg.Wait()
	}
	for port, what := range map[int]string{7999: "nobody's", 7000: "another pod's"} {
		_, errs := forward(t, forwarding(t, forwardURL(t, kit.RunPod(t, n))), port, 1)
		text, _ := io.ReadAll(errs)
		if !strings.Contains(string(text), "connection refused") {
			t.Errorf("%s port %d: %q", what, port, text)
		}
	}
}

// TestPortForwardWebSocket has a channel pair for each port of the request.
func TestPortForwardWebSocket(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	echoing(pod, ":7003")
	resp, err := n.Runtime.PortForward(kit.Context(t), &cri.PortForwardRequest{PodSandboxId: pod.ID, Port: []int32{7003}})
	if err != nil {
		t.Fatal(err)
	}
	conn, u, err := dial(resp.Url)
	if err != nil {
		t.Fatal(err)
	}
	ws, err := socket(conn, u, "v4.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if err := websocket.Message.Send(ws, []byte("\x00by WebSocket")); err != nil {
		t.Fatal(err)
	}
	receive(t, ws, 0, "by WebSocket")
}

// TestPortForwardHostNetwork reaches the node's own loopback.
func TestPortForwardHostNetwork(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	})
	echoing(pod, "127.0.0.1:7010", func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	})
	data, _ := forward(t, forwarding(t, forwardURL(t, pod)), 7010, 1)
	_, _ = io.WriteString(data, "to the host")
	_ = data.Close()
	if got := all(t, data); got != "to the host" {
		t.Errorf("got %q", got)
	}
}
