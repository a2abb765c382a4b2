// SPDX-License-Identifier: Apache-2.0

// Package registry asks registries for manifests and blobs, over the OCI distribution protocol.
//
// It knows which hosts stand in for a registry (containerd's certs.d/<host>/hosts.toml), in which order to ask them, and whose
// credentials each may see. It checks nothing against digests and stores nothing: package image does.
package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
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
	// AuthFile has credentials for hosts to which the request's may not go, as Docker's config.json has them; empty: none.
	// It is read for each pull.
	AuthFile string
	// MirrorCredentials lets mirrors see the request's credentials, which are meant for the registry they stand in for.
	MirrorCredentials bool
	// MirrorsOnly keeps a registry that has mirrors from being asked itself.
	MirrorsOnly bool
	// MinRate is how many bytes a second a connection must bring over StallTime before another is tried. 0: 1024, and 30 s.
	MinRate   int64
	StallTime time.Duration
	// Retries is how often in a row a blob's connection may break, or a host answer that it is busy, without progress. 0: 5.
	Retries int
	// Backoff is the pause before the first retry; it doubles with each. 0: 250 ms.
	Backoff time.Duration
	// Rate is how many bytes of blobs a second are fetched at most, over all pulls. 0: no limit.
	Rate int64
}

// Client asks registries. Safe for concurrent use.
type Client struct {
	o    Options
	pace *pace
}

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
	return &Client{o, newPace(o.Rate)}
}

// Repository is where one pull gets its parts: a repository at its hosts, with the pull's credentials. Safe for concurrent use.
type Repository struct {
	ref       Reference
	o         *Options
	pace      *pace
	endpoints []*endpoint
	secrets   []string
}

// endpoint is one host of a Repository.
type endpoint struct {
	host   Host
	client *http.Client
	auth   *authorizer
	// whose says whose credentials it uses, or why none.
	whose string
	// skip says why it is not asked; empty: it is.
	skip string
}

// Repository prepares to ask for ref with the request's credentials (nil: none). Close frees its connections.
func (c *Client) Repository(ref Reference, request *Auth) (*Repository, error) {
	hosts, err := Hosts(c.o.CertsDir, ref.Host)
	if err != nil {
		return nil, err
	}
	mirrored := slices.ContainsFunc(hosts, func(h Host) bool { return h.Mirror })
	r := &Repository{ref: ref, o: &c.o, pace: c.pace}
	for _, h := range hosts {
		auth, whose, err := c.credentials(ref, h, request)
		if err != nil {
			return nil, err
		}
		transport, err := h.transport()
		if err != nil {
			return nil, fmt.Errorf("configure registry host %s: %w", h.Base.Host, err)
		}
		e := &endpoint{host: h, whose: whose}
		if mirrored && !h.Mirror && c.o.MirrorsOnly {
			e.skip = "only mirrors are asked (image.mirrors_only)"
		}
		e.client = &http.Client{Transport: transport, CheckRedirect: e.redirect}
		e.auth = &authorizer{
			auth: auth, scope: "repository:" + ref.Path + ":pull", host: &h, o: &c.o,
			client: &http.Client{Transport: transport, CheckRedirect: e.redirectSecret},
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
	case h.Mirror && !c.o.MirrorCredentials && (request.ServerAddress == "" || !request.isFor(h.Base.Host)):
		why = "none: the request's are not for mirrors"
	default:
		a, err = request.plain()
		return a, "the request's", err
	}
	if c.o.AuthFile == "" {
		return a, why, nil
	}
	found, key, err := readAuthFile(c.o.AuthFile, h.Base.Host+"/"+ref.Path)
	if err != nil || key == "" {
		return a, why, err
	}
	a, err = found.plain()
	return a, fmt.Sprintf("those for %s in %s", key, c.o.AuthFile), err
}

// url is the address of a part of the repository.
func (r *Repository) url(e *endpoint, kind, version string) string {
	u := e.host.Base
	u.Path += "/" + r.ref.Path + "/" + kind + "/" + version
	if u.Host != defaultHost(r.ref.Host).Base.Host {
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
		resp, err := r.o.send(e.client, req)
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
	case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
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
