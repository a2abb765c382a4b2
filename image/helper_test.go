// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crishim.dev/image"
	"crishim.dev/image/registry"
	"crishim.dev/image/registry/registrytest"
	"crishim.dev/snapshot"
)

// node is a store in a directory of its own.
type node struct {
	*image.Store
	snap *snapshot.Store
	dir  string
}

func options(dir string) image.Options {
	return image.Options{
		Dir:      filepath.Join(dir, "images"),
		Registry: registry.Options{CertsDir: filepath.Join(dir, "certs.d"), Backoff: time.Millisecond},
	}
}

func open(t testing.TB, dir string, change func(*image.Options)) *node {
	t.Helper()
	return openLogging(t, dir, slog.New(slog.DiscardHandler), change)
}

func openLogging(t testing.TB, dir string, log *slog.Logger, change func(*image.Options)) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("unpacking layers needs root")
	}
	snap, err := snapshot.Open(filepath.Join(dir, "snapshots"), log)
	if err != nil {
		t.Fatal(err)
	}
	o := options(dir)
	if change != nil {
		change(&o)
	}
	s, err := image.Open(o, snap, log)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{s, snap, dir}
	t.Cleanup(n.close)
	return n
}

func (n *node) close() {
	_ = n.Store.Close()
	_ = n.snap.Close()
}

// clean fails the test if pulls left anything besides complete layers. A pull that failed does not wait until all its layers have
// been let go of.
func (n *node) clean(t testing.TB) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		if err := n.snap.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, d := range []string{"drafts", "trash", "snapshots"} {
			found, _ := filepath.Glob(filepath.Join(n.dir, "snapshots", d, "*"))
			left = append(left, found...)
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("left: %v", left)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func (n *node) pull(t testing.TB, ref string, auth *image.Auth) image.Image {
	t.Helper()
	i, err := n.Pull(t.Context(), ref, auth)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// read reads a file of an image through a mount.
func (n *node) read(t testing.TB, i image.Image, name string) string {
	t.Helper()
	f, err := n.snap.View(t.Context(), i.Layers)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), name))
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func wantKind(t testing.TB, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("got %v, want an error of the kind %v", err, kind)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("got %q, want %q in it", err, w)
		}
	}
}

// simple is an image of two layers.
func simple(t testing.TB, text string) *registrytest.Image {
	t.Helper()
	return registrytest.NewImage(t, [][]byte{
		registrytest.Tar(t, registrytest.Dir("etc"), registrytest.File("etc/motd", "low"), registrytest.File("etc/gone", "")),
		registrytest.Tar(t, registrytest.Dir("etc"), registrytest.File("etc/motd", text), registrytest.File("etc/.wh.gone", "")),
	}, nil, nil)
}

// hosts writes a hosts.toml.
func hosts(t testing.TB, dir, host, text string) {
	t.Helper()
	d := filepath.Join(dir, "certs.d", host)
	if err := errors.Join(os.MkdirAll(d, 0o755), os.WriteFile(filepath.Join(d, "hosts.toml"), []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// hang answers requests for blobs with a start and then nothing, until the client goes. entered gets a value for each.
func hang(entered chan<- struct{}, left chan<- struct{}) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		w.Header().Set("Content-Length", "1000000")
		_, _ = w.Write(make([]byte, 10))
		w.(http.Flusher).Flush()
		entered <- struct{}{}
		<-r.Context().Done()
		left <- struct{}{}
		return true
	}
}
