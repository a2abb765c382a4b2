// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crishim.dev/image"
	"crishim.dev/image/registry/registrytest"
	"crishim.dev/internal/errs"
)

// cut answers the first requests for large blobs with a part and drops the connection.
func cut(times int32, part int) (hook func(http.ResponseWriter, *http.Request) bool, ranges *atomic.Int32) {
	var seen atomic.Int32
	ranges = &atomic.Int32{}
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		if r.Header.Get("Range") != "" {
			ranges.Add(1)
		}
		if seen.Add(1) > times {
			return false
		}
		w.Header().Set("Content-Length", "1000000")
		_, _ = w.Write(make([]byte, part))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}, ranges
}

// A broken connection is continued where it broke, by Range.
func TestResume(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	body := strings.Repeat("0123456789", 200_000)
	img := registrytest.NewImage(t, [][]byte{registrytest.Tar(t, registrytest.File("f", body))}, func(_ testing.TB, b []byte) []byte { return b }, nil)
	reg.Push(t, "app", "v", img)
	layer := registrytest.Digest(img.Blobs[0])
	var breaks, resumed atomic.Int32
	reg.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, layer) {
			return false
		}
		from, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
		start, _ := strconv.Atoi(strings.TrimSuffix(from, "-"))
		if ok {
			resumed.Add(1)
		}
		if breaks.Add(1) > 6 || start+300_000 > len(img.Blobs[0]) {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(img.Blobs[0])-start))
		if ok {
			w.Header().Set("Content-Range", "bytes "+strconv.Itoa(start)+"-/*")
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(img.Blobs[0][start : start+300_000])
		panic(http.ErrAbortHandler)
	})
	if got := n.read(t, n.pull(t, reg.Host+"/app:v", nil), "f"); got != body {
		t.Errorf("%d bytes", len(got))
	}
	if resumed.Load() < 3 {
		t.Errorf("resumed %d times", resumed.Load())
	}
}

// A connection that keeps breaking, or trickles, is given up.
func TestGiveUp(t *testing.T) {
	reg := registrytest.New(t)
	reg.Push(t, "app", "v", simple(t, "x"))
	n := open(t, t.TempDir(), func(o *image.Options) { o.Registry.StallTime, o.Registry.Retries = 200*time.Millisecond, 2 })
	hook, ranges := cut(1000, 10)
	reg.Hook(hook)
	_, err := n.Pull(t.Context(), reg.Host+"/app:v", nil)
	wantKind(t, err, errs.Unavailable)
	if ranges.Load() == 0 {
		t.Error("never resumed")
	}
	entered, left := make(chan struct{}, 100), make(chan struct{}, 100)
	reg.Hook(hang(entered, left))
	_, err = n.Pull(t.Context(), reg.Host+"/app:v", nil)
	wantKind(t, err, errs.Unavailable, "too slow")
	n.clean(t)
}

// What trickles is dropped, wherever it comes from: a manifest as well as a blob.
func TestTrickle(t *testing.T) {
	for _, part := range []string{"/manifests/", "/blobs/", "/token"} {
		reg := registrytest.New(t)
		reg.Users(map[string]string{"bob": secret}, true)
		reg.Push(t, "app", "v", simple(t, "x"))
		n := open(t, t.TempDir(), func(o *image.Options) {
			o.Registry.StallTime, o.Registry.MinRate, o.Registry.Retries = 50*time.Millisecond, 1<<20, 1
		})
		reg.Hook(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodHead || !strings.Contains(r.URL.Path, part) || part != "/token" && r.Header.Get("Authorization") == "" {
				return false
			}
			w.Header().Set("Content-Length", "1000000")
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for {
				if _, err := w.Write([]byte(" ")); err != nil {
					return true
				}
				w.(http.Flusher).Flush()
				select {
				case <-tick.C:
				case <-r.Context().Done():
					return true
				}
			}
		})
		_, err := n.Pull(t.Context(), reg.Host+"/app:v", &image.Auth{Username: "bob", Password: secret})
		wantKind(t, err, errs.Unavailable, "too slow")
		n.clean(t)
	}
}

// The bandwidth limit counts for all layers together.
func TestBandwidth(t *testing.T) {
	reg := registrytest.New(t)
	body := make([]byte, 300_000)
	_, _ = rand.Read(body)
	img := registrytest.NewImage(t, [][]byte{
		registrytest.Tar(t, registrytest.File("a", string(body[:150_000]))), registrytest.Tar(t, registrytest.File("b", string(body[150_000:]))),
	}, nil, nil)
	reg.Push(t, "app", "v", img)
	n := open(t, t.TempDir(), func(o *image.Options) { o.Registry.Rate = 1_000_000 })
	start := time.Now()
	n.pull(t, reg.Host+"/app:v", nil)
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("300000 bytes at 1000000 a second took %s", took)
	}
}

// No more layers are fetched at a time than is allowed, over all pulls.
func TestParallel(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), func(o *image.Options) { o.Parallel = 3 })
	var layers [][]byte
	for i := range 8 {
		layers = append(layers, registrytest.Tar(t, registrytest.File(fmt.Sprint("f", i), "x")))
	}
	a, b := registrytest.NewImage(t, layers[:4], nil, nil), registrytest.NewImage(t, layers[4:], nil, nil)
	reg.Push(t, "a", "v", a)
	reg.Push(t, "b", "v", b)
	var now, most atomic.Int32
	fourth := make(chan struct{})
	var once sync.Once
	reg.Hook(func(_ http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") || strings.HasSuffix(r.URL.Path, a.ID()) || strings.HasSuffix(r.URL.Path, b.ID()) {
			return false
		}
		at := now.Add(1)
		defer now.Add(-1)
		for was := most.Load(); at > was && !most.CompareAndSwap(was, at); was = most.Load() {
		}
		if at > 3 {
			once.Do(func() { close(fourth) })
		}
		select { // each stays a moment, for one more than is allowed to come
		case <-fourth:
		case <-time.After(50 * time.Millisecond):
		}
		return false
	})
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b"} {
		wg.Go(func() {
			if _, err := n.Pull(t.Context(), reg.Host+"/"+name+":v", nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := most.Load(); got != 3 {
		t.Errorf("%d layers were fetched at a time", got)
	}
}

// A registry that is busy is asked again.
func TestBusy(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	reg.Push(t, "app", "v", simple(t, "x"))
	var asked atomic.Int32
	reg.Hook(func(w http.ResponseWriter, _ *http.Request) bool {
		if asked.Add(1)%2 == 0 {
			return false
		}
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	n.pull(t, reg.Host+"/app:v", nil)
}

func TestMirrors(t *testing.T) {
	down, mirror, up, dir := registrytest.New(t), registrytest.New(t), registrytest.New(t), t.TempDir()
	down.HTTP().Close()
	img := simple(t, "x")
	mirror.Push(t, "app", "v", img)
	up.Push(t, "app", "v", img)
	up.Push(t, "app", "only", img)
	hosts(t, dir, "reg.example", "server = \""+up.URL+"\"\n[host.\""+down.URL+"\"]\n[host.\""+mirror.URL+"\"]\n")
	n := open(t, dir, nil)
	n.pull(t, "reg.example/app:v", nil)
	if len(up.Requests("")) != 0 || len(mirror.Requests("ns=reg.example")) == 0 {
		t.Errorf("asked %v and %v", mirror.Requests(""), up.Requests(""))
	}
	n.pull(t, "reg.example/app:only", nil)
	if len(up.Requests("/manifests/")) == 0 {
		t.Error("the server was not asked")
	}
	strict := open(t, filepath.Join(t.TempDir(), "strict"), func(o *image.Options) {
		o.Registry.CertsDir, o.Registry.MirrorsOnly = filepath.Join(dir, "certs.d"), true
	})
	_, err := strict.Pull(t.Context(), "reg.example/app:only", nil)
	wantKind(t, err, errs.NotFound)
	// A mirror that is busy is passed by: the registry may answer sooner.
	mirror.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(http.StatusTooManyRequests)
		}
		return strings.Contains(r.URL.Path, "/manifests/")
	})
	up.Push(t, "app", "busy", img)
	mirror.Push(t, "app", "busy", img)
	n.pull(t, "reg.example/app:busy", nil)
	hosts(t, dir, "bad.example", "nonsense = 1\n")
	_, err = n.Pull(t.Context(), "bad.example/app:v", nil)
	wantKind(t, err, errs.Invalid, "bad.example/hosts.toml")
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	reg := registrytest.NewTLS(t, func(s *httptest.Server) {
		s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS12}
	})
	cert := reg.HTTP().Certificate()
	reg.Push(t, "app", "v", simple(t, "x"))
	key, err := x509.MarshalPKCS8PrivateKey(reg.HTTP().TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("cert.pem", "CERTIFICATE", cert.Raw)
	write("key.pem", "PRIVATE KEY", key)
	n := open(t, dir, nil)
	ca, client := "ca = \""+dir+"/cert.pem\"\n", "client = [[\""+dir+"/cert.pem\", \""+dir+"/key.pem\"]]\n"
	for name, tt := range map[string]struct {
		toml string
		ok   bool
	}{
		"unknown authority":     {client, false},
		"no client certificate": {ca, false},
		"both":                  {ca + client, true},
		"skip_verify":           {"skip_verify = true\n" + client, true},
		// containerd's own example: http in the URL, and settings of TLS.
		"http, but TLS settings": {"skip_verify = true\n" + client + "server = \"http://" + reg.Host + "\"\n", true},
	} {
		if !strings.Contains(tt.toml, "server") {
			tt.toml += "server = \"" + reg.URL + "\"\n"
		}
		hosts(t, dir, reg.Host, tt.toml)
		i, err := n.Pull(t.Context(), reg.Host+"/app:v", nil)
		if tt.ok != (err == nil) || err != nil && !errors.Is(err, errs.Unavailable) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			if err := n.Remove(t.Context(), i.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
}
