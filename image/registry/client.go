// SPDX-License-Identifier: Apache-2.0

// Package registry asks registries for manifests and blobs, over the OCI distribution protocol.
//
// It knows which hosts stand in for a registry (containerd's certs.d/<host>/hosts.toml), in which order to ask them, and whose
// credentials each may see. It checks nothing against digests and stores nothing: package image does.
package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"crishim.dev/internal/errs"
)

// Options configure a Client. The zero value works.
type Options struct {
	// CertsDir is the directory of <host>/hosts.toml; empty: none.
	CertsDir string
	// UserAgent names us to registries.
	UserAgent string
	// Credentials gives the configuration's credentials for a host, or nil. Those of the request come first.
	Credentials func(host string) *Auth
	// MirrorCredentials lets mirrors see the request's credentials, which are meant for the registry they stand in for.
	MirrorCredentials bool
	// NoFallback keeps a registry that has mirrors from being asked itself.
	NoFallback bool
	// MinRate is how many bytes a second a connection must bring over StallTime before another is tried. 0: 1024, and 30 s.
	MinRate   int64
	StallTime time.Duration
	// Retries is how often in a row a blob's connection may break, or a host answer that it is busy, without progress. 0: 5.
	Retries int
	// Backoff is the pause before the first retry; it doubles with each. 0: 250 ms.
	Backoff time.Duration
	// Limit, if not nil, is called with each number of bytes received, and waits as long as the bandwidth limit asks.
	Limit func(ctx context.Context, n int) error
}

// Client asks registries. Safe for concurrent use.
type Client struct{ o Options }

// New makes a client.
func New(o Options) *Client {
	if o.UserAgent == "" {
		o.UserAgent = "crishim"
	}
	if o.MinRate == 0 {
		o.MinRate = 1024
	}
	if o.StallTime == 0 {
		o.StallTime = 30 * time.Second
	}
	if o.Retries == 0 {
		o.Retries = 5
	}
	if o.Backoff == 0 {
		o.Backoff = 250 * time.Millisecond
	}
	return &Client{o}
}

// Repository is where one pull gets its parts: a repository at its hosts, with the pull's credentials. Safe for concurrent use.
type Repository struct {
	ref       Reference
	o         Options
	endpoints []*endpoint
	secrets   []string
}

// endpoint is one host of a Repository.
type endpoint struct {
	host   Host
	client *http.Client
	auth   *authorizer
	// why says whose credentials it uses, or why none.
	why string
}

// Repository prepares to ask for ref with the request's credentials (nil: none). Close frees its connections.
func (c *Client) Repository(ref Reference, request *Auth) (*Repository, error) {
	hosts, err := Hosts(c.o.CertsDir, ref.Host)
	if err != nil {
		return nil, err
	}
	if c.o.NoFallback && hosts[0].Mirror {
		hosts = hosts[:len(hosts)-1]
	}
	r := &Repository{ref: ref, o: c.o}
	for _, h := range hosts {
		auth, why, err := c.credentials(ref, h, request)
		if err != nil {
			return nil, err
		}
		transport, err := h.transport()
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("configure registry host %s: %w", h.Base.Host, err)
		}
		e := &endpoint{host: h, why: why}
		e.client = &http.Client{Transport: transport, CheckRedirect: e.redirect}
		e.auth = &authorizer{
			auth: auth, scope: "repository:" + ref.Path + ":pull", host: &h.Base, agent: c.o.UserAgent,
			client: &http.Client{Transport: transport, CheckRedirect: e.redirect},
		}
		r.secrets = append(r.secrets, auth.secrets()...)
		r.endpoints = append(r.endpoints, e)
	}
	return r, nil
}

// Close frees the connections.
func (r *Repository) Close() {
	for _, e := range r.endpoints {
		e.client.CloseIdleConnections()
	}
}

// credentials picks what a host may see. why is for people.
func (c *Client) credentials(ref Reference, h Host, request *Auth) (a Auth, why string, err error) {
	why = "none"
	switch {
	case request.empty():
	case !request.isFor(ref.Host, h.Base.Host):
		why = "none: the request's are for another registry"
	case h.Mirror && request.ServerAddress == "" && !c.o.MirrorCredentials, h.Mirror && !c.o.MirrorCredentials && !request.isFor(h.Base.Host):
		why = "none: the request's are not for mirrors"
	default:
		a, err = request.plain()
		return a, "the request's", err
	}
	if c.o.Credentials == nil {
		return a, why, nil
	}
	for _, name := range []string{h.Base.Host, hubName(h.Base.Host)} {
		if found := c.o.Credentials(name); !found.empty() {
			a, err = found.plain()
			return a, "the configuration's for " + name, err
		}
	}
	return a, why, nil
}

// transport makes the connections' settings of a host.
func (h Host) transport() (*http.Transport, error) {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DisableCompression:    true, // digests are over what is sent
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: 60 * time.Second,
		IdleConnTimeout:       30 * time.Second,
		MaxIdleConnsPerHost:   8,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: h.skipVerify}, //nolint:gosec // only where hosts.toml says skip_verify
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
		key := p[1]
		if key == "" {
			key = p[0]
		}
		cert, err := tls.LoadX509KeyPair(p[0], key)
		if err != nil {
			return nil, fmt.Errorf("read client certificate: %w", err)
		}
		t.TLSClientConfig.Certificates = append(t.TLSClientConfig.Certificates, cert)
	}
	return t, nil
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

// url is the address of a part of the repository.
func (r *Repository) url(e *endpoint, kind, version string) string {
	u := e.host.Base
	u.Path += "/" + r.ref.Path + "/" + kind + "/" + version
	if e.host.Mirror {
		u.RawQuery = url.Values{"ns": {r.ref.Host}}.Encode() // tells a mirror of many registries which is meant
	}
	return u.String()
}

// get sends a request and deals with a challenge. The caller closes the body of the answer, which is 200 or 206.
func (r *Repository) get(ctx context.Context, e *endpoint, method, address string, header http.Header) (*http.Response, error) {
	for range 3 {
		req, err := http.NewRequestWithContext(ctx, method, address, nil)
		if err != nil {
			return nil, errs.Newf(errs.Invalid, "malformed address")
		}
		for _, m := range []http.Header{e.host.header, header} {
			maps.Copy(req.Header, m)
		}
		req.Header.Set("User-Agent", r.o.UserAgent)
		sent := e.auth.current()
		if sent != "" {
			req.Header.Set("Authorization", sent)
		}
		resp, err := e.client.Do(req)
		if err != nil {
			return nil, transportError("connect", err)
		}
		if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent {
			return resp, nil
		}
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			return nil, statusError("ask "+e.host.Base.Host, resp, body)
		}
		again, err := e.auth.answer(ctx, sent, resp.Header.Values("WWW-Authenticate"))
		if err != nil {
			return nil, err
		}
		if !again {
			return nil, statusError("ask "+e.host.Base.Host, resp, body)
		}
	}
	return nil, errs.Newf(errs.Denied, "ask %s: it keeps refusing its own tokens", e.host.Base.Host)
}

// busy is how long a host asks to be left alone.
type busy struct {
	error
	after time.Duration
}

func (b *busy) Unwrap() error { return b.error }

// statusError makes an error of an answer: its kind from the status, its text from the registry's own errors.
func statusError(what string, resp *http.Response, body []byte) error {
	var said struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	_ = json.Unmarshal(body, &said) // other bodies are not shown
	var detail strings.Builder
	for _, e := range said.Errors {
		detail.WriteString(": " + printable(e.Code, 64) + " " + printable(e.Message, 200))
	}
	text := fmt.Errorf("%s: %s%s", what, resp.Status, strings.TrimRight(detail.String(), " "))
	switch s := resp.StatusCode; s {
	case http.StatusUnauthorized, http.StatusForbidden:
		return errs.As(errs.Denied, text)
	case http.StatusNotFound:
		return errs.As(errs.NotFound, text)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		after, err := time.ParseDuration(resp.Header.Get("Retry-After") + "s")
		if err != nil || after < 0 {
			after = 0
		}
		return &busy{errs.As(errs.Unavailable, text), min(after, time.Minute)}
	}
	return errs.As(errs.Unavailable, text)
}

// printable keeps a registry's text from breaking a log line.
func printable(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return s
}
