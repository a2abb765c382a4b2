// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"crishim.dev/internal/errs"
)

// Auth is who asks: what the kubelet sends with a pull, or what the configuration holds for a host. It is never printed.
type Auth struct {
	// Username and Password are for basic authentication and token servers.
	Username, Password string
	// Auth is "username:password" in base64, in place of the two.
	Auth string
	// ServerAddress, if set, is the registry the rest is meant for; nobody else gets it.
	ServerAddress string
	// IdentityToken is an OAuth2 refresh token for the registry's token server.
	IdentityToken string
	// RegistryToken is a bearer token for the registry itself.
	RegistryToken string
}

// String keeps credentials out of logs and errors.
func (a Auth) String() string { return "[credentials]" }

// GoString is String for %#v.
func (a Auth) GoString() string { return a.String() }

func (a *Auth) empty() bool { return a == nil || *a == (Auth{ServerAddress: a.ServerAddress}) }

// plain gives a copy with Auth taken apart.
func (a *Auth) plain() (Auth, error) {
	if a == nil {
		return Auth{}, nil
	}
	out := *a
	if a.Auth == "" || a.Username != "" {
		return out, nil
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimRight(a.Auth, "\x00"))
	user, password, ok := strings.Cut(strings.TrimRight(string(b), "\x00"), ":")
	if err != nil || !ok {
		return out, errs.Newf(errs.Invalid, "read credentials: auth is not base64 of user:password")
	}
	out.Username, out.Password, out.Auth = user, password, ""
	return out, nil
}

// secrets lists what must not appear in an error.
func (a Auth) secrets() []string {
	return []string{a.Password, a.Auth, a.IdentityToken, a.RegistryToken}
}

// isFor says whether credentials may go to a registry of this name. Docker Hub has several.
func (a *Auth) isFor(names ...string) bool {
	if a.ServerAddress == "" {
		return true
	}
	server := a.ServerAddress
	if !strings.Contains(server, "://") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil {
		return false
	}
	for _, n := range names {
		if hubName(u.Host) == hubName(n) {
			return true
		}
	}
	return false
}

func hubName(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// authorizer answers one host's challenges. Safe for concurrent use.
type authorizer struct {
	auth  Auth
	scope string
	host  *Host
	o     *Options
	// client sends to the token server; it follows redirects without credentials.
	client *http.Client

	mu     sync.Mutex
	header string    // what to send as Authorization; guarded by mu
	until  time.Time // when a token in it ends, zero: unknown; guarded by mu
}

// current is the Authorization to send, if any yet.
func (a *authorizer) current() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.until.IsZero() && time.Now().After(a.until) {
		a.header, a.until = "", time.Time{}
	}
	if a.header == "" && a.auth.RegistryToken != "" {
		return "Bearer " + a.auth.RegistryToken
	}
	return a.header
}

// answer deals with a 401 to a request that was sent with the Authorization sent. It reports whether trying again makes sense.
func (a *authorizer) answer(ctx context.Context, sent string, challenges []string) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.header != "" && a.header != sent {
		return true, nil // another request has got a token meanwhile
	}
	for _, c := range parseChallenges(challenges) {
		switch c.scheme {
		case "bearer":
			if a.auth.RegistryToken != "" && sent == "Bearer "+a.auth.RegistryToken {
				return false, nil
			}
			token, ttl, err := a.token(ctx, c)
			if err != nil {
				return false, err
			}
			a.header, a.until = "Bearer "+token, time.Now().Add(ttl)
			return a.header != sent, nil
		case "basic":
			if a.auth.Username == "" {
				continue
			}
			a.header = "Basic " + base64.StdEncoding.EncodeToString([]byte(a.auth.Username+":"+a.auth.Password))
			return a.header != sent, nil
		}
	}
	return false, nil
}

const (
	maxToken = 1 << 20
	// leastTTL is how long a token lasts that does not say (the distribution specification's 60 seconds).
	leastTTL = 60 * time.Second
)

// token asks the token server for leave to pull. https://distribution.github.io/distribution/spec/auth/token and …/oauth.
func (a *authorizer) token(ctx context.Context, c challenge) (string, time.Duration, error) {
	base := &a.host.Base
	realm, err := url.Parse(c.parameters["realm"])
	if err != nil || realm.Host == "" || realm.Scheme != "https" && realm.Scheme != "http" {
		return "", 0, errs.Newf(errs.Unavailable, "get token: %s sent a malformed realm", base.Host)
	}
	if realm.Scheme == "http" && base.Scheme == "https" && !isLoopback(realm.Hostname()) {
		return "", 0, errs.Newf(errs.Denied, "get token: %s sends to a token server without https (%s)", base.Host, realm.Host)
	}
	scope := c.parameters["scope"]
	if scope == "" {
		scope = a.scope
	}
	req, err := a.tokenRequest(ctx, realm, c.parameters["service"], scope)
	if err != nil {
		return "", 0, err
	}
	resp, err := a.o.send(a.client, req)
	if err != nil {
		return "", 0, transportError("get token", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxToken))
	if err != nil {
		return "", 0, transportError("get token", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", 0, statusError("get token from "+realm.Host, resp, b)
	}
	var t struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
	}
	if err := json.Unmarshal(b, &t); err != nil {
		return "", 0, errs.Newf(errs.Unavailable, "get token: malformed answer from %s", realm.Host)
	}
	if t.Token == "" {
		t.Token = t.AccessToken
	}
	if t.Token == "" || strings.ContainsAny(t.Token, "\r\n") {
		return "", 0, errs.Newf(errs.Denied, "get token: %s gave none", realm.Host)
	}
	return t.Token, max(time.Duration(t.ExpiresIn)*time.Second, leastTTL) - 5*time.Second, nil
}

func (a *authorizer) tokenRequest(ctx context.Context, realm *url.URL, service, scope string) (*http.Request, error) {
	form := url.Values{}
	if service != "" {
		form.Set("service", service)
	}
	form.Set("scope", scope)
	method, body := http.MethodGet, io.Reader(nil)
	u := *realm
	if a.auth.IdentityToken != "" {
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", a.auth.IdentityToken)
		form.Set("client_id", a.o.UserAgent)
		method, body = http.MethodPost, strings.NewReader(form.Encode())
	} else {
		q := u.Query()
		maps.Copy(q, form)
		u.RawQuery = q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, errs.Newf(errs.Unavailable, "get token: malformed realm")
	}
	if realm.Host == a.host.Base.Host {
		maps.Copy(req.Header, a.host.header)
	}
	req.Header.Set("User-Agent", a.o.UserAgent)
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	} else if a.auth.Username != "" {
		req.SetBasicAuth(a.auth.Username, a.auth.Password)
	}
	return req, nil
}

// challenge is one WWW-Authenticate (RFC 9110, section 11.6.1).
type challenge struct {
	scheme     string // lower case
	parameters map[string]string
}

// parseChallenges reads the header's values, the strongest scheme first. What it does not understand it leaves out.
func parseChallenges(values []string) []challenge {
	var bearer, others []challenge
	for _, v := range values {
		scheme, rest, _ := strings.Cut(strings.TrimSpace(v), " ")
		c := challenge{strings.ToLower(scheme), map[string]string{}}
		for rest = strings.TrimLeft(rest, " ,"); rest != ""; rest = strings.TrimLeft(rest, " ,") {
			k, after, ok := strings.Cut(rest, "=")
			if !ok {
				break
			}
			var value string
			if value, rest, ok = parameter(after); !ok {
				break
			}
			c.parameters[strings.ToLower(strings.TrimSpace(k))] = value
		}
		if c.scheme == "bearer" {
			bearer = append(bearer, c)
		} else {
			others = append(others, c)
		}
	}
	return append(bearer, others...)
}

// parameter takes a token or quoted string off the front of s.
func parameter(s string) (value, rest string, ok bool) {
	s = strings.TrimLeft(s, " ")
	if !strings.HasPrefix(s, `"`) {
		if i := strings.IndexAny(s, ", "); i >= 0 {
			return s[:i], s[i:], true
		}
		return s, "", true
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(s[i])
		}
	}
	return "", "", false
}

// redacted hides an error's text where it repeats a secret, and keeps what it is.
type redacted struct {
	text string
	err  error
}

func (r *redacted) Error() string { return r.text }
func (r *redacted) Unwrap() error { return r.err }

// redact makes sure that none of secrets shows in err.
func redact(err error, secrets []string) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	for _, s := range secrets {
		if len(s) >= 3 {
			text = strings.ReplaceAll(text, s, "[redacted]")
			text = strings.ReplaceAll(text, url.QueryEscape(s), "[redacted]")
		}
	}
	if text == err.Error() {
		return err
	}
	return &redacted{text, err}
}

// transportError describes a request that got no answer. net/http's own text has the URL with its query, which may be signed.
func transportError(what string, err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		where := "a server"
		if parsed, e := url.Parse(u.URL); e == nil {
			where = parsed.Scheme + "://" + parsed.Host
		}
		err = fmt.Errorf("ask %s: %w", where, u.Err)
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return errs.Newf(errs.Unavailable, "%s: %w", what, err)
}
