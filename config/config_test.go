// SPDX-License-Identifier: Apache-2.0

package config

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite golden files")

func print(t *testing.T, c Config) string {
	t.Helper()
	var b strings.Builder
	if err := Print(&b, c); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestDefaultIsValidAndGolden(t *testing.T) {
	c := Default()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	got := print(t, c)
	golden := filepath.Join("testdata", "default.toml")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("default configuration differs from %s (-want +got):\n%s", golden, diff)
	}
}

func TestPrintRoundTrips(t *testing.T) {
	odd := Default()
	odd.Socket = "/run/\"quoted\"/\\back\nslash\t\u007f.sock"
	odd.Network.BinDirs = nil
	odd.Limits.NoFile = 1<<63 - 1
	odd.Limits.Core = -1
	odd.Streaming.IdleTimeout = Duration(90 * time.Minute)
	odd.Runtime.Handlers = map[string]Handler{"fast": {Type: "shim"}, "odd \"name\"": {Type: "shim"}}
	for name, c := range map[string]Config{"default": Default(), "odd": odd} {
		var got Config
		if err := got.Merge("printed", []byte(print(t, c))); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if c.Network.BinDirs == nil {
			c.Network.BinDirs = []string{}
		}
		if len(c.Runtime.Handlers) == 0 {
			c.Runtime.Handlers = nil
		}
		if len(got.Runtime.Handlers) == 0 {
			got.Runtime.Handlers = nil
		}
		if diff := cmp.Diff(c, got); diff != "" {
			t.Errorf("%s (-printed +read):\n%s", name, diff)
		}
	}
}

func TestEveryKeyIsDocumented(t *testing.T) {
	lines := strings.Split(print(t, Default()), "\n")
	for i, l := range lines {
		if strings.Contains(l, " = ") && !strings.HasPrefix(l, "#") && (i == 0 || !strings.HasPrefix(lines[i-1], "#")) {
			t.Errorf("%q has no comment", l)
		}
		if len(l) > lineWidth {
			t.Errorf("%q is longer than %d", l, lineWidth)
		}
	}
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadMergesInLexicalOrder(t *testing.T) {
	dir := t.TempDir()
	main := write(t, dir, "config.toml", "root = \"/a\"\n[network]\nbuiltin = true\nbin_dirs = [\"/one\", \"/two\"]\n[runtime.handlers.x]\ntype = \"shim\"\n[log]\nlevel = \"debug\"")
	write(t, dir, "config.d/20.toml", "root = \"/c\"\n[runtime.handlers.y]\ntype = \"shim\"")
	write(t, dir, "config.d/10.toml", "root = \"/b\"\n[network]\nbin_dirs = [\"/three\"]")
	write(t, dir, "config.d/30.toml.bak", "nonsense")
	got, err := Load(main, true)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Root = "/c"
	want.Network.Builtin = true
	want.Network.BinDirs = []string{"/three"}
	want.Log.Level = "debug"
	want.Runtime.Handlers = map[string]Handler{"x": {Type: "shim"}, "y": {Type: "shim"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("merged (-want +got):\n%s", diff)
	}
}

func TestLoadMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	if c, err := Load(path, false); err != nil || !cmp.Equal(c, Default()) {
		t.Errorf("missing file, not required: %+v, %v; want the defaults", c, err)
	}
	if _, err := Load(path, true); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("missing file, required: %v; want an error naming it", err)
	}
}

func TestLoadErrorsNameKeyAndFile(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"unknown key", "root = \"/x\"\nrooot = \"/y\"", `unknown key "rooot" (line 2)`},
		{"unknown in table", "[network]\nsubnets = \"10.0.0.0/8\"", `unknown key "network.subnets" (line 2)`},
		{"unknown table", "[netwrk]\nsubnet = \"10.0.0.0/8\"", `unknown key "netwrk`},
		{"unknown in handler", "[runtime.handlers.x]\ntype = \"shim\"\npath = \"/x\"", `unknown key "runtime.handlers.x.path"`},
		{"syntax", "root = ", "line 1"},
		{"wrong type", "[image]\nparallel = \"four\"", "line 2"},
		{"bad duration", "[streaming]\nidle_timeout = \"4 hours\"", "4 hours"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := write(t, t.TempDir(), "config.toml", tt.text)
			_, err := Load(path, true)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v; want %q and %q", err, tt.want, path)
			}
		})
	}
}

func TestValidateNamesEachKey(t *testing.T) {
	for key, change := range map[string]func(*Config){
		"socket":                     func(c *Config) { c.Socket = "run/shim.sock" },
		"admin_socket":               func(c *Config) { c.AdminSocket = "x" },
		"root":                       func(c *Config) { c.Root = "" },
		"state":                      func(c *Config) { c.State = c.Root },
		"keeper":                     func(c *Config) { c.Keeper = "shim-keeper" },
		"log.level":                  func(c *Config) { c.Log.Level = "loud" },
		"log.format":                 func(c *Config) { c.Log.Format = "xml" },
		"cgroup.driver":              func(c *Config) { c.Cgroup.Driver = "none" },
		"cgroup.parent":              func(c *Config) { c.Cgroup.Parent = "../x" },
		"network.subnet":             func(c *Config) { c.Network.Subnet = "10.0.0.1/8" },
		"network.bin_dirs":           func(c *Config) { c.Network.BinDirs = []string{"bin"} },
		"image.parallel":             func(c *Config) { c.Image.Parallel = 0 },
		"image.auth_file":            func(c *Config) { c.Image.AuthFile = "auth.json" },
		"image.policy_file":          func(c *Config) { c.Image.PolicyFile = "policy.toml" },
		"image.bandwidth":            func(c *Config) { c.Image.Bandwidth = -1 },
		"image.min_rate":             func(c *Config) { c.Image.MinRate = 0 },
		"image.stall_time":           func(c *Config) { c.Image.StallTime = 0 },
		"image.max_layers":           func(c *Config) { c.Image.MaxLayers = 501 },
		"streaming.address":          func(c *Config) { c.Streaming.Address = "localhost" },
		"streaming.tls_cert":         func(c *Config) { c.Streaming.TLSCert = "/x.pem" },
		"streaming.idle_timeout":     func(c *Config) { c.Streaming.IdleTimeout = 0 },
		"streaming.creation_timeout": func(c *Config) { c.Streaming.CreationTimeout = -1 },
		"limits.core":                func(c *Config) { c.Limits.Core = -2 },
		"cdi.spec_dirs":              func(c *Config) { c.CDI.SpecDirs = []string{"x"} },
		"runtime.handlers":           func(c *Config) { c.Runtime.Handlers = map[string]Handler{"A b": {Type: "shim"}} },
		"runtime.handlers.x.type":    func(c *Config) { c.Runtime.Handlers = map[string]Handler{"x": {Type: "runc"}} },
	} {
		c := Default()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "configuration: "+key+": ") {
			t.Errorf("%s: got %v; want an error naming it", key, err)
		}
	}
}

func TestSubnetsOfBothFamilies(t *testing.T) {
	for text, want := range map[string]int{
		"10.88.0.0/16": 1, "10.88.0.0/16,fd00:88::/64": 2, "fd00:88::/64, 10.88.0.0/16": 2,
		"": 0, "10.88.0.0/16,": 0, "10.0.0.0/8,10.9.0.0/16": 0, "10.0.0.0/8,fd00::1/64": 0, "10.0.0.0/8,fd00::/64,fd01::/64": 0,
	} {
		if got, err := (Network{Subnet: text}).Subnets(); len(got) != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %v, %v; want %d", text, got, err, want)
		}
	}
}

// FuzzMerge: no document makes Merge panic, and what it accepts and finds valid is printed in a form that reads back.
func FuzzMerge(f *testing.F) {
	f.Add("root = \"/x\"\n[runtime.handlers.x]\ntype = \"shim\"")
	f.Add("[network]\nbin_dirs = [\"/a\", \"\\u0000\"]")
	f.Add("[streaming]\nidle_timeout = \"1h\"")
	f.Add("runtime = 3")
	f.Fuzz(func(t *testing.T, text string) {
		c := Default()
		if c.Merge("fuzz", []byte(text)) != nil || c.Validate() != nil {
			return
		}
		again := Default()
		if err := again.Merge("printed", []byte(print(t, c))); err != nil {
			t.Fatalf("read back: %v\n%s", err, print(t, c))
		}
		if print(t, c) != print(t, again) {
			t.Errorf("printed:\n%s\nread back:\n%s", print(t, c), print(t, again))
		}
	})
}
