// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"crishim.dev/internal/errs"
)

const (
	stdin  = remotecommand.StreamTypeStdin
	stdout = remotecommand.StreamTypeStdout
	stderr = remotecommand.StreamTypeStderr
	resize = remotecommand.StreamTypeResize
)

func (s *testServer) exec(t *testing.T, r *cri.ExecRequest) string {
	t.Helper()
	r.ContainerId = "c"
	u, err := s.Exec(r)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestExecSPDY(t *testing.T) {
	s := start(t, nil)
	c := spdySession(t, s.exec(t, &cri.ExecRequest{Cmd: []string{"cat"}, Stdin: true, Stdout: true, Stderr: true}), stdin, stdout, stderr)
	text := strings.Repeat("through and back ", 100000)
	go func() {
		_, _ = io.WriteString(c.stdin, text)
		_ = c.stdin.Close()
	}()
	if got := readAll(t, c.stdout); got != text {
		t.Errorf("%d bytes came back of %d", len(got), len(text))
	}
	if got := readAll(t, c.status); !strings.Contains(got, `"Success"`) {
		t.Errorf("status %s", got)
	}

	c = spdySession(t, s.exec(t, &cri.ExecRequest{Cmd: []string{"both"}, Stdout: true, Stderr: true}), stdout, stderr)
	if out, err := readAll(t, c.stdout), readAll(t, c.stderr); out != "to stdout" || err != "to stderr" {
		t.Errorf("stdout %q, stderr %q", out, err)
	}
	c = spdySession(t, s.exec(t, &cri.ExecRequest{Cmd: []string{"fail", "42"}, Stdout: true}), stdout)
	if got := readAll(t, c.status); !strings.Contains(got, `"NonZeroExitCode"`) || !strings.Contains(got, `"42"`) {
		t.Errorf("status of exit code 42: %s", got)
	}
	c = spdySession(t, s.exec(t, &cri.ExecRequest{Cmd: []string{"error"}, Stdout: true}), stdout)
	if got := readAll(t, c.status); !strings.Contains(got, "no such file") {
		t.Errorf("status of an error: %s", got)
	}
}

func TestExecTerminalResize(t *testing.T) {
	s := start(t, nil)
	c := spdySession(t, s.exec(t, &cri.ExecRequest{Cmd: []string{"size"}, Stdout: true, Tty: true}), stdout, resize)
	if _, err := io.WriteString(c.size, `{"Width":80,"Height":24}{"Width":132,"Height":50}`); err != nil {
		t.Fatal(err)
	}
	_ = c.size.Close()
	if got := readAll(t, c.stdout); got != "80x24 132x50 " {
		t.Errorf("got %q", got)
	}
	if err := <-s.runtime.ended; err != nil {
		t.Error(err)
	}
}

// TestStreamsAskedFor: what the request did not ask for is nil, over both protocols.
func TestStreamsAskedFor(t *testing.T) {
	s := start(t, nil)
	for _, tt := range []struct {
		r    *cri.ExecRequest
		spdy []string
		want string
	}{
		{&cri.ExecRequest{Stdout: true}, []string{stdout}, "in false out true err false tty false resize false"},
		{&cri.ExecRequest{Stdin: true, Stdout: true, Stderr: true}, []string{stdin, stdout, stderr}, "in true out true err true tty false resize false"},
		{&cri.ExecRequest{Stdin: true, Stdout: true, Tty: true}, []string{stdin, stdout, resize}, "in true out true err false tty true resize true"},
	} {
		tt.r.Cmd = []string{"streams"}
		if got := readAll(t, spdySession(t, s.exec(t, tt.r), tt.spdy...).stdout); got != tt.want {
			t.Errorf("SPDY: %s; want %s", got, tt.want)
		}
		if got := wsRead(t, wsDial(t, s.exec(t, tt.r)))[1]; got != tt.want {
			t.Errorf("WebSocket: %s; want %s", got, tt.want)
		}
	}
}

func TestExecWebSocket(t *testing.T) {
	s := start(t, nil)
	c := wsDial(t, s.exec(t, &cri.ExecRequest{Cmd: []string{"fail", "7"}, Stdout: true}))
	if got := wsRead(t, c)[3]; !strings.Contains(got, `"7"`) {
		t.Errorf("status %s", got)
	}
	// Version 4 has no way to close stdin alone: read what comes back, then go.
	c = wsDial(t, s.exec(t, &cri.ExecRequest{Cmd: []string{"cat"}, Stdin: true, Stdout: true}))
	wsTalk(t, c, 0, "hello", 1, "hello")
}

// TestWebSocketV5: what crictl and client-go speak. Stdin is ended by a message, and the rest still comes.
func TestWebSocketV5(t *testing.T) {
	s := start(t, nil)
	attach, err := s.Attach(&cri.AttachRequest{ContainerId: "cat", Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	for name, u := range map[string]string{
		"exec":   s.exec(t, &cri.ExecRequest{Cmd: []string{"cat"}, Stdin: true, Stdout: true}),
		"attach": attach,
	} {
		c := wsDial(t, u, remotecommand.StreamProtocolV5Name, remotecommand.StreamProtocolV4Name)
		// Also to channels that are not there, or that the server writes: they are not the end of the connection.
		for _, m := range []string{"\x00hello", "\x63x", "\x02x", "\x04no size", "\x04{\"Width\":1}", "\xff\x00"} {
			if err := websocket.Message.Send(c, []byte(m)); err != nil {
				t.Fatal(err)
			}
		}
		if got := wsRead(t, c); got[1] != "hello" || got[3] != "{\"status\":\"Success\"}\n" {
			t.Errorf("%s: %q", name, got)
		}
	}
	for name, want := range map[string]string{"fail": `"reason":"ExitCode","message":"7"`, "error": "no such file", "panic": "internal error"} {
		c := wsDial(t, s.exec(t, &cri.ExecRequest{Cmd: []string{name, "7"}, Stdout: true}), remotecommand.StreamProtocolV5Name)
		if got := wsRead(t, c)[3]; !strings.Contains(got, want) {
			t.Errorf("%s: status %s", name, got)
		}
	}
	c := wsDial(t, s.exec(t, &cri.ExecRequest{Cmd: []string{"both"}, Stdout: true, Stderr: true}), remotecommand.StreamProtocolV5Name)
	if got := wsRead(t, c); got[1] != "to stdout" || got[2] != "to stderr" {
		t.Errorf("both: %q", got)
	}
	c = wsDial(t, s.exec(t, &cri.ExecRequest{Cmd: []string{"size"}, Stdout: true, Tty: true}), remotecommand.StreamProtocolV5Name)
	if err := websocket.Message.Send(c, []byte("\x04{\"Width\":80,\"Height\":24}")); err != nil {
		t.Fatal(err)
	}
	var frame []byte
	if err := websocket.Message.Receive(c, &frame); err != nil || string(frame) != "\x0180x24 " {
		t.Errorf("size: %q %v", frame, err)
	}
	_ = c.Close()
	if err := <-s.runtime.ended; err != nil {
		t.Errorf("after the client has gone: %v", err)
	}
}

func TestAttach(t *testing.T) {
	s := start(t, nil)
	u, err := s.Attach(&cri.AttachRequest{ContainerId: "cat", Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	c := spdySession(t, u, stdin, stdout)
	_, _ = io.WriteString(c.stdin, "hi")
	_ = c.stdin.Close()
	if got := readAll(t, c.stdout); got != "hi" {
		t.Errorf("got %q", got)
	}
}

// TestClientGone: a command whose client is gone is told so, over both protocols and however the client went.
func TestClientGone(t *testing.T) {
	s := start(t, nil)
	request := func() string {
		return s.exec(t, &cri.ExecRequest{Cmd: []string{"wait"}, Stdout: true, Stdin: true})
	}
	c := spdySession(t, request(), stdin, stdout)
	if _, err := io.ReadFull(c.stdout, make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	_ = c.conn.Close()
	if err := <-s.runtime.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("SPDY: %v", err)
	}
	w := wsDial(t, request())
	_ = w.Close()
	if err := <-s.runtime.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("WebSocket: %v", err)
	}
	// A client that is killed before it opened its streams holds nothing.
	u := strings.TrimPrefix(request(), "http://")
	host, path, _ := strings.Cut(u, "/")
	raw, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(raw, "POST /%s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n", path)
	if _, err := raw.Read(make([]byte, 12)); err != nil {
		t.Fatal(err)
	}
	_ = raw.Close()
}

func TestCloseEndsCommands(t *testing.T) {
	s := start(t, nil)
	c := spdySession(t, s.exec(t, &cri.ExecRequest{Cmd: []string{"wait"}, Stdout: true}), stdout)
	if _, err := io.ReadFull(c.stdout, make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-s.runtime.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestIdleConnectionEnds(t *testing.T) {
	s := start(t, func(o *Options) { o.IdleTimeout = 50 * time.Millisecond })
	spdySession(t, s.exec(t, &cri.ExecRequest{Cmd: []string{"wait"}, Stdout: true}), stdout)
	if err := <-s.runtime.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("SPDY: %v", err)
	}
	for _, version := range []string{remotecommand.StreamProtocolV4Name, remotecommand.StreamProtocolV5Name} {
		wsDial(t, s.exec(t, &cri.ExecRequest{Cmd: []string{"wait"}, Stdout: true}), version)
		if err := <-s.runtime.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("WebSocket %s: %v", version, err)
		}
	}
}

func TestPanicEndsItsStreamAlone(t *testing.T) {
	s := start(t, nil)
	c := spdySession(t, s.exec(t, &cri.ExecRequest{Cmd: []string{"panic"}, Stdout: true}), stdout)
	if got := readAll(t, c.status); !strings.Contains(got, "internal error") || strings.Contains(got, "fake panic") {
		t.Errorf("status %s", got)
	}
	if !strings.Contains(s.log.String(), "fakeRuntime") {
		t.Errorf("no stack in the log: %s", s.log)
	}
	s.runtime.dial = func(context.Context, uint16) (net.Conn, error) { panic("fake panic") }
	conn := s.spdyForward(t)
	if _, errStream := forward(t, conn, 80, 1); !strings.Contains(reason(errStream), "internal error") {
		t.Error("port-forward: no error")
	}
}

func TestTokensWorkOnce(t *testing.T) {
	s := start(t, nil)
	status := func(u string) int {
		resp, err := http.Get(u) //nolint:noctx // the test's own server
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	u := s.exec(t, &cri.ExecRequest{Cmd: []string{"fail", "0"}, Stdout: true})
	if got := status(u); got == http.StatusNotFound {
		t.Errorf("first use: %d", got)
	}
	if got := status(u); got != http.StatusNotFound {
		t.Errorf("second use: %d; want 404", got)
	}
	// A token is for its own verb, and is spent even by the wrong one.
	u = s.exec(t, &cri.ExecRequest{Cmd: []string{"fail", "0"}, Stdout: true})
	if got := status(strings.Replace(u, "/exec/", "/attach/", 1)); got != http.StatusNotFound {
		t.Errorf("other verb: %d; want 404", got)
	}
	if got := status(u); got != http.StatusNotFound {
		t.Errorf("after the other verb: %d; want 404", got)
	}
	if got := status(u[:strings.LastIndex(u, "/")+1] + "guess"); got != http.StatusNotFound {
		t.Errorf("guess: %d; want 404", got)
	}
	if strings.Contains(s.log.String(), u[strings.LastIndex(u, "/")+1:]) {
		t.Error("the token was logged")
	}
}

func TestTokensExpire(t *testing.T) {
	now := time.Unix(0, 0)
	tk := newTokens(func() time.Time { return now })
	token, err := tk.put("x")
	if err != nil || len(token) < 26 {
		t.Fatalf("%q, %v", token, err)
	}
	now = now.Add(tokenLife + 1)
	if got := tk.take(token); got != nil {
		t.Errorf("expired: %v", got)
	}
	for range maxTokens {
		if _, err := tk.put("x"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tk.put("x"); !errors.Is(err, errs.Exhausted) {
		t.Errorf("one too many: %v", err)
	}
	now = now.Add(tokenLife + 1)
	if _, err := tk.put("x"); err != nil {
		t.Errorf("after the others expired: %v", err)
	}
}

// TestBrokenClientsLeaveNothing: 200 clients that break off at different moments leave no goroutine.
func TestBrokenClientsLeaveNothing(t *testing.T) {
	s := start(t, nil)
	before := runtime.NumGoroutine()
	for i := range 200 {
		c := spdySession(t, s.exec(t, &cri.ExecRequest{Cmd: []string{"wait"}, Stdin: true, Stdout: true}), stdin, stdout)
		if i%2 == 0 {
			_, _ = io.WriteString(c.stdin, "x")
		}
		_ = c.conn.Close()
		<-s.runtime.ended
	}
	deadline := time.Now().Add(20 * time.Second)
	for runtime.NumGoroutine() > before+5 {
		if time.Now().After(deadline) {
			b := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, b[:runtime.Stack(b, true)])
		}
		runtime.Gosched()
	}
}

// certificate writes a self-signed pair and returns its serial number.
func certificate(t *testing.T, cert, key string, serial int64) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "shim"}, NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pk}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTLSReloads(t *testing.T) {
	cert, key := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	certificate(t, cert, key, 1)
	s := start(t, func(o *Options) { o.TLSCert, o.TLSKey = cert, key })
	u := s.exec(t, &cri.ExecRequest{Cmd: []string{"both"}, Stdout: true, Stderr: true})
	if !strings.HasPrefix(u, "https://127.0.0.1:") {
		t.Fatalf("URL %s", u)
	}
	if got := readAll(t, spdySession(t, u, stdout, stderr).stdout); got != "to stdout" {
		t.Errorf("over TLS: %q", got)
	}
	serial := func() int64 {
		c, err := tls.Dial("tcp", s.base.Host, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // looked at below
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	certificate(t, cert, key, 2)
	later := time.Now().Add(time.Hour)
	if err := errors.Join(os.Chtimes(cert, later, later), os.Chtimes(key, later, later)); err != nil {
		t.Fatal(err)
	}
	if got := serial(); got != 2 {
		t.Errorf("serial %d after the files changed; want 2", got)
	}
	if err := os.WriteFile(key, []byte("half written"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serial(); got != 2 {
		t.Errorf("serial %d while the files are broken; want the last good one, 2", got)
	}
	if _, err := New(Options{Address: "127.0.0.1:0", TLSCert: cert, TLSKey: key, Log: s.o.Log}); err == nil {
		t.Error("a server with a broken pair began")
	}
}
