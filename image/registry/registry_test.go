// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"crishim.dev/internal/errs"
)

func TestParse(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	for in, want := range map[string]string{
		"busybox":                     "docker.io/library/busybox:latest",
		"busybox:1.36":                "docker.io/library/busybox:1.36",
		"team/app":                    "docker.io/team/app:latest",
		"index.docker.io/app":         "docker.io/library/app:latest",
		"localhost/app":               "localhost/app:latest",
		"localhost:5000/a/b:v1":       "localhost:5000/a/b:v1",
		"reg.example/app@" + d:        "reg.example/app@" + d,
		"reg.example:443/app:v1@" + d: "reg.example:443/app@" + d,
		"[::1]:5000/app":              "[::1]:5000/app:latest",
		"a--b/c__d/e.f":               "docker.io/a--b/c__d/e.f:latest",
	} {
		if r, err := Parse(in); err != nil || r.String() != want {
			t.Errorf("%s: %s, %v; want %s", in, r, err, want)
		}
	}
	for _, in := range []string{
		"", " ", "App", "reg.example/App", "app:", "app:-x", "app@sha256:abc", "app@md5:" + strings.Repeat("a", 64), strings.Repeat("a", 64),
		"reg.example/", "/app", "a//b", "http://reg.example/app", "reg.example/" + strings.Repeat("a", 256), "a/../b", "app:v1:v2", "app\n",
	} {
		if r, err := Parse(in); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %s, %v", in, r, err)
		}
	}
}

func TestHostsFile(t *testing.T) {
	hosts, err := parseHosts([]byte(`
server = "https://up.example"
ca = "up.pem"
[host."http://z.example:5000"]
  capabilities = ["pull", "resolve", "push"]
  skip_verify = true
  client = [["c.pem", "/k.pem"], ["both.pem", ""]]
  dial_timeout = "3s"
  [host."http://z.example:5000".header]
    x-one = "1"
    x-two = ["2", "3"]
[host."https://a.example/v2/proxy"]
  override_path = true
  capabilities = ["pull"]
  ca = ["one.pem", "two.pem"]
  client = ["both.pem"]
[host."m.example/path"]
`), "/certs", "reg.example")
	if err != nil || len(hosts) != 4 {
		t.Fatalf("%+v, %v", hosts, err)
	}
	for i, want := range []string{"http://z.example:5000/v2", "https://a.example/v2/proxy", "https://m.example/path/v2", "https://up.example/v2"} {
		if got := hosts[i].Base.String(); got != want || hosts[i].Mirror != (i < 3) || hosts[i].eitherScheme != (i == 0) {
			t.Errorf("host %d: %s, want %s", i, got, want)
		}
	}
	z, a, up := hosts[0], hosts[1], hosts[3]
	if !z.skipVerify || !z.Resolve || z.clients[0] != [2]string{"/certs/c.pem", "/k.pem"} || z.dialTimeout.Seconds() != 3 || len(z.header.Values("X-Two")) != 2 {
		t.Errorf("%+v", z)
	}
	if a.Resolve || !a.Pull || len(a.ca) != 2 || a.clients[0] != [2]string{"/certs/both.pem", "/certs/both.pem"} || z.clients[1] != a.clients[0] || up.ca[0] != "/certs/up.pem" {
		t.Errorf("%+v %+v", a, up)
	}
	for _, bad := range []string{
		"server = 5", "unknown = 1", "[host.\"ftp://x\"]", "[host.\"https://u:p@x\"]", "[host.\"https://x\"]\ncapabilities=[\"fly\"]",
		"ca = 5", "client = [[\"a\",\"b\",\"c\"]]", "[header]\nx = 5", "dial_timeout = \"soon\"", "[host.\"https://x\"]\nskip = true", "]",
	} {
		if h, err := parseHosts([]byte(bad), "/certs", "reg.example"); err == nil {
			t.Errorf("%q was read as %+v", bad, h)
		}
	}
}

func TestDefaultHosts(t *testing.T) {
	for in, want := range map[string]string{
		"docker.io": "https://registry-1.docker.io/v2", "reg.example:5000": "https://reg.example:5000/v2", "localhost:5000": "http://localhost:5000/v2",
		"127.0.0.1:80": "http://127.0.0.1:80/v2", "127.0.0.1:443": "https://127.0.0.1:443/v2", "[::1]:5000": "http://[::1]:5000/v2",
	} {
		h, err := Hosts("", in)
		if err != nil || len(h) != 1 || h[0].Base.String() != want {
			t.Errorf("%s: %+v, %v; want %s", in, h, err, want)
		}
	}
}

// What is a mirror decides who gets credentials, and what image.mirrors_only leaves out.
func TestMirror(t *testing.T) {
	for _, tt := range []struct {
		dir, registry, toml string
		want                []bool
	}{
		{"/c/docker.io", "docker.io", "[host.\"https://m.example\"]\n[host.\"https://registry-1.docker.io\"]", []bool{true, false, false}},
		{"/c/reg.example", "reg.example", "server = \"https://internal.example\"", []bool{false}},
		{"/c/_default", "reg.example", "server = \"https://internal.example\"", []bool{true}},
		{"/c/_default", "reg.example", "[host.\"https://m.example\"]", []bool{true, false}},
	} {
		hosts, err := parseHosts([]byte(tt.toml), tt.dir, tt.registry)
		var got []bool
		for _, h := range hosts {
			got = append(got, h.Mirror)
		}
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s for %s: %v, %v; want %v", tt.dir, tt.registry, got, err, tt.want)
		}
	}
}

// The directory's name: with the port in underscores, with a colon, the default for all.
func TestHostDir(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"a.example_5000_", "a.example:5000", "b.example:5000", "_default"} {
		if err := os.Mkdir(filepath.Join(dir, n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for registry, want := range map[string]string{"a.example:5000": "a.example_5000_", "b.example:5000": "b.example:5000", "a.example": "_default"} {
		if got, err := hostDir(dir, registry); err != nil || got != filepath.Join(dir, want) {
			t.Errorf("%s: %s, %v; want %s", registry, got, err, want)
		}
	}
}

func TestAuthFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth.json")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"auths": {"https://index.docker.io/v1/": {"auth": "aHViOnB3"}, "reg.example:5000": {"username": "all", "password": "pw"},
		"reg.example:5000/team": {"identitytoken": "team"}, "empty.example": {}, "tok.example/v2/": {"registrytoken": "tok"}}, "credsStore": "desktop"}`)
	for name, want := range map[string]Auth{
		"registry-1.docker.io/library/app": {Auth: "aHViOnB3"}, "reg.example:5000/teams/app": {Username: "all", Password: "pw"},
		"reg.example:5000/team/app": {IdentityToken: "team"}, "tok.example/app": {RegistryToken: "tok"}, "empty.example/app": {}, "reg.example/app": {},
	} {
		if got, key, err := readAuthFile(path, name); err != nil || got != want || (key == "") != (want == Auth{}) {
			t.Errorf("%s: %#v by %q, %v", name, got == want, key, err)
		}
	}
	write(`{"auths": {"x": {"password": secret-word}}}`)
	if _, _, err := readAuthFile(path, "x/y"); !errors.Is(err, errs.Invalid) || strings.Contains(err.Error(), "secret-word") {
		t.Errorf("a broken file: %v", err)
	}
}

func TestExplain(t *testing.T) {
	dir := t.TempDir()
	certs := filepath.Join(dir, "certs.d")
	file := "server = \"https://reg.example\"\n[host.\"https://b.example\"]\ncapabilities = [\"pull\"]\n[host.\"https://a.example/proxy\"]\noverride_path = true\n"
	auth := filepath.Join(dir, "auth.json")
	if err := errors.Join(os.MkdirAll(filepath.Join(certs, "reg.example"), 0o755), os.WriteFile(filepath.Join(certs, "reg.example", "hosts.toml"), []byte(file), 0o600),
		os.WriteFile(auth, []byte(`{"auths":{"a.example":{"username":"u","password":"secret"}}}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	ref, err := Parse("reg.example/app:v")
	if err != nil {
		t.Fatal(err)
	}
	steps, err := New(Options{CertsDir: certs, AuthFile: auth, MirrorsOnly: true}).Explain(ref, &Auth{Username: "bob", Password: "secret"})
	if err != nil || len(steps) != 3 {
		t.Fatalf("%+v, %v", steps, err)
	}
	for i, want := range []struct{ url, resolve, pull, credentials string }{
		{"https://b.example/v2", "capability resolve", "", "not for mirrors"},
		{"https://a.example/proxy", "", "", "those for a.example in " + auth},
		{"https://reg.example/v2", "mirrors_only", "mirrors_only", "the request's"},
	} {
		s := steps[i]
		if s.URL != want.url || (want.resolve == "") != (s.NoResolve == "") || (want.pull == "") != (s.NoPull == "") ||
			!strings.Contains(s.NoResolve, want.resolve) || !strings.Contains(s.NoPull, want.pull) || !strings.Contains(s.Credentials, want.credentials) {
			t.Errorf("step %d: %+v, want %+v", i, s, want)
		}
		if !strings.HasSuffix(s.From, "reg.example/hosts.toml") || strings.Contains(fmt.Sprintf("%+v", s), "secret") {
			t.Errorf("step %d: %+v", i, s)
		}
	}
}

// What many readers get together stays under the rate, and a cancelled one does not wait.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, start := newPace(1000), time.Now()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 10 {
					if err := p.wait(t.Context(), 100); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took != 4*time.Second {
			t.Errorf("4000 bytes at 1000 a second took %s", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.wait(ctx, 1<<30); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	})
}

func FuzzAuthFile(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"auth":"eDp5"}}}`), "docker.io/library/app")
	path := filepath.Join(f.TempDir(), "auth.json")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if a, key, err := readAuthFile(path, name); err == nil && (key != "") == a.empty() {
			t.Errorf("key %q", key)
		}
	})
}

func FuzzHosts(f *testing.F) {
	f.Add([]byte("server = \"https://x\"\n[host.\"https://y\"]\nca = [\"a\"]\n"))
	f.Add([]byte("[host.\"http://y/v2\"]\nclient = [[\"a\", \"b\"]]\n[host.\"http://y/v2\".header]\nx = \"1\"\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		hosts, err := parseHosts(b, "/certs", "reg.example")
		if err == nil && len(hosts) == 0 {
			t.Error("no host and no error")
		}
		for _, h := range hosts {
			if h.Base.Scheme != "http" && h.Base.Scheme != "https" || h.Base.Host == "" || h.Base.User != nil {
				t.Errorf("%+v", h.Base)
			}
		}
	})
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://x/token",service="s",scope="a,b"`)
	f.Add(`Basic realm="x\"y"`)
	f.Fuzz(func(_ *testing.T, s string) { parseChallenges([]string{s}) })
}
