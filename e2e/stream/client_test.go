// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"crishim.dev/e2e/kit"
)

// errTimeout is what a client gets that waited for too long.
var errTimeout = errors.New("the server says nothing")

// dial connects to the host of a URL.
func dial(rawURL string) (net.Conn, *url.URL, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, nil, err
	}
	conn, err := net.DialTimeout("tcp", u.Host, kit.Timeout)
	if err == nil && u.Scheme == "https" {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the test looks at the certificate itself
	}
	return conn, u, err
}

// upgrade asks for SPDY and reads the answer, byte for byte: what follows it is SPDY's.
func upgrade(conn net.Conn, u *url.URL, protocol string) error {
	_, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: %s\r\nContent-Length: 0\r\n\r\n", u.Path, u.Host, protocol)
	if err != nil {
		return err
	}
	var answer strings.Builder
	for b := make([]byte, 1); !strings.HasSuffix(answer.String(), "\r\n\r\n"); answer.Write(b) {
		if _, err := io.ReadFull(conn, b); err != nil {
			return err
		}
	}
	if !strings.HasPrefix(answer.String(), "HTTP/1.1 101 ") {
		return fmt.Errorf("the server answers %q", answer.String())
	}
	return nil
}

// session is a client's side of an exec or attach over SPDY.
type session struct {
	conn                                  httpstream.Connection
	stdin, stdout, stderr, status, resize httpstream.Stream
}

// open connects and opens the named streams.
func open(rawURL string, streams ...string) (*session, error) {
	tcp, u, err := dial(rawURL)
	if err != nil {
		return nil, err
	}
	s, err := onto(tcp, u, streams...)
	if err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	return s, nil
}

// onto opens the named streams on a connection that is there.
func onto(tcp net.Conn, u *url.URL, streams ...string) (*session, error) {
	if err := upgrade(tcp, u, remotecommand.StreamProtocolV4Name); err != nil {
		return nil, err
	}
	s := &session{}
	var err error
	if s.conn, err = spdy.NewClientConnection(tcp); err != nil {
		return nil, err
	}
	fields := map[string]*httpstream.Stream{
		remotecommand.StreamTypeError: &s.status, remotecommand.StreamTypeStdin: &s.stdin, remotecommand.StreamTypeStdout: &s.stdout,
		remotecommand.StreamTypeStderr: &s.stderr, remotecommand.StreamTypeResize: &s.resize,
	}
	for _, name := range append([]string{remotecommand.StreamTypeError}, streams...) {
		st, err := s.conn.CreateStream(http.Header{remotecommand.StreamType: {name}})
		if err != nil {
			return nil, errors.Join(err, s.conn.Close())
		}
		*fields[name] = st
	}
	return s, nil
}

// connect opens one that the test's end closes.
func connect(t *testing.T, rawURL string, streams ...string) *session {
	t.Helper()
	s, err := open(rawURL, streams...)
	if err != nil {
		t.Fatalf("open session: %v", err)
	}
	t.Cleanup(func() { _ = s.conn.Close() })
	return s
}

// until reads until what came has text.
func until(t *testing.T, r io.Reader, text string) {
	t.Helper()
	var got strings.Builder
	done := make(chan error, 1)
	go func() {
		b := make([]byte, 4096)
		for !strings.Contains(got.String(), text) {
			n, err := r.Read(b)
			got.Write(b[:n])
			if err != nil && !strings.Contains(got.String(), text) {
				done <- fmt.Errorf("%w after %q", err, got.String())
				return
			}
		}
		done <- nil
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("wait for %q: %v", text, err)
		}
	case <-time.After(kit.Timeout):
		t.Fatalf("wait for %q: %v", text, errTimeout)
	}
}

// all reads to the end.
func all(t *testing.T, r io.Reader) string {
	t.Helper()
	type result struct {
		text []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		text, err := io.ReadAll(r)
		done <- result{text, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			t.Errorf("read to the end: %v", r.err)
		}
		return string(r.text)
	case <-time.After(kit.Timeout):
		t.Fatalf("read to the end: %v", errTimeout)
		return ""
	}
}

// forwarding opens a connection for forwarded ports.
func forwarding(t *testing.T, rawURL string) httpstream.Connection {
	t.Helper()
	tcp, u, err := dial(rawURL)
	if err == nil {
		err = upgrade(tcp, u, portforward.ProtocolV1Name)
	}
	if err != nil {
		t.Fatalf("forward ports: %v", err)
	}
	conn, err := spdy.NewClientConnection(tcp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// forward opens the id-th connection to a port: its data, and why it failed.
func forward(t *testing.T, conn httpstream.Connection, port, id int) (data, errs httpstream.Stream) {
	t.Helper()
	h := http.Header{}
	h.Set(portforward.PortHeader, strconv.Itoa(port))
	h.Set(portforward.PortForwardRequestIDHeader, strconv.Itoa(id))
	h.Set(portforward.StreamType, portforward.StreamTypeError)
	errs, err := conn.CreateStream(h)
	if err != nil {
		t.Fatalf("open error stream: %v", err)
	}
	_ = errs.Close()
	h.Set(portforward.StreamType, portforward.StreamTypeData)
	if data, err = conn.CreateStream(h); err != nil && err.Error() != "Stream reset" {
		t.Fatalf("open data stream: %v", err)
	}
	return data, errs
}

// socket opens a WebSocket over a connection of the caller's.
func socket(conn net.Conn, u *url.URL, protocol string) (*websocket.Conn, error) {
	cfg, err := websocket.NewConfig("ws://"+u.Host+u.Path, "http://localhost/")
	if err != nil {
		return nil, err
	}
	cfg.Protocol = []string{protocol}
	return websocket.NewClient(cfg, conn)
}

// receive reads frames until one of the channel has text.
func receive(t *testing.T, ws *websocket.Conn, channel byte, text string) {
	t.Helper()
	if err := ws.SetReadDeadline(time.Now().Add(kit.Timeout)); err != nil {
		t.Fatal(err)
	}
	for got := ""; !strings.Contains(got, text); {
		var frame []byte
		if err := websocket.Message.Receive(ws, &frame); err != nil {
			t.Fatalf("wait for %q on channel %d: %v after %q", text, channel, err, got)
		}
		if len(frame) > 0 && frame[0] == channel {
			got += string(frame[1:])
		}
	}
}
