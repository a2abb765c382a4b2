// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// registry serves images on loopback, layers straight from their files. It is filled before the first request.
type registry struct {
	host      string
	blobs     map[string]string // digest → file
	documents map[string]document
	manifests map[string]v1.Descriptor // tag → manifest
}

type document struct {
	mediaType string
	body      []byte
}

func serve() (*registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{host: l.Addr().String(), blobs: map[string]string{}, documents: map[string]document{}, manifests: map[string]v1.Descriptor{}}
	s := &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(l) }() // until the program ends
	return r, nil
}

func (r *registry) ref(tag string) string { return r.host + "/bench:" + tag }

func (r *registry) putBytes(mediaType string, b []byte) v1.Descriptor {
	d := digest.FromBytes(b)
	r.documents[d.String()] = document{mediaType, b}
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

// ServeHTTP answers what a pull asks.
func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	name := path.Base(q.URL.Path)
	if m, ok := r.manifests[name]; ok {
		name = m.Digest.String()
	}
	d, isDocument := r.documents[name]
	file, isBlob := r.blobs[name]
	switch {
	case strings.TrimSuffix(q.URL.Path, "/") == "/v2":
	case isDocument:
		w.Header().Set("Content-Type", d.mediaType)
		w.Header().Set("Docker-Content-Digest", name)
		w.Header().Set("Content-Length", strconv.Itoa(len(d.body)))
		if q.Method != http.MethodHead {
			_, _ = w.Write(d.body)
		}
	case isBlob:
		f, err := os.Open(file)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer f.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, q, "", time.Time{}, f)
	default:
		http.NotFound(w, q)
	}
}
