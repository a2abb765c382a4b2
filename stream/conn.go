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

// conn notices that its peer is gone: the protocol handlers read all the time, so a failing read is the first to know.
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
	return c.(*conn)
}

func connOf(ctx context.Context) *conn { return ctx.Value(connKey{}).(*conn) }

// verbOf is the first element of the path: what a log line may say of a URL that has a token in it.
func verbOf(r *http.Request) string {
	verb, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	return verb
}

func stack() string { return string(debug.Stack()) }
