// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"crishim.dev/image"
	"crishim.dev/image/registry/registrytest"
	"crishim.dev/internal/errs"
)

const secret = "pass-word+secret/1"

func TestCredentials(t *testing.T) {
	for _, bearer := range []bool{false, true} {
		reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
		reg.Users(map[string]string{"bob": secret, "refresh": "identity-of-bob"}, bearer)
		reg.Push(t, "app", "v", simple(t, "x"))
		ref := reg.Host + "/app:v"
		good := []*image.Auth{
			{Username: "bob", Password: secret},
			{Auth: registrytest.Basic("bob", secret)},
			{Username: "bob", Password: secret, ServerAddress: "http://" + reg.Host + "/v1/"},
		}
		if bearer {
			good = append(good, &image.Auth{IdentityToken: "identity-of-bob"}, &image.Auth{RegistryToken: "token-of-the-test"})
		}
		for _, a := range good {
			i := n.pull(t, ref, a)
			if err := n.Remove(t.Context(), i.ID); err != nil {
				t.Fatal(err)
			}
		}
		for _, a := range []*image.Auth{
			nil, {}, {Username: "bob", Password: "wrong-" + secret}, {Username: "bob", Password: secret, ServerAddress: "elsewhere.example"},
			{RegistryToken: "wrong-token"}, {IdentityToken: "wrong-identity"},
		} {
			_, err := n.Pull(t.Context(), ref, a)
			wantKind(t, err, errs.Denied, "401")
			if err != nil && (strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "wrong-")) {
				t.Errorf("a credential in the error: %v", err)
			}
		}
		// Present or not: the registry is asked whether these credentials may have it.
		n.pull(t, ref, good[0])
		_, err := n.Pull(t.Context(), ref, &image.Auth{Username: "eve", Password: "wrong-" + secret})
		wantKind(t, err, errs.Denied)
	}
}

// A registry that repeats a secret in its answer must not get it into an error.
func TestErrorsAreRedacted(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	reg.Hook(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`{"errors":[{"code":"DENIED","message":"bob:` + secret + ` may not\nfake log line"}]}`))
		return true
	})
	_, err := n.Pull(t.Context(), reg.Host+"/app:v", &image.Auth{Username: "bob", Password: secret})
	wantKind(t, err, errs.Denied, "[redacted]")
	if err != nil && strings.ContainsAny(err.Error(), "\n") {
		t.Errorf("a line break in %q", err)
	}
}

// Credentials and configured headers stay with the host they are for when it redirects.
func TestRedirectsTakeNoCredentials(t *testing.T) {
	reg, storage, dir := registrytest.New(t), registrytest.New(t), t.TempDir()
	n := open(t, dir, nil)
	img := simple(t, "x")
	reg.Push(t, "app", "v", img)
	storage.Push(t, "app", "v", img)
	reg.Users(map[string]string{"bob": secret}, false)
	hosts(t, dir, reg.Host, "server = \"http://"+reg.Host+"\"\n[header]\nx-key = \"header-secret\"\n")
	reg.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("x-key") != "header-secret" {
			t.Error("the configured header is missing")
		}
		if _, _, ok := r.BasicAuth(); ok && strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, storage.URL+r.URL.Path+"?signature=abc", http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	var mu sync.Mutex
	var leaked []string
	storage.Hook(func(_ http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		for _, h := range []string{"Authorization", "X-Key", "Referer"} {
			if v := r.Header.Get(h); v != "" {
				leaked = append(leaked, h+": "+v)
			}
		}
		return false
	})
	n.pull(t, reg.Host+"/app:v", &image.Auth{Username: "bob", Password: secret})
	if len(storage.Requests("/blobs/")) == 0 || len(leaked) > 0 {
		t.Errorf("asked %v, got %v", storage.Requests(""), leaked)
	}
	storage.HTTP().Close()
	if err := n.Remove(t.Context(), img.ID()); err != nil {
		t.Fatal(err)
	}
	_, err := n.Pull(t.Context(), reg.Host+"/app:v", &image.Auth{Username: "bob", Password: secret})
	wantKind(t, err, errs.Unavailable)
	if err != nil && strings.Contains(err.Error(), "signature") {
		t.Errorf("a signed address in the error: %v", err)
	}
}

// A registry that wants a token of everybody gives one to those who have no credentials.
func TestAnonymousToken(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	reg.Users(map[string]string{}, true)
	reg.Push(t, "app", "v", simple(t, "x"))
	reg.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/token" {
			return false
		}
		if r.Method != http.MethodGet || r.Header.Get("Authorization") != "" || r.URL.Query().Get("scope") == "" || r.URL.Query().Get("service") != "test" {
			t.Errorf("asked for a token by %s %s", r.Method, r.URL)
		}
		_, _ = w.Write([]byte(`{"access_token":"token-of-the-test"}`))
		return true
	})
	n.pull(t, reg.Host+"/app:v", nil)
	if got := len(reg.Requests("/token")); got != 1 {
		t.Errorf("%d tokens for one pull", got)
	}
}

// A refresh token travels in a body, which a redirect with 307 would take along.
func TestRedirectTakesNoIdentityToken(t *testing.T) {
	reg, other, n := registrytest.New(t), registrytest.New(t), open(t, t.TempDir(), nil)
	reg.Users(map[string]string{"refresh": secret}, true)
	reg.Push(t, "app", "v", simple(t, "x"))
	reg.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/token" {
			return false
		}
		http.Redirect(w, r, other.URL+"/token", http.StatusTemporaryRedirect)
		return true
	})
	_, err := n.Pull(t.Context(), reg.Host+"/app:v", &image.Auth{IdentityToken: secret})
	wantKind(t, err, errs.Unavailable, "redirect of a token request")
	if got := other.Requests(""); len(got) != 0 || err != nil && strings.Contains(err.Error(), secret) {
		t.Errorf("asked %v; %v", got, err)
	}
}

// The request's credentials are for the registry: its mirrors get those of the configuration, or none, unless the configuration
// says otherwise.
func TestMirrorsGetTheirOwnCredentials(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(dir string, o *image.Options)
		want   string // the user that the mirror sees
	}{
		"none":       {func(string, *image.Options) {}, ""},
		"configured": {func(dir string, o *image.Options) { o.Registry.AuthFile = filepath.Join(dir, "auth.json") }, "mirror"},
		"shared":     {func(_ string, o *image.Options) { o.Registry.MirrorCredentials = true }, "bob"},
	} {
		t.Run(name, func(t *testing.T) {
			mirror, up, dir := registrytest.New(t), registrytest.New(t), t.TempDir()
			up.Users(map[string]string{"bob": secret}, false)
			mirror.Users(map[string]string{"mirror": "m", "bob": secret}, false)
			mirror.Push(t, "app", "v", simple(t, "x"))
			up.Push(t, "app", "v", simple(t, "x"))
			hosts(t, dir, "reg.example", "server = \""+up.URL+"\"\n[host.\""+mirror.URL+"\"]\n")
			if err := os.WriteFile(filepath.Join(dir, "auth.json"), []byte(`{"auths":{"`+mirror.Host+`":{"auth":"`+registrytest.Basic("mirror", "m")+`"}}}`), 0o600); err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			var saw string
			mirror.Hook(func(_ http.ResponseWriter, r *http.Request) bool {
				if user, _, ok := r.BasicAuth(); ok {
					mu.Lock()
					defer mu.Unlock()
					saw = user
				}
				return false
			})
			n := open(t, dir, func(o *image.Options) { tt.change(dir, o) })
			n.pull(t, "reg.example/app:v", &image.Auth{Username: "bob", Password: secret})
			if saw != tt.want || (len(up.Requests("/blobs/")) > 0) != (tt.want == "") {
				t.Errorf("the mirror saw %q, want %q; the registry: %v", saw, tt.want, up.Requests(""))
			}
		})
	}
}

// Nothing of a pull's credentials is logged, whatever the level.
func TestLogsHaveNoCredentials(t *testing.T) {
	reg, dir := registrytest.New(t), t.TempDir()
	reg.Users(map[string]string{"bob": secret}, true)
	reg.Push(t, "app", "v", simple(t, "x"))
	var log strings.Builder
	n := openLogging(t, dir, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})), nil)
	n.pull(t, reg.Host+"/app:v", &image.Auth{Username: "bob", Password: secret})
	_, err := n.Pull(t.Context(), reg.Host+"/app:none", &image.Auth{Username: "bob", Password: secret})
	wantKind(t, err, errs.NotFound)
	n.close()
	if text := log.String(); !strings.Contains(text, "Pulled image") || strings.Contains(text, "bob") || strings.Contains(text, secret) {
		t.Errorf("logged %q", text)
	}
}

// Pulls in flight are merged only with identical credentials.
func TestOtherCredentialsAreNotMerged(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	reg.Users(map[string]string{"bob": secret}, false)
	reg.Push(t, "app", "v", simple(t, "x"))
	entered, gate := make(chan struct{}, 8), make(chan struct{})
	reg.Hook(func(_ http.ResponseWriter, r *http.Request) bool {
		if _, _, ok := r.BasicAuth(); ok && strings.Contains(r.URL.Path, "/blobs/") {
			entered <- struct{}{}
			<-gate
		}
		return false
	})
	done := make(chan error)
	go func() {
		_, err := n.Pull(t.Context(), reg.Host+"/app:v", &image.Auth{Username: "bob", Password: secret})
		done <- err
	}()
	<-entered
	_, err := n.Pull(t.Context(), reg.Host+"/app:v", nil)
	wantKind(t, err, errs.Denied)
	close(gate)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
