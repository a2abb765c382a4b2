// SPDX-License-Identifier: Apache-2.0

package testnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"crishim.dev/internal/testnode/testimage"
)

// Registry is an image registry on loopback. It serves the repositories of every host that the node mirrors to it, under
// their path without the host. Safe for concurrent use.
type Registry struct {
	// Host is 127.0.0.1:PORT; images can be pulled under it directly as well.
	Host string

	server *http.Server
	store  http.Handler

	mu        sync.Mutex // guards what is below
	intercept func(w http.ResponseWriter, r *http.Request) (done bool)
	requests  []string
}

// hosts are mirrored to the registry.
func hosts() []string {
	return []string{"registry.k8s.io", "gcr.io", "k8s.gcr.io", "docker.io", "localhost"}
}

// StartRegistry serves an empty registry on a free port of loopback.
func StartRegistry() (*Registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for registry: %w", err)
	}
	r := &Registry{Host: l.Addr().String(), store: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	r.server = &http.Server{Handler: http.HandlerFunc(r.serve), ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = r.server.Serve(l) }() // ends with Close
	return r, nil
}

// Close stops serving.
func (r *Registry) Close() error { return r.server.Close() }

// Intercept lets f see each request first; done true means that f has answered it. nil stops that.
func (r *Registry) Intercept(f func(w http.ResponseWriter, req *http.Request) (done bool)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.intercept = f
}

// Requests lists "METHOD path" of everything asked since the last call.
func (r *Registry) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.requests
	r.requests = nil
	return out
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, req.Method+" "+req.URL.Path)
	intercept := r.intercept
	r.mu.Unlock()
	if intercept != nil && intercept(w, req) {
		return
	}
	r.store.ServeHTTP(w, req)
}

// Push stores an image under all its names, whose hosts are dropped.
func (r *Registry) Push(ctx context.Context, img testimage.Image) error {
	for _, ref := range img.Refs {
		_, path, ok := strings.Cut(ref, "/")
		if !ok {
			return fmt.Errorf("push image %s: no host in the name", ref)
		}
		to, err := name.ParseReference(r.Host+"/"+path, name.Insecure)
		if err != nil {
			return fmt.Errorf("push image %s: %w", ref, err)
		}
		if img.Index != nil {
			err = remote.WriteIndex(to, img.Index, remote.WithContext(ctx))
		} else {
			err = remote.Write(to, img.Image, remote.WithContext(ctx))
		}
		if err != nil {
			return fmt.Errorf("push image %s: %w", ref, err)
		}
	}
	return nil
}

// Fill pushes the stand-in images.
func (r *Registry) Fill(ctx context.Context) error {
	images, err := testimage.All(testimage.Source{Busybox: os.Getenv(envBusybox), Probe: filepath.Join(Dir(), "bin", "probe"), Arch: runtime.GOARCH})
	if err != nil {
		return fmt.Errorf("make test images: %w", err)
	}
	errs := make(chan error, len(images))
	for chunk := range slices.Chunk(images, len(images)/4+1) {
		go func() {
			for _, img := range chunk {
				errs <- r.Push(ctx, img)
			}
		}()
	}
	for range images {
		err = errors.Join(err, <-errs)
	}
	return err
}

// writeCerts writes the mirror configuration of every host, in containerd's format.
func (r *Registry) writeCerts(dir string) error {
	return r.writeMirrors(dir, append(hosts(), r.Host)...)
}

func (r *Registry) writeMirrors(dir string, names ...string) error {
	for _, host := range names {
		sub := filepath.Join(dir, host)
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		text := fmt.Sprintf("server = \"http://%s\"\n\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", r.Host, r.Host)
		if err := os.WriteFile(filepath.Join(sub, "hosts.toml"), []byte(text), 0o644); err != nil {
			return fmt.Errorf("write mirror of %s: %w", host, err)
		}
	}
	return nil
}
