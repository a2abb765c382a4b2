// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// fakeRuntime runs "commands" that show what the streams do.
type fakeRuntime struct {
	// ended tells why each command that waits for its context ended.
	ended chan error
	// dial is what Dial connects to.
	dial func(ctx context.Context, port uint16) (net.Conn, error)
}

// Exec knows: cat, fail CODE, wait, size, both, panic, streams.
func (f *fakeRuntime) Exec(ctx context.Context, id string, cmd []string, s IO) (int32, error) {
	switch cmd[0] {
	case "cat":
		_, err := io.Copy(s.Stdout, s.Stdin)
		return 0, err
	case "fail":
		code, err := strconv.Atoi(cmd[1])
		return int32(code), err
	case "error":
		return 0, errors.New("exec in container x: no such file")
	case "wait":
		_, _ = io.WriteString(s.Stdout, "waiting") // the client may be gone already
		<-ctx.Done()
		f.ended <- ctx.Err()
		return 0, ctx.Err()
	case "size":
		for size := range s.Resize {
			if _, err := fmt.Fprintf(s.Stdout, "%dx%d ", size.Width, size.Height); err != nil {
				return 0, err
			}
		}
		f.ended <- nil
		return 0, nil
	case "both":
		_, e1 := io.WriteString(s.Stdout, "to stdout")
		_, e2 := io.WriteString(s.Stderr, "to stderr")
		return 0, errors.Join(e1, e2)
	case "streams":
		_, err := fmt.Fprintf(s.Stdout, "in %t out %t err %t tty %t resize %t", s.Stdin != nil, s.Stdout != nil, s.Stderr != nil, s.TTY, s.Resize != nil)
		return 0, err
	default:
		panic("fake panic")
	}
}

func (f *fakeRuntime) Attach(ctx context.Context, id string, s IO) error {
	_, err := f.Exec(ctx, id, []string{id}, s)
	return err
}

func (f *fakeRuntime) Dial(ctx context.Context, _ string, port uint16) (net.Conn, error) {
	return f.dial(ctx, port)
}

type testServer struct {
	*Server
	runtime *fakeRuntime
	log     *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func start(t *testing.T, change func(*Options)) *testServer {
	t.Helper()
	s := &testServer{runtime: &fakeRuntime{ended: make(chan error, 100)}, log: &syncBuffer{}}
	o := Options{
		Address: "127.0.0.1:0", IdleTimeout: time.Minute, CreationTimeout: 10 * time.Second, Runtime: s.runtime,
		Log: slog.New(slog.NewTextHandler(s.log, nil)),
	}
	if change != nil {
		change(&o)
	}
	var err error
	if s.Server, err = New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// spdyDial upgrades a request to url.
func spdyDial(t *testing.T, url string, protocols ...string) (httpstream.Connection, error) {
	t.Helper()
	rt, err := spdy.NewRoundTripper(&tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the test's own server
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range protocols {
		req.Header.Add(httpstream.HeaderProtocolVersion, p)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return rt.NewConnection(resp)
}

// session is a client's side of an exec or attach over SPDY.
type session struct {
	conn                                httpstream.Connection
	stdin, stdout, stderr, status, size httpstream.Stream
}

// spdySession opens the named streams of remotecommand's protocol version 4.
func spdySession(t *testing.T, url string, streams ...string) *session {
	t.Helper()
	conn, err := spdyDial(t, url, remotecommand.StreamProtocolV4Name)
	if err != nil {
		t.Fatal(err)
	}
	s := &session{conn: conn}
	t.Cleanup(func() { _ = conn.Close() })
	for _, name := range append([]string{remotecommand.StreamTypeError}, streams...) {
		st, err := conn.CreateStream(http.Header{remotecommand.StreamType: {name}})
		if err != nil {
			t.Fatal(err)
		}
		switch name {
		case remotecommand.StreamTypeError:
			s.status = st
			_ = st.Close()
		case remotecommand.StreamTypeStdin:
			s.stdin = st
		case remotecommand.StreamTypeStdout:
			s.stdout = st
			_ = st.Close()
		case remotecommand.StreamTypeStderr:
			s.stderr = st
			_ = st.Close()
		case remotecommand.StreamTypeResize:
			s.size = st
		}
	}
	return s
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Errorf("read stream: %v", err)
	}
	return string(data)
}

// forward opens one forwarded connection over SPDY: its data and error streams. A connection that can't be made is reset
// so soon that opening the data stream may fail; only the error stream tells more then.
func forward(t *testing.T, conn httpstream.Connection, port, id int) (data, errs httpstream.Stream) {
	t.Helper()
	h := http.Header{}
	h.Set(portforward.PortHeader, strconv.Itoa(port))
	h.Set(portforward.PortForwardRequestIDHeader, strconv.Itoa(id))
	h.Set(portforward.StreamType, portforward.StreamTypeError)
	errs, err := conn.CreateStream(h)
	if err != nil {
		t.Fatal(err)
	}
	_ = errs.Close()
	h.Set(portforward.StreamType, portforward.StreamTypeData)
	if data, err = conn.CreateStream(h); err != nil && err.Error() != "Stream reset" {
		t.Error(err)
	}
	return data, errs
}

// reason is what an error stream says before it is reset.
func reason(r io.Reader) string {
	data, _ := io.ReadAll(r)
	return string(data)
}

// wsDial opens a WebSocket with the channel protocol in its version 4, or those of versions.
func wsDial(t *testing.T, url string, versions ...string) *websocket.Conn {
	t.Helper()
	cfg, err := websocket.NewConfig("ws"+strings.TrimPrefix(url, "http"), "http://localhost/")
	if err != nil {
		t.Fatal(err)
	}
	if len(versions) == 0 {
		versions = []string{remotecommand.StreamProtocolV4Name}
	}
	cfg.Protocol = versions
	conn, err := websocket.DialConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// wsTalk sends text to a channel and waits until that has come back on another; what comes there before is no matter.
func wsTalk(t *testing.T, conn *websocket.Conn, to byte, text string, from byte, want string) {
	t.Helper()
	if err := websocket.Message.Send(conn, append([]byte{to}, text...)); err != nil {
		t.Fatal(err)
	}
	for got := ""; !strings.HasSuffix(got, want); {
		var frame []byte
		if err := websocket.Message.Receive(conn, &frame); err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		if len(frame) > 1 && frame[0] == from {
			got += string(frame[1:])
		}
	}
}

// wsRead collects what each channel says until the server closes.
func wsRead(t *testing.T, conn *websocket.Conn) map[byte]string {
	t.Helper()
	out := map[byte]string{}
	for {
		var frame []byte
		err := websocket.Message.Receive(conn, &frame)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("read frame: %v", err)
		}
		if len(frame) > 0 {
			out[frame[0]] += string(frame[1:])
		}
	}
}
