// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crishim.dev/image"
	"crishim.dev/image/registry/registrytest"
	"crishim.dev/snapshot"
)

// A store opens whatever happened to its database: a page of it, its end, its beginning. What it then lists is right, and what is
// missing can be pulled.
func TestDamagedDatabase(t *testing.T) {
	reg, dir := registrytest.New(t), t.TempDir()
	n := open(t, dir, nil)
	want := map[string]image.Image{}
	for i := range 12 {
		name := fmt.Sprintf("%s/image%d:v", reg.Host, i)
		reg.Push(t, fmt.Sprintf("image%d", i), "v", simple(t, strings.Repeat(name, 20)))
		img := n.pull(t, name, nil)
		want[img.ID] = img
	}
	n.close()
	path := filepath.Join(dir, "images", "images.db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	damages := map[string]func([]byte) []byte{
		"text": func([]byte) []byte { return []byte(strings.Repeat("not a database\n", 2000)) },
		"one":  func(b []byte) []byte { return b[:1] },
		"meta": func(b []byte) []byte { return b[:page] },
		"half": func(b []byte) []byte { return b[:len(b)/2] },
		"end":  func(b []byte) []byte { return b[:4*page] },
	}
	for p := 0; p < len(whole); p += page {
		damages[fmt.Sprintf("zeros at page %d", p/page)] = func(b []byte) []byte { clear(b[p : p+page]); return b }
		damages[fmt.Sprintf("noise at page %d", p/page)] = func(b []byte) []byte { copy(b[p:p+page], noise(page)); return b }
		damages[fmt.Sprintf("page %d twice", p/page)] = func(b []byte) []byte { copy(b[p:p+page], b[(p+3*page)%len(b):]); return b }
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, damage(append([]byte(nil), whole...)), 0o600); err != nil {
				t.Fatal(err)
			}
			n := open(t, dir, nil)
			for _, i := range n.List() {
				if w, ok := want[i.ID]; !ok || fmt.Sprint(w) != fmt.Sprint(i) {
					t.Errorf("listed %v", i)
				}
			}
			have := len(n.List())
			aside, _ := filepath.Glob(path + ".damaged-*")
			if have < len(want) && have > 0 && len(aside) > 0 {
				t.Errorf("%d images are listed of a database that was set aside", have)
			}
			n.pull(t, reg.Host+"/image3:v", nil)
			n.close()
			for _, f := range aside {
				_ = os.Remove(f)
			}
		})
	}
}

// What is no damage keeps the daemon from starting, and nothing is renamed.
func TestDatabaseInUse(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, nil)
	snap, err := snapshot.Open(filepath.Join(dir, "others"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	if s, err := image.Open(options(dir), snap, slog.New(slog.DiscardHandler)); err == nil {
		t.Errorf("two stores have one database: %v", s.Close())
	}
	if aside, _ := filepath.Glob(filepath.Join(dir, "images", "images.db.damaged-*")); len(aside) > 0 {
		t.Errorf("the database of another was set aside")
	}
}
