// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"errors"
	"strings"
	"testing"

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
  client = [["c.pem", "/k.pem"]]
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
		if got := hosts[i].Base.String(); got != want || hosts[i].Mirror != (i < 3) {
			t.Errorf("host %d: %s, want %s", i, got, want)
		}
	}
	z, a, up := hosts[0], hosts[1], hosts[3]
	if !z.skipVerify || !z.Resolve || z.clients[0] != [2]string{"/certs/c.pem", "/k.pem"} || z.dialTimeout.Seconds() != 3 || len(z.header.Values("X-Two")) != 2 {
		t.Errorf("%+v", z)
	}
	if a.Resolve || !a.Pull || len(a.ca) != 2 || a.clients[0] != [2]string{"/certs/both.pem", ""} || up.ca[0] != "/certs/up.pem" {
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
