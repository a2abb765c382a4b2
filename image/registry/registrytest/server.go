// SPDX-License-Identifier: Apache-2.0

// Package registrytest is a registry in the test's own process, with images made in the test, that can be told to misbehave.
package registrytest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Server is a registry on loopback. Its fields may be set before and changed between requests with Set.
type Server struct {
	// URL is its address, Host the same without http://.
	URL, Host string
	http      *httptest.Server
	token     string

	mu        sync.Mutex
	manifests map[string]document // repository:tag and repository@digest
	blobs     map[string][]byte   // digest
	log       []string            // "METHOD path" of each request
	hook      func(w http.ResponseWriter, r *http.Request) bool
	users     map[string]string
	bearer    bool

	noReferrers bool
}

type document struct {
	mediaType string
	body      []byte
}

// New starts a registry that ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{manifests: map[string]document{}, blobs: map[string][]byte{}, token: "token-of-the-test"}
	s.http = httptest.NewServer(s)
	t.Cleanup(s.http.Close)
	s.URL = s.http.URL
	s.Host = strings.TrimPrefix(s.URL, "http://")
	return s
}

// NewTLS starts a registry that speaks https with a certificate nobody knows.
func NewTLS(t testing.TB, configure func(*httptest.Server)) *Server {
	t.Helper()
	s := &Server{manifests: map[string]document{}, blobs: map[string][]byte{}, token: "token-of-the-test"}
	s.http = httptest.NewUnstartedServer(s)
	if configure != nil {
		configure(s.http)
	}
	s.http.StartTLS()
	t.Cleanup(s.http.Close)
	s.URL = s.http.URL
	s.Host = strings.TrimPrefix(s.URL, "https://")
	return s
}

// HTTP is the server below, for its certificate and connections.
func (s *Server) HTTP() *httptest.Server { return s.http }

// Hook sets a function that sees each request first; when it returns true it has answered. nil: none.
func (s *Server) Hook(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = f
}

// Users makes the registry ask for a user and password, directly or through its token server.
func (s *Server) Users(users map[string]string, bearer bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users, s.bearer = users, bearer
}

// NoReferrers makes the registry one that keeps no list of referrers.
func (s *Server) NoReferrers() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noReferrers = true
}

// Requests lists "METHOD path" of all requests so far that contain part.
func (s *Server) Requests(part string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, l := range s.log {
		if strings.Contains(l, part) {
			out = append(out, l)
		}
	}
	return out
}

// PutBlob stores a blob under its digest.
func (s *Server) PutBlob(b []byte) string {
	d := Digest(b)
	s.PutBlobAs(d, b)
	return d
}

// PutBlobAs stores a blob under a digest that need not be its own.
func (s *Server) PutBlobAs(digest string, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[digest] = b
}

// PutManifest stores a manifest under repository:tag and repository@digest and gives its descriptor.
func (s *Server) PutManifest(repository, tag, mediaType string, b []byte) v1.Descriptor {
	d := Digest(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.manifests[repository+"@"+d] = document{mediaType, b}
	if tag != "" {
		s.manifests[repository+":"+tag] = document{mediaType, b}
	}
	return v1.Descriptor{MediaType: mediaType, Digest: DigestOf(b), Size: int64(len(b))}
}

// Push stores an image.
func (s *Server) Push(t testing.TB, repository, tag string, i *Image) v1.Descriptor {
	t.Helper()
	for _, b := range append(i.Blobs, i.Config) {
		s.PutBlob(b)
	}
	return s.PutManifest(repository, tag, i.mediaType, i.Manifest)
}

// ServeHTTP answers.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.log = append(s.log, r.Method+" "+r.URL.RequestURI())
	hook := s.hook
	s.mu.Unlock()
	if hook != nil && hook(w, r) {
		return
	}
	if r.URL.Path == "/token" {
		s.giveToken(w, r)
		return
	}
	if !s.authorized(w, r) {
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	if repository, version, ok := strings.Cut(path, "/manifests/"); ok {
		s.manifest(w, repository, version)
		return
	}
	if _, digest, ok := strings.Cut(path, "/blobs/"); ok {
		s.blob(w, r, digest)
		return
	}
	if repository, digest, ok := strings.Cut(path, "/referrers/"); ok {
		s.referrers(w, repository, digest)
		return
	}
	w.WriteHeader(http.StatusOK)
}

// referrers lists the manifests with this subject, unless the registry keeps no list.
func (s *Server) referrers(w http.ResponseWriter, repository, digest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.noReferrers {
		fail(w, http.StatusNotFound, "UNSUPPORTED", "no such thing")
		return
	}
	index := v1.Index{MediaType: v1.MediaTypeImageIndex}
	index.SchemaVersion = 2
	for name, doc := range s.manifests {
		var m v1.Manifest
		if !strings.HasPrefix(name, repository+"@") || json.Unmarshal(doc.body, &m) != nil || m.Subject == nil || string(m.Subject.Digest) != digest {
			continue
		}
		index.Manifests = append(index.Manifests, v1.Descriptor{
			MediaType: doc.mediaType, Digest: DigestOf(doc.body), Size: int64(len(doc.body)), ArtifactType: m.ArtifactType,
		})
	}
	w.Header().Set("Content-Type", index.MediaType)
	_ = json.NewEncoder(w).Encode(index)
}

func (s *Server) authorized(w http.ResponseWriter, r *http.Request) bool {
	s.mu.Lock()
	users, bearer := s.users, s.bearer
	s.mu.Unlock()
	if users == nil {
		return true
	}
	user, password, ok := r.BasicAuth()
	if !bearer && ok && users[user] == password && password != "" || bearer && r.Header.Get("Authorization") == "Bearer "+s.token {
		return true
	}
	challenge := `Basic realm="test"`
	if bearer {
		challenge = fmt.Sprintf(`Bearer realm="%s/token",service="test",scope="repository:x:pull"`, s.URL)
	}
	w.Header().Set("WWW-Authenticate", challenge)
	fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	return false
}

func (s *Server) giveToken(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	user, password, ok := r.BasicAuth()
	if r.Method == http.MethodPost {
		_ = r.ParseForm()
		ok = s.users["refresh"] == r.PostForm.Get("refresh_token")
		user, password = "refresh", s.users["refresh"]
	}
	if !ok || s.users[user] != password || password == "" {
		fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "who are you")
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"token": s.token, "expires_in": 300})
}

func (s *Server) manifest(w http.ResponseWriter, repository, version string) {
	sep := ":"
	if strings.HasPrefix(version, "sha256:") {
		sep = "@"
	}
	s.mu.Lock()
	m, ok := s.manifests[repository+sep+version]
	s.mu.Unlock()
	if !ok {
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	}
	w.Header().Set("Content-Type", m.mediaType)
	w.Header().Set("Docker-Content-Digest", Digest(m.body))
	w.Header().Set("Content-Length", strconv.Itoa(len(m.body)))
	_, _ = w.Write(m.body)
}

func (s *Server) blob(w http.ResponseWriter, r *http.Request, digest string) {
	s.mu.Lock()
	b, ok := s.blobs[digest]
	s.mu.Unlock()
	if !ok {
		fail(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown")
		return
	}
	if from, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
		start, err := strconv.Atoi(strings.TrimSuffix(from, "-"))
		if err == nil && start < len(b) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(b)-1, len(b)))
			w.Header().Set("Content-Length", strconv.Itoa(len(b)-start))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(b[start:])
			return
		}
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b)
}

func fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}

// Digest is the SHA-256 digest of b.
func Digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Basic is a Docker-style auth field.
func Basic(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

// Entry is one entry of a layer.
type Entry struct {
	tar.Header
	Body string
}

// File is a regular file; Dir a directory.
func File(name, body string) Entry {
	return Entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))}, body}
}

// Dir is a directory.
func Dir(name string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}}
}

// Tar makes a layer's archive.
func Tar(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.Body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Gzip compresses.
func Gzip(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Zstd compresses.
func Zstd(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

// Image is an image made in a test.
type Image struct {
	Config, Manifest []byte
	// Blobs are the layers as they are sent, Tars as they are unpacked.
	Blobs, Tars [][]byte
	mediaType   string
}

// ID is the image's id.
func (i *Image) ID() string { return Digest(i.Config) }

// NewImage makes an image of layers. pack compresses each (nil: gzip); change may change the configuration (nil: leave it).
func NewImage(t testing.TB, layers [][]byte, pack func(testing.TB, []byte) []byte, change func(*v1.Image)) *Image {
	t.Helper()
	if pack == nil {
		pack = Gzip
	}
	c := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: v1.RootFS{Type: "layers"}}
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest}
	m.SchemaVersion = 2
	i := &Image{Tars: layers, mediaType: v1.MediaTypeImageManifest}
	for _, l := range layers {
		b := pack(t, l)
		i.Blobs = append(i.Blobs, b)
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, DigestOf(l))
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: DigestOf(b), Size: int64(len(b))})
	}
	if change != nil {
		change(&c)
	}
	i.Config = marshal(t, c)
	m.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: DigestOf(i.Config), Size: int64(len(i.Config))}
	i.Manifest = marshal(t, m)
	return i
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
