// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crishim.dev/image"
	"crishim.dev/image/registry/registrytest"
	"crishim.dev/internal/errs"
)

// large is an image of one layer that does not compress.
func large(t *testing.T, size int) *registrytest.Image {
	t.Helper()
	body := make([]byte, size)
	_, _ = rand.Read(body)
	return registrytest.NewImage(t, [][]byte{registrytest.Tar(t, registrytest.File("f", string(body)))}, nil, nil)
}

// stopAt sends a layer from the byte that is asked for up to stop, and then nothing until the client goes. from is where the last
// request began; sent gets a value when stop is reached.
func stopAt(img *registrytest.Image, stop int, from *atomic.Int64, sent chan<- struct{}) func(http.ResponseWriter, *http.Request) bool {
	layer := img.Blobs[0]
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, registrytest.Digest(layer)) {
			return false
		}
		start, _ := strconv.Atoi(strings.Trim(r.Header.Get("Range"), "bytes=-"))
		from.Store(int64(start))
		if stop < start {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(layer)-start))
		if start > 0 {
			w.Header().Set("Content-Range", "bytes "+strconv.Itoa(start)+"-/*")
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(layer[start:stop])
		w.(http.Flusher).Flush()
		sent <- struct{}{}
		<-r.Context().Done()
		return true
	}
}

// kept waits until this much of a layer is kept.
func (n *node) kept(t *testing.T, least int64) string {
	t.Helper()
	for {
		files, _ := filepath.Glob(filepath.Join(n.dir, "images", "partial", "*", "*"))
		if len(files) == 1 {
			if fi, err := os.Stat(files[0]); err == nil && fi.Size() >= least {
				return files[0]
			}
		}
		if t.Context().Err() != nil {
			t.Fatal(t.Context().Err())
		}
		time.Sleep(time.Millisecond)
	}
}

func (n *node) nothingKept(t *testing.T) {
	t.Helper()
	if files, _ := filepath.Glob(filepath.Join(n.dir, "images", "partial", "*", "*")); len(files) != 0 {
		t.Errorf("kept: %v", files)
	}
}

// collected fails the test if what is kept can't be removed. A cancelled pull does not wait for its layers to be let go of.
func (n *node) collected(t *testing.T) {
	t.Helper()
	for {
		if err := n.Collect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if files, _ := filepath.Glob(filepath.Join(n.dir, "images", "partial", "*", "*")); len(files) == 0 {
			return
		}
		if t.Context().Err() != nil {
			t.Fatal(t.Context().Err())
		}
		time.Sleep(time.Millisecond)
	}
}

// A pull that was cut off goes on by Range where it was, in another store that finds the first one's files, as after a kill.
func TestResumeAfterRestart(t *testing.T) {
	reg, dir := registrytest.New(t), t.TempDir()
	img := large(t, 12<<20)
	reg.Push(t, "app", "v", img)
	slow := func(o *image.Options) { o.Slow = time.Nanosecond }
	n := open(t, dir, slow)
	const stop = 9 << 20
	var from atomic.Int64
	sent := make(chan struct{}, 8)
	reg.Hook(stopAt(img, stop, &from, sent))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { _, err := n.Pull(ctx, reg.Host+"/app:v", nil); done <- err }()
	<-sent
	n.kept(t, stop)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	n.close()
	n = open(t, dir, slow)
	reg.Hook(stopAt(img, 0, &from, sent))
	i := n.pull(t, reg.Host+"/app:v", nil)
	if from.Load() != stop {
		t.Errorf("resumed at %d, want %d", from.Load(), stop)
	}
	if got := n.read(t, i, "f"); len(got) != 12<<20 {
		t.Errorf("%d bytes", len(got))
	}
	n.nothingKept(t)
	n.clean(t)
}

// What is kept is believed no more than a registry: a change of it is found, and it is thrown away.
func TestResumeWithDamage(t *testing.T) {
	reg, dir := registrytest.New(t), t.TempDir()
	img := large(t, 12<<20)
	reg.Push(t, "app", "v", img)
	n := open(t, dir, func(o *image.Options) { o.Slow = time.Nanosecond })
	var from atomic.Int64
	sent := make(chan struct{}, 8)
	reg.Hook(stopAt(img, 9<<20, &from, sent))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { _, err := n.Pull(ctx, reg.Host+"/app:v", nil); done <- err }()
	<-sent
	file := n.kept(t, 9<<20)
	cancel()
	<-done
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), 5<<20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	reg.Hook(nil)
	if _, err = n.Pull(t.Context(), reg.Host+"/app:v", nil); err == nil {
		t.Error("a damaged layer was taken")
	}
	n.nothingKept(t)
	n.pull(t, reg.Host+"/app:v", nil)
	n.clean(t)
}

// Nothing is kept of a layer that comes fast, of an image that is wrong, of another boot, and of what nobody came back for.
func TestNothingIsKeptInVain(t *testing.T) {
	reg, dir := registrytest.New(t), t.TempDir()
	img := large(t, 12<<20)
	reg.Push(t, "fast", "v", img)
	old := filepath.Join(dir, "images", "partial", "another-boot")
	if err := errors.Join(os.MkdirAll(old, 0o700), os.WriteFile(filepath.Join(old, "x"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	n := open(t, dir, nil)
	n.nothingKept(t)
	var from atomic.Int64
	sent := make(chan struct{}, 8)
	cutOff := func(stop int, check func()) {
		reg.Hook(stopAt(img, stop, &from, sent))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { _, err := n.Pull(ctx, reg.Host+"/fast:v", nil); done <- err }()
		<-sent
		check()
		cancel()
		<-done
	}
	cutOff(10<<20, func() {
		for len(n.Pulls()) == 1 && (len(n.Pulls()[0].Layers) == 0 || n.Pulls()[0].Layers[0].Fetched < 10<<20) {
			time.Sleep(time.Millisecond)
		}
		n.nothingKept(t)
	})
	cutOff(2<<20, func() { n.kept(t, 2<<20) }) // too early to tell
	n.collected(t)
	reg.Hook(nil)
	reg.PutBlobAs(registrytest.Digest(img.Blobs[0]), make([]byte, len(img.Blobs[0])))
	_, err := n.Pull(t.Context(), reg.Host+"/fast:v", nil)
	wantKind(t, err, errs.Invalid)
	n.nothingKept(t)
	n.clean(t)
}
