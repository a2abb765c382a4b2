// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"fmt"
	"io"
	"net"
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

// TestStreamsIntoUserNamespace: exec, attach and forwarded ports reach a pod with users of its own as they do any other.
func TestStreamsIntoUserNamespace(t *testing.T) {
	n := node(t)
	ids := []*cri.IDMapping{{HostId: 500000, Length: 65536}}
	pod := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
	})
	echoing(pod, "127.0.0.1:7020")
	data, errs := forward(t, forwarding(t, forwardURL(t, pod)), 7020, 1)
	_, _ = io.WriteString(data, "to mapped users")
	_ = data.Close()
	if got, failed := all(t, data), all(t, errs); got != "to mapped users" || failed != "" {
		t.Errorf("port-forward: %q, %q", got, failed)
	}

	const mapping = "0 500000 65536\n"
	const show = "echo $(cat /proc/self/uid_map)"
	c := pod.Run(testimage.Busybox, []string{"sh", "-c", "read l; " + show + "; cat"}, func(c *cri.ContainerConfig) { c.Stdin = true })
	s := connect(t, execURL(t, c, &cri.ExecRequest{Cmd: []string{"sh", "-c", "read l; echo $l; " + show}, Stdin: true, Stdout: true}), stdin, stdout)
	_, _ = io.WriteString(s.stdin, "typed\n")
	if got := all(t, s.stdout); got != "typed\n"+mapping {
		t.Errorf("exec: %q", got)
	}
	tty := connect(t, execURL(t, c, &cri.ExecRequest{Cmd: []string{"sh"}, Stdin: true, Stdout: true, Tty: true}), stdin, stdout, resize)
	_, _ = fmt.Fprint(tty.resize, `{"Width":132,"Height":50}`)
	_, _ = io.WriteString(tty.stdin, "until stty size | grep -q '50 132'; do :; done; echo now $(stty size) on $(tty) of $(stat -c %u $(tty))\n")
	until(t, tty.stdout, "now 50 132 on /dev/pts/0 of 0")
	a := connect(t, attachURL(t, c, &cri.AttachRequest{Stdin: true, Stdout: true}), stdin, stdout)
	_, _ = io.WriteString(a.stdin, "\n")
	until(t, a.stdout, mapping)
}

// TestCrictlPortForward: by both of its transports, two connections each.
func TestCrictlPortForward(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	echoing(pod, ":7030")
	for local, transport := range map[string]string{"17030": "spdy", "17031": "websocket"} {
		ctx, stop := context.WithCancel(kit.Context(t))
		ended := make(chan error, 1)
		go func() {
			_, err := n.Crictl(ctx, "port-forward", "--transport", transport, pod.ID, local+":7030")
			ended <- err
		}()
		for range 2 {
			text := strings.Repeat("through crictl ", 10000)
			var conn net.Conn
			kit.Until(t, func() (err error) {
				select {
				case err := <-ended:
					t.Fatalf("%s: crictl ended: %v", transport, err)
				default:
				}
				conn, err = net.Dial("tcp", "127.0.0.1:"+local)
				return err
			})
			go func() {
				_, _ = io.WriteString(conn, text)
				_ = conn.(*net.TCPConn).CloseWrite()
			}()
			if got := all(t, conn); got != text {
				t.Errorf("%s: %d bytes came back of %d", transport, len(got), len(text))
			}
			_ = conn.Close()
		}
		stop()
		<-ended
	}
}
