// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// transport makes the connections' settings of a host.
func (h Host) transport() (http.RoundTripper, error) {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DisableCompression:    true, // digests are over what is sent
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: 60 * time.Second,
		IdleConnTimeout:       30 * time.Second,
		MaxIdleConnsPerHost:   8,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: h.skipVerify}, //nolint:gosec // only where hosts.toml says skip_verify, and on loopback
	}
	dialer := net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}
	if h.dialTimeout > 0 {
		dialer.Timeout = h.dialTimeout
	}
	t.DialContext = dialer.DialContext
	if len(h.ca) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		for _, f := range h.ca {
			b, err := os.ReadFile(f)
			if err != nil {
				return nil, fmt.Errorf("read ca: %w", err)
			}
			if !pool.AppendCertsFromPEM(b) {
				return nil, errs.Newf(errs.Invalid, "read ca %s: no certificate in it", f)
			}
		}
		t.TLSClientConfig.RootCAs = pool
	}
	for _, p := range h.clients {
		cert, err := tls.LoadX509KeyPair(p[0], p[1])
		if err != nil {
			return nil, fmt.Errorf("read client certificate: %w", err)
		}
		t.TLSClientConfig.Certificates = append(t.TLSClientConfig.Certificates, cert)
	}
	if h.eitherScheme {
		return &eitherScheme{Transport: t, host: h.Base.Host}, nil
	}
	return t, nil
}

// eitherScheme asks its host by https, and by http from when it turns out not to speak TLS. Safe for concurrent use.
type eitherScheme struct {
	*http.Transport
	host  string
	plain atomic.Bool
}

// RoundTrip implements http.RoundTripper.
func (t *eitherScheme) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme == "http" && req.URL.Host == t.host && !t.plain.Load() {
		secure := req.Clone(req.Context())
		secure.URL.Scheme = "https"
		resp, err := t.Transport.RoundTrip(secure)
		var notTLS tls.RecordHeaderError
		if !errors.As(err, &notTLS) && (req.URL.Port() != "" || !errors.Is(err, unix.ECONNREFUSED)) {
			return resp, err
		}
		t.plain.Store(true)
	}
	return t.Transport.RoundTrip(req)
}

// redirect lets blobs come from elsewhere, but takes along nothing that is meant for the host that redirects.
func (e *endpoint) redirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("more than 10 redirects")
	}
	from := via[len(via)-1].URL
	if req.URL.Host == via[0].URL.Host && req.URL.Scheme == via[0].URL.Scheme {
		return nil
	}
	if from.Scheme == "https" && req.URL.Scheme == "http" && !isLoopback(req.URL.Hostname()) {
		return errors.New("a redirect from https to http")
	}
	req.Header.Del("Authorization")
	req.Header.Del("Referer")
	for k := range e.host.header {
		req.Header.Del(k)
	}
	return nil
}

// redirectSecret is redirect for requests that may have a secret in their body, which stays with its host too.
func (e *endpoint) redirectSecret(req *http.Request, via []*http.Request) error {
	if req.Method == http.MethodPost && (req.URL.Host != via[0].URL.Host || req.URL.Scheme != via[0].URL.Scheme) {
		return errors.New("a redirect of a token request to another host")
	}
	return e.redirect(req, via)
}

// send sends a request. The body of its answer is a *connection.
func (o *Options) send(client *http.Client, req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	resp, err := client.Do(req.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	c := &connection{body: resp.Body, ctx: ctx, cancel: cancel, minRate: o.MinRate, window: o.StallTime}
	c.timer = time.AfterFunc(c.window, func() { cancel(errStalled) })
	c.timer.Stop()
	resp.Body = c
	return resp, nil
}

// errStalled is why a connection that brings too little is dropped.
var errStalled = errors.New("too slow")

// connection is one answer being read, with an eye on its rate. Only time spent waiting in Read counts: a reader that is slow
// itself does no harm.
type connection struct {
	body    io.ReadCloser
	ctx     context.Context //nolint:containedctx // the request's
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	minRate int64
	window  time.Duration

	total  int64         // bytes so far
	waited time.Duration // in this window
	got    int64         // bytes in this window
}

// Read reads on.
func (c *connection) Read(p []byte) (int, error) {
	start := time.Now()
	c.timer.Reset(c.window)
	n, err := c.body.Read(p)
	c.timer.Stop()
	c.waited += time.Since(start)
	c.got += int64(n)
	c.total += int64(n)
	if err != nil && errors.Is(context.Cause(c.ctx), errStalled) {
		return n, fmt.Errorf("nothing came for %s: %w", c.window, errStalled)
	}
	if c.waited >= c.window {
		if least := int64(float64(c.minRate) * c.waited.Seconds()); c.got < least && err == nil {
			err = fmt.Errorf("%d bytes in %s: %w", c.got, c.waited.Round(time.Second), errStalled)
		}
		c.waited, c.got = 0, 0
	}
	return n, err
}

// Close ends the request.
func (c *connection) Close() error {
	c.timer.Stop()
	c.cancel(nil)
	return c.body.Close()
}
