// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crishim.dev/image"
	"crishim.dev/image/registry/registrytest"
	"crishim.dev/internal/errs"
	"crishim.dev/snapshot/untar"
)

func TestVerify(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	twice := registrytest.Tar(t, registrytest.File("f", "1"), registrytest.File("f", "2"))
	img := simple(t, "high")
	img = registrytest.NewImage(t, append(img.Tars, twice), nil, nil)
	reg.Push(t, "app", "v", img)
	ref := reg.Host + "/app:v"
	i := n.pull(t, ref, nil)
	checks, err := n.Verify(t.Context(), ref)
	if err != nil || len(checks) != 3 || checks[0].Err != nil || checks[1].Err != nil {
		t.Fatalf("%+v, %v", checks, err)
	}
	wantKind(t, checks[2].Err, errs.Unsupported)
	// One byte changes on disk, the size stays.
	if err := os.WriteFile(filepath.Join(n.snap.FSDir(i.Layers[1]), "etc/motd"), []byte("hiGh"), 0o644); err != nil {
		t.Fatal(err)
	}
	checks, err = n.Verify(t.Context(), ref)
	if err != nil || checks[0].Err != nil || !errors.Is(checks[1].Err, untar.ErrChanged) || !strings.Contains(checks[1].Err.Error(), "etc/motd") {
		t.Errorf("%+v, %v", checks, err)
	}
	_, err = n.Verify(t.Context(), "unknown")
	wantKind(t, err, errs.NotFound)
}

func TestExplain(t *testing.T) {
	dir := t.TempDir()
	hosts(t, dir, "reg.example", "server = \"https://reg.example\"\n[host.\"https://b.example\"]\ncapabilities = [\"pull\"]\n[host.\"https://a.example/proxy\"]\noverride_path = true\n")
	n := open(t, dir, func(o *image.Options) { o.Registry.NoFallback = true })
	steps, err := n.Explain("reg.example/app:v", &image.Auth{Username: "bob", Password: secret})
	if err != nil || len(steps) != 3 {
		t.Fatalf("%+v, %v", steps, err)
	}
	for i, want := range []struct{ url, skipped, credentials string }{
		{"https://b.example/v2", "capability resolve", "not for mirrors"},
		{"https://a.example/proxy", "", "not for mirrors"},
		{"https://reg.example/v2", "forbids", "the request's"},
	} {
		s := steps[i]
		if s.URL != want.url || want.skipped == "" != (s.Skipped == "") || !strings.Contains(s.Skipped, want.skipped) || !strings.Contains(s.Credentials, want.credentials) {
			t.Errorf("step %d: %+v, want %+v", i, s, want)
		}
		if !strings.HasSuffix(s.From, "reg.example/hosts.toml") || strings.Contains(s.Credentials, secret) {
			t.Errorf("step %d: %+v", i, s)
		}
	}
}
