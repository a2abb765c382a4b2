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
	"time"

	"golang.org/x/net/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// echo answers each connection with what came, after the client's half-close, and a greeting before it.
func echo(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				data, _ := io.ReadAll(c)
				_, _ = fmt.Fprintf(c, "got %s", data)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func (s *testServer) dialLoopback() {
	s.runtime.dial = func(ctx context.Context, port uint16) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	}
}

func TestPortForwardSPDY(t *testing.T) {
	s := start(t, nil)
	s.dialLoopback()
	port := echo(t)
	u, err := s.PortForward(&cri.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := spdyDial(t, u, portforward.ProtocolV1Name)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			data, errStream := forward(t, conn, port, i)
			text := strings.Repeat(fmt.Sprint(i), 10000)
			if _, err := io.WriteString(data, text); err != nil {
				t.Error(err)
			}
			_ = data.Close() // the answer comes only after the half-close has gone through
			if got := readAll(t, data); got != "got "+text {
				t.Errorf("connection %d: %d bytes", i, len(got))
			}
			if got := readAll(t, errStream); got != "" {
				t.Errorf("connection %d: error %q", i, got)
			}
		})
	}
	wg.Wait()
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := dead.Addr().(*net.TCPAddr).Port
	_ = dead.Close()
	if _, errStream := forward(t, conn, nobody, 1000); !strings.Contains(reason(errStream), "refused") {
		t.Error("nobody listens, but no error came")
	}
}

// TestPortForwardTunnel: SPDY inside a WebSocket, as crictl and client-go have it; the tunnel ends with either side.
func TestPortForwardTunnel(t *testing.T) {
	s := start(t, func(o *Options) { o.IdleTimeout = 500 * time.Millisecond })
	s.dialLoopback()
	port := echo(t)
	tunnel := func() httpstream.Connection {
		u, err := s.PortForward(&cri.PortForwardRequest{PodSandboxId: "p"})
		if err != nil {
			t.Fatal(err)
		}
		ws := wsDial(t, u, "SPDY/3.1+other", "SPDY/3.1+"+portforward.ProtocolV1Name)
		ws.PayloadType = websocket.BinaryFrame
		conn, err := spdy.NewClientConnection(ws)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	conn := tunnel()
	for i := range 3 {
		data, errStream := forward(t, conn, port, i)
		text := strings.Repeat(fmt.Sprint(i), 100000)
		go func() {
			_, _ = io.WriteString(data, text)
			_ = data.Close()
		}()
		if got := readAll(t, data); got != "got "+text {
			t.Errorf("connection %d: %d bytes", i, len(got))
		}
		if got := readAll(t, errStream); got != "" {
			t.Errorf("connection %d: error %q", i, got)
		}
	}
	_ = conn.Close()
	<-tunnel().CloseChan() // nothing happens on it
	u, err := s.PortForward(&cri.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := websocket.NewConfig("ws"+strings.TrimPrefix(u, "http"), "http://localhost/")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Protocol = []string{"SPDY/3.1+other.k8s.io"}
	if c, err := websocket.DialConfig(cfg); err == nil {
		_ = c.Close()
		t.Error("a protocol that nobody knows was accepted")
	}
}

func TestPortForwardOnlyPortsOfTheRequest(t *testing.T) {
	s := start(t, nil)
	s.dialLoopback()
	port := echo(t)
	u, err := s.PortForward(&cri.PortForwardRequest{PodSandboxId: "p", Port: []int32{int32(port)}})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := spdyDial(t, u, portforward.ProtocolV1Name)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, errStream := forward(t, conn, port+1, 1); !strings.Contains(reason(errStream), "not in the request") {
		t.Error("another port was forwarded")
	}
}

func TestPortForwardWebSocket(t *testing.T) {
	s := start(t, nil)
	s.dialLoopback()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 5)
		if _, err := io.ReadFull(c, b); err == nil {
			_, _ = fmt.Fprintf(c, "got %s", b)
		}
	}()
	u, err := s.PortForward(&cri.PortForwardRequest{PodSandboxId: "p", Port: []int32{int32(l.Addr().(*net.TCPAddr).Port)}})
	if err != nil {
		t.Fatal(err)
	}
	c := wsDial(t, u)
	if err := websocket.Message.Send(c, append([]byte{0}, "hello"...)); err != nil {
		t.Fatal(err)
	}
	got := ""
	for !strings.HasSuffix(got, "got hello") {
		var frame []byte
		if err := websocket.Message.Receive(c, &frame); err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		if len(frame) > 1 && frame[0] == 0 {
			got += string(frame[1:])
		}
	}
}

// TestPortForwardClientGone: a connection that its pod keeps open ends with its client.
func TestPortForwardClientGone(t *testing.T) {
	s := start(t, nil)
	ours, theirs := net.Pipe()
	s.runtime.dial = func(context.Context, uint16) (net.Conn, error) { return ours, nil }
	u, err := s.PortForward(&cri.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := spdyDial(t, u, portforward.ProtocolV1Name)
	if err != nil {
		t.Fatal(err)
	}
	data, _ := forward(t, conn, 80, 1)
	if _, err := io.WriteString(data, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(theirs, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if _, err := theirs.Read(make([]byte, 1)); err == nil {
		t.Error("the pod's side goes on")
	}
}
