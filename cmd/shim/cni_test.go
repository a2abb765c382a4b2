// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"crishim.dev/cni"
)

func TestInstallOfPlugins(t *testing.T) {
	dir := t.TempDir()
	taken := filepath.Join(dir, "portmap")
	if err := os.WriteFile(taken, []byte("theirs"), 0o755); err != nil {
		t.Fatal(err)
	}
	install := func() []string {
		t.Helper()
		var out bytes.Buffer
		c := command()
		c.SetOut(&out)
		c.SetArgs([]string{"cni", "install", "--dir", dir})
		if err := c.Execute(); err != nil {
			t.Fatal(err)
		}
		return strings.Fields(out.String())
	}
	made := install()
	if len(made) != len(cni.Types())-1 || slices.Contains(made, taken) {
		t.Errorf("installed %q", made)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range made {
		if to, err := os.Readlink(path); err != nil || to != self {
			t.Errorf("%s leads to %s, %v", path, to, err)
		}
		if typ, ok := asPlugin(path); !ok || typ != filepath.Base(path) {
			t.Errorf("started as %s it is no plugin", path)
		}
	}
	if again := install(); len(again) != 0 {
		t.Errorf("a second time %q", again)
	}
	if b, err := os.ReadFile(taken); err != nil || string(b) != "theirs" {
		t.Errorf("the plugin of that name is now %q, %v", b, err)
	}
	if _, ok := asPlugin("/usr/bin/shim"); ok {
		t.Error("shim is a plugin")
	}
}
