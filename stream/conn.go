// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// listener gives each connection a context that ends with it.
type listener struct {
	net.Listener
	ctx context.Context //nolint:containedctx // the server's life, handed to each connection
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(l.ctx)
	t := &conn{Conn: c, ctx: ctx, cancel: cancel}
	// The server's end closes connections that were hijacked too; net/http forgets those.
	context.AfterFunc(ctx, func() { _ = t.Close() })
	return t, nil
}

// conn ends its context when its peer is gone. A failing read tells so, and watch where nobody reads: both protocols stop
// reading while data waits for a process that does not take it, or when SPDY's goodbye has come.
type conn struct {
	net.Conn
	ctx    context.Context //nolint:containedctx // the connection's life
	cancel context.CancelFunc
	once   sync.Once
	err    error
	// hijacked is set when net/http gave the connection to a protocol handler.
	hijacked atomic.Bool
}

// Read reads, and ends the connection's context on an error other than a passed deadline (net/http sets one in the past
// to interrupt its own read when a connection is hijacked).
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.cancel()
	}
	return n, err
}

// watch begins to look at the connection's TCP state, until it ends. The descriptor of its own shares the socket but
// waits beside the readers of the other; the kernel's poller wakes it when anything arrives, the peer's FIN included.
func (c *conn) watch() error {
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	f, err := tcp.File()
	if err != nil {
		return err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	context.AfterFunc(c.ctx, func() { _ = f.Close() })
	go func() {
		// Ends when the state has changed, or f was closed.
		if err := raw.Read(peerGone); err == nil {
			c.cancel()
		}
	}()
	return nil
}

// peerGone says whether the socket is anything but established.
func peerGone(fd uintptr) bool {
	const established = 1 // include/net/tcp_states.h: TCP_ESTABLISHED
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err != nil || info.State != established
}

// Close may be called any number of times; all get the first one's result.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.cancel()
		c.err = c.Conn.Close()
	})
	return c.err
}

type connKey struct{}

// connContext remembers the connection of a request.
func connContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, below(c))
}

// below is the connection that the listener made, under a TLS one.
func below(c net.Conn) *conn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return c.(*conn) //nolint:errcheck // the listener makes no others
}

func connOf(ctx context.Context) *conn {
	return ctx.Value(connKey{}).(*conn) //nolint:errcheck // connContext has put it there
}

// verbOf is the first element of the path: what a log line may say of a URL that has a token in it.
func verbOf(r *http.Request) string {
	verb, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	return verb
}

func stack() string { return string(debug.Stack()) }
