// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

//go:generate go test -count=1 -run ^TestManPages$ . -update

// A flag of the test's, so that the generator is no part of the daemon.
var update = flag.Bool("update", false, "write the man pages anew")

// manPages are made of the commands' help texts.
const manPages = "../../docs/man"

func TestManPages(t *testing.T) {
	fresh := t.TempDir()
	c := command()
	c.DisableAutoGenTag = true
	// The date is fixed: the same commands make the same pages.
	date := time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)
	if err := doc.GenManTree(c, &doc.GenManHeader{Section: "1", Source: "shim", Manual: "shim", Date: &date}, fresh); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.RemoveAll(manPages); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(manPages, os.DirFS(fresh)); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(pages(t, fresh), pages(t, manPages)); diff != "" {
		t.Errorf("docs/man is not as the commands are (+): run go generate ./cmd/shim\n%s", diff)
	}
}

func pages(t *testing.T, dir string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no man pages in %s: %v", dir, err)
	}
	out := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out[filepath.Base(f)] = string(text)
	}
	return out
}

// TestEveryCommandHelps: what can be run says what it is and shows an example that begins with its own name.
func TestEveryCommandHelps(t *testing.T) {
	n := 0
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		if !c.Runnable() || c.Hidden {
			return
		}
		n++
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short help %q", c.CommandPath(), c.Short)
		}
		for line := range strings.Lines(c.Example) {
			if !strings.HasPrefix(line, "  "+c.CommandPath()) {
				t.Errorf("%s: example %q", c.CommandPath(), line)
			}
		}
		if c.Example == "" {
			t.Errorf("%s: no example", c.CommandPath())
		}
	}
	walk(command())
	if n < 15 {
		t.Errorf("%d commands; want 15 at least", n)
	}
}

func TestCompletion(t *testing.T) {
	flags := start(t, newDaemon())
	for shell, want := range map[string]string{"bash": "__start_shim", "zsh": "#compdef shim", "fish": "complete -c shim", "powershell": "Register-ArgumentCompleter"} {
		if got, err := run(t, "", "completion", shell); err != nil || !strings.Contains(got, want) {
			t.Errorf("completion for %s: %v; want %q in it", shell, err, want)
		}
	}
	for _, tt := range []struct{ args, want string }{
		{"why", "aaaaaaaaaaaa\tdefault/web\nbbbbbbbbbbbb\tdefault/gone\n:4\n"},
		{"plan", "cccccccccccc\tnginx\ndddddddddddd\tinit\n:4\n"},
		{"stats", "aaaaaaaaaaaa\tdefault/web\nbbbbbbbbbbbb\tdefault/gone\ncccccccccccc\tnginx\ndddddddddddd\tinit\n:4\n"},
		{"plan cccc", ":4\n"},
		{"ps -o", "table\njson\n:4\n"},
	} {
		line := append([]string{"__complete"}, append(flags, strings.Fields(tt.args)...)...)
		got, err := run(t, "", append(line, "")...)
		got, _, _ = strings.Cut(got, "Completion ended")
		if err != nil || got != tt.want {
			t.Errorf("%s: %v\n%q\nwant\n%q", tt.args, err, got, tt.want)
		}
	}
}
