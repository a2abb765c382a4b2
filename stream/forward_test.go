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

// portForward is the URL of a request to forward ports, all of them without any.
func (s *testServer) portForward(t *testing.T, ports ...int32) string {
	t.Helper()
	u, err := s.PortForward(&cri.PortForwardRequest{PodSandboxId: "p", Port: ports})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// spdyForward opens a connection to forward ports over.
func (s *testServer) spdyForward(t *testing.T, ports ...int32) httpstream.Connection {
	t.Helper()
	conn, err := spdyDial(t, s.portForward(t, ports...), portforward.ProtocolV1Name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// checkEcho sends text over a forwarded connection and fails unless all comes back, which it does after the half-close alone.
func checkEcho(t *testing.T, conn httpstream.Connection, port, id, size int) {
	t.Helper()
	data, errStream := forward(t, conn, port, id)
	text := strings.Repeat(fmt.Sprint(id), size)
	go func() {
		_, _ = io.WriteString(data, text)
		_ = data.Close()
	}()
	if got := readAll(t, data); got != "got "+text {
		t.Errorf("connection %d: %d bytes", id, len(got))
	}
	if got := readAll(t, errStream); got != "" {
		t.Errorf("connection %d: error %q", id, got)
	}
}

func TestPortForwardSPDY(t *testing.T) {
	s := start(t, nil)
	s.dialLoopback()
	port := echo(t)
	conn := s.spdyForward(t)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() { checkEcho(t, conn, port, i, 10000) })
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
		ws := wsDial(t, s.portForward(t), "SPDY/3.1+other", "SPDY/3.1+"+portforward.ProtocolV1Name)
		ws.PayloadType = websocket.BinaryFrame
		conn, err := spdy.NewClientConnection(ws)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	conn := tunnel()
	for i := range 3 {
		checkEcho(t, conn, port, i, 100000)
	}
	_ = conn.Close()
	<-tunnel().CloseChan() // nothing happens on it
	cfg, err := websocket.NewConfig("ws"+strings.TrimPrefix(s.portForward(t), "http"), "http://localhost/")
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
	conn := s.spdyForward(t, int32(port))
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
	u := s.portForward(t, int32(l.Addr().(*net.TCPAddr).Port))
	wsTalk(t, wsDial(t, u), 0, "hello", 0, "got hello")
}

// TestPortForwardClientGone: a connection that its pod keeps open ends with its client.
func TestPortForwardClientGone(t *testing.T) {
	s := start(t, nil)
	ours, theirs := net.Pipe()
	s.runtime.dial = func(context.Context, uint16) (net.Conn, error) { return ours, nil }
	conn := s.spdyForward(t)
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

// TestPortForwardPodEndsFirst: a pod that has said all ends its direction alone; what the client still has to say gets through.
func TestPortForwardPodEndsFirst(t *testing.T) {
	s := start(t, nil)
	s.dialLoopback()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	heard := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "said all")
		_ = c.(*net.TCPConn).CloseWrite()
		data, _ := io.ReadAll(c)
		heard <- string(data)
	}()
	data, errStream := forward(t, s.spdyForward(t), l.Addr().(*net.TCPAddr).Port, 1)
	if got := readAll(t, data); got != "said all" {
		t.Errorf("got %q", got)
	}
	text := strings.Repeat("not yet", 100000)
	if _, err := io.WriteString(data, text); err != nil {
		t.Error(err)
	}
	_ = data.Close()
	if got := <-heard; got != text {
		t.Errorf("the pod heard %d bytes of %d", len(got), len(text))
	}
	if got := readAll(t, errStream); got != "" {
		t.Errorf("error %q", got)
	}
}
