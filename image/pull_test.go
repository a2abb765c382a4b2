// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crishim.dev/image"
	"crishim.dev/image/registry/registrytest"
	"crishim.dev/internal/errs"
	"crishim.dev/snapshot"
)

func TestPullListResolveRemove(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	img := simple(t, "high")
	desc := reg.Push(t, "team/app", "v1", img)
	ref := reg.Host + "/team/app:v1"
	got := n.pull(t, ref, nil)
	byDigest := reg.Host + "/team/app@" + string(desc.Digest)
	if got.ID != img.ID() || !slices.Equal(got.RepoTags, []string{ref}) || !slices.Equal(got.RepoDigests, []string{byDigest}) || len(got.Layers) != 2 || got.Size == 0 {
		t.Errorf("got %+v", got)
	}
	if s := n.read(t, got, "etc/motd"); s != "high" {
		t.Errorf("motd: %q", s)
	}
	if list := n.List(); len(list) != 1 || list[0].ID != got.ID {
		t.Errorf("list: %+v", list)
	}
	hex := strings.TrimPrefix(got.ID, "sha256:")
	for _, r := range []string{ref, byDigest, got.ID, hex, hex[:12], "sha256:" + hex[:20]} {
		if i, err := n.Resolve(r); err != nil || i.ID != got.ID {
			t.Errorf("resolve %s: %+v, %v", r, i, err)
		}
	}
	for _, r := range []string{"nothing", reg.Host + "/team/app:v2", "sha256:" + strings.Repeat("0", 64), strings.Repeat("0", 12)} {
		_, err := n.Resolve(r)
		wantKind(t, err, errs.NotFound, r)
	}
	images, containers, err := n.Usage(t.Context())
	if err != nil || images.Bytes == 0 || images.Inodes == 0 || images.MountPoint == "" || containers.MountPoint != images.MountPoint {
		t.Errorf("usage %+v %+v %v", images, containers, err)
	}
	if err := n.Remove(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if err := n.Remove(t.Context(), ref); err != nil {
		t.Errorf("remove of an unknown image: %v", err)
	}
	if len(n.List()) != 0 || len(n.snap.Layers()) != 0 {
		t.Errorf("left: %v %v", n.List(), n.snap.Layers())
	}
	n.clean(t)
}

func TestNames(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	a, b := simple(t, "a"), simple(t, "b")
	da := reg.Push(t, "app", "one", a)
	reg.Push(t, "app", "two", a)
	one, two := reg.Host+"/app:one", reg.Host+"/app:two"
	n.pull(t, one, nil)
	if got := n.pull(t, two, nil); !slices.Equal(got.RepoTags, []string{one, two}) || len(got.RepoDigests) != 1 {
		t.Errorf("two tags: %+v", got)
	}
	// The tag moves to another image; the first one stays, without it.
	reg.Push(t, "app", "one", b)
	if got := n.pull(t, one, nil); got.ID != b.ID() || !slices.Equal(got.RepoTags, []string{one}) {
		t.Errorf("moved: %+v", got)
	}
	if got, _ := n.Resolve(a.ID()); !slices.Equal(got.RepoTags, []string{two}) {
		t.Errorf("old: %+v", got)
	}
	// By tag: the tag goes, then the image with the last one.
	if err := n.Remove(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Resolve(b.ID()); !errors.Is(err, errs.NotFound) {
		t.Errorf("its last tag is gone, it is not: %v", err)
	}
	// By digest: no tag, and the image stays for it.
	byDigest := reg.Host + "/app@" + string(da.Digest)
	if err := n.Remove(t.Context(), a.ID()); err != nil {
		t.Fatal(err)
	}
	if got := n.pull(t, byDigest, nil); len(got.RepoTags) != 0 || !slices.Equal(got.RepoDigests, []string{byDigest}) {
		t.Errorf("by digest: %+v", got)
	}
	n.pull(t, two, nil)
	if err := n.Remove(t.Context(), two); err != nil {
		t.Fatal(err)
	}
	if got, err := n.Resolve(byDigest); err != nil || len(got.RepoTags) != 0 {
		t.Errorf("an image asked for by digest: %+v, %v", got, err)
	}
	if err := n.Remove(t.Context(), strings.TrimPrefix(a.ID(), "sha256:")[:16]); err != nil {
		t.Fatal(err)
	}
	if len(n.List()) != 0 || len(n.snap.Layers()) != 0 {
		t.Errorf("left: %v %v", n.List(), n.snap.Layers())
	}
}

func TestStoreSurvivesRestart(t *testing.T) {
	reg, dir := registrytest.New(t), t.TempDir()
	n := open(t, dir, nil)
	reg.Push(t, "app", "v1", simple(t, "x"))
	ref := reg.Host + "/app:v1"
	want := n.pull(t, ref, nil)
	n.close()
	n = open(t, dir, func(o *image.Options) { o.Pinned = []string{ref} })
	got, err := n.Resolve(ref)
	if err != nil || got.ID != want.ID || got.Size != want.Size || !got.Pinned {
		t.Errorf("%+v, %v", got, err)
	}
	// Nothing is downloaded again, whatever is asked for.
	before := len(reg.Requests("/blobs/"))
	n.pull(t, ref, nil)
	if after := len(reg.Requests("/blobs/")); after != before {
		t.Errorf("%d blobs were fetched again", after-before)
	}
	// A layer that is damaged makes its image absent, and is pulled again alone.
	n.close()
	if err := os.Remove(filepath.Join(dir, "snapshots", "layers", string(want.Layers[1]), "layer.json")); err != nil {
		t.Fatal(err)
	}
	n = open(t, dir, nil)
	if len(n.List()) != 0 {
		t.Error("an image without one of its layers is listed")
	}
	n.pull(t, ref, nil)
	if after := len(reg.Requests("/blobs/")); after != before+2 { // configuration and one layer
		t.Errorf("%d blobs were fetched", after-before)
	}
}

func TestPlatforms(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	mine, other := simple(t, "mine"), registrytest.NewImage(t, nil, nil, func(c *v1.Image) { c.Architecture = "mips" })
	index := v1.Index{MediaType: v1.MediaTypeImageIndex}
	index.SchemaVersion = 2
	add := func(i *registrytest.Image, arch string) {
		d := reg.Push(t, "multi", "", i)
		d.Platform = &v1.Platform{OS: "linux", Architecture: arch}
		index.Manifests = append(index.Manifests, d)
	}
	add(other, "mips")
	add(mine, runtime.GOARCH)
	b, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	d := reg.PutManifest("multi", "all", v1.MediaTypeImageIndex, b)
	got := n.pull(t, reg.Host+"/multi:all", nil)
	if got.ID != mine.ID() || got.RepoDigests[0] != reg.Host+"/multi@"+string(d.Digest) {
		t.Errorf("got %+v", got)
	}
	// What the index says counts, not what the configuration says; an index of indexes; 32 bits when there is nothing better.
	mislabelled := reg.Push(t, "multi", "", registrytest.NewImage(t, nil, nil, func(c *v1.Image) { c.Architecture = "mips" }))
	mislabelled.Platform = &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	put := func(tag, mediaType string, in ...v1.Descriptor) v1.Descriptor {
		i := v1.Index{MediaType: mediaType, Manifests: in}
		i.SchemaVersion = 2
		b, err := json.Marshal(i)
		if err != nil {
			t.Fatal(err)
		}
		return reg.PutManifest("multi", tag, mediaType, b)
	}
	const list = "application/vnd.docker.distribution.manifest.list.v2+json"
	n.pull(t, reg.Host+"/multi@"+string(put("", list, mislabelled).Digest), nil)
	nested := d
	for range 3 {
		nested = put("nested", v1.MediaTypeImageIndex, nested)
	}
	if got := n.pull(t, reg.Host+"/multi:nested", nil); got.ID != mine.ID() {
		t.Errorf("nested: %+v", got)
	}
	for range 3 {
		nested = put("deep", v1.MediaTypeImageIndex, nested)
	}
	_, err = n.Pull(t.Context(), reg.Host+"/multi:deep", nil)
	wantKind(t, err, errs.Invalid, "nested more than")
	index.Manifests = index.Manifests[:1]
	if b, err = json.Marshal(index); err != nil {
		t.Fatal(err)
	}
	reg.PutManifest("multi", "none", v1.MediaTypeImageIndex, b)
	_, err = n.Pull(t.Context(), reg.Host+"/multi:none", nil)
	wantKind(t, err, errs.NotFound, "linux/mips", "linux/"+runtime.GOARCH)
	reg.Push(t, "multi", "single", other)
	_, err = n.Pull(t.Context(), reg.Host+"/multi:single", nil)
	wantKind(t, err, errs.Invalid, "mips")
}

func TestCompressions(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	plain := func(_ testing.TB, b []byte) []byte { return b }
	// eStargz: every file, and the table of contents, a member of its own, and an empty one with the table's offset at the end.
	stargz := func(t testing.TB, b []byte) []byte {
		half := len(b) / 2
		return slices.Concat(registrytest.Gzip(t, b[:half]), registrytest.Gzip(t, b[half:]), registrytest.Gzip(t, nil))
	}
	// zstd:chunked: frames, then the table and a footer in frames to be skipped.
	chunked := func(t testing.TB, b []byte) []byte {
		half := len(b) / 2
		skip := append([]byte{0x50, 0x2a, 0x4d, 0x18, 40, 0, 0, 0}, make([]byte, 40)...)
		return slices.Concat(registrytest.Zstd(t, b[:half]), registrytest.Zstd(t, b[half:]), skip, skip)
	}
	for name, pack := range map[string]func(testing.TB, []byte) []byte{
		"gzip": registrytest.Gzip, "zstd": registrytest.Zstd, "plain": plain, "stargz": stargz, "chunked": chunked,
	} {
		body := strings.Repeat(name, 300_000)
		img := registrytest.NewImage(t, [][]byte{registrytest.Tar(t, registrytest.File("f", body))}, pack, nil)
		reg.Push(t, name, "v", img)
		if got := n.read(t, n.pull(t, reg.Host+"/"+name+":v", nil), "f"); got != body {
			t.Errorf("%s: %d bytes", name, len(got))
		}
	}
}

// Layers that take from those below are right on those only.
func TestLayersThatDependOnOthers(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), func(o *image.Options) { o.Parallel = 1 })
	low := func(text string) []byte {
		d := registrytest.Dir("opt")
		d.Mode = 0o711
		return registrytest.Tar(t, d, registrytest.File("opt/file", text))
	}
	l := registrytest.File("opt/link", "")
	l.Typeflag, l.Linkname = '1', "opt/file"
	top := registrytest.Tar(t, l)
	reg.Push(t, "app", "a", registrytest.NewImage(t, [][]byte{low("a"), top}, nil, nil))
	reg.Push(t, "app", "b", registrytest.NewImage(t, [][]byte{low("b"), top}, nil, nil))
	var wg sync.WaitGroup
	for _, tag := range []string{"a", "b"} {
		wg.Go(func() {
			i, err := n.Pull(t.Context(), reg.Host+"/app:"+tag, nil)
			if err != nil {
				t.Error(err)
				return
			}
			if got := n.read(t, i, "opt/link"); got != tag {
				t.Errorf("%s: the link has %q", tag, got)
			}
			if !strings.HasPrefix(string(i.Layers[1]), "chain-") || !strings.HasPrefix(string(i.Layers[0]), "diff-") {
				t.Errorf("keys %v", i.Layers)
			}
		})
	}
	wg.Wait()
}

// The same image for many, and the same layer for two images, are fetched once.
func TestPullsInFlightAreShared(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	base := registrytest.Tar(t, registrytest.File("base", strings.Repeat("x", 1<<20)))
	for _, name := range []string{"a", "b"} {
		reg.Push(t, name, "v", registrytest.NewImage(t, [][]byte{base, registrytest.Tar(t, registrytest.File(name, ""))}, nil, nil))
	}
	gate := make(chan struct{})
	var once sync.Once
	reg.Hook(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/"+registrytest.Digest(registrytest.Gzip(t, base))) {
			<-gate
		}
		if len(reg.Requests("/manifests/")) >= 2 {
			once.Do(func() { close(gate) })
		}
		return false
	})
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			if _, err := n.Pull(t.Context(), reg.Host+"/"+[]string{"a", "b"}[i%2]+":v", nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := reg.Requests("/blobs/" + registrytest.Digest(registrytest.Gzip(t, base))); len(got) != 1 {
		t.Errorf("the common layer was fetched %d times", len(got))
	}
}

// A cancelled pull frees its connection and leaves nothing; the next one does not wait for it.
func TestCancel(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	reg.Push(t, "app", "v1", simple(t, "x"))
	entered, left := make(chan struct{}, 8), make(chan struct{}, 8)
	reg.Hook(hang(entered, left))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := n.Pull(ctx, reg.Host+"/app:v1", nil)
		done <- err
	}()
	<-entered
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	select {
	case <-left:
	case <-time.After(time.Second):
		t.Fatal("the connection is still open a second later")
	}
	reg.Hook(nil)
	n.pull(t, reg.Host+"/app:v1", nil)
	n.clean(t)
}

// How far a pull is can be seen while it goes on, and a slow one is logged.
func TestProgress(t *testing.T) {
	reg := registrytest.New(t)
	img := simple(t, "x")
	reg.Push(t, "app", "v1", img)
	var log lockedBuffer
	n := openLogging(t, t.TempDir(), slog.New(slog.NewTextHandler(&log, nil)), func(o *image.Options) { o.LogEvery = 10 * time.Millisecond })
	entered, gate := make(chan struct{}, 8), make(chan struct{})
	reg.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, registrytest.Digest(img.Blobs[1])) {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(img.Blobs[1])))
		_, _ = w.Write(img.Blobs[1][:10])
		w.(http.Flusher).Flush()
		entered <- struct{}{}
		<-gate
		_, _ = w.Write(img.Blobs[1][10:])
		return true
	})
	done := make(chan error)
	go func() { _, err := n.Pull(t.Context(), reg.Host+"/app:v1", nil); done <- err }()
	<-entered
	for {
		p := n.Pulls()
		if len(p) == 1 && p[0].Reference == reg.Host+"/app:v1" && len(p[0].Layers) == 2 && p[0].Layers[0].Done && p[0].Layers[1].Fetched == 10 &&
			strings.Contains(log.String(), "done=1 layers=2") {
			break
		}
		if t.Context().Err() != nil {
			t.Fatalf("%+v %s", p, log.String())
		}
		runtime.Gosched()
	}
	close(gate)
	if err := <-done; err != nil || len(n.Pulls()) != 0 {
		t.Errorf("%v, %v", err, n.Pulls())
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// A caller that leaves does not end the pull of one who stays.
func TestOneOfTwoCancels(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	img := simple(t, "x")
	for _, tag := range []string{"a", "b"} {
		reg.Push(t, tag, "v", img)
	}
	entered, gate := make(chan struct{}, 8), make(chan struct{})
	reg.Hook(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") && !strings.Contains(r.URL.Path, img.ID()) {
			entered <- struct{}{}
			<-gate
		}
		return false
	})
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error), make(chan error)
	go func() { _, err := n.Pull(ctx, reg.Host+"/a:v", nil); first <- err }()
	<-entered
	go func() { _, err := n.Pull(t.Context(), reg.Host+"/b:v", nil); second <- err }()
	for len(reg.Requests("GET /v2/b/blobs/"+img.ID())) == 0 {
		runtime.Gosched()
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(gate)
	if err := <-second; err != nil {
		t.Error(err)
	}
	n.clean(t)
}

func TestBrokenImages(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	good := registrytest.Tar(t, registrytest.File("f", strings.Repeat("content ", 1000)))
	manifest := func(change func(*v1.Manifest, *registrytest.Image)) func(string) {
		return func(name string) {
			img := registrytest.NewImage(t, [][]byte{good}, nil, nil)
			var m v1.Manifest
			if err := json.Unmarshal(img.Manifest, &m); err != nil {
				t.Fatal(err)
			}
			reg.Push(t, name, "v", img)
			change(&m, img)
			b, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			reg.PutManifest(name, "v", m.MediaType, b)
		}
	}
	layer := func(entries ...registrytest.Entry) func(string) {
		return func(name string) {
			reg.Push(t, name, "v", registrytest.NewImage(t, [][]byte{registrytest.Tar(t, entries...)}, nil, nil))
		}
	}
	raw := func(mediaType, body string) func(string) {
		return func(name string) { reg.PutManifest(name, "v", mediaType, []byte(body)) }
	}
	for name, tt := range map[string]struct {
		make  func(name string)
		kind  error
		words []string
	}{
		"unknown": {func(string) {}, errs.NotFound, []string{"unknown"}},
		"wrong-digest": {manifest(func(m *v1.Manifest, i *registrytest.Image) {
			reg.PutBlobAs(string(m.Layers[0].Digest), append([]byte{}, make([]byte, m.Layers[0].Size)...))
		}), errs.Invalid, []string{"layer 1 of 1", "digest"}},
		"truncated": {manifest(func(m *v1.Manifest, i *registrytest.Image) {
			b := i.Blobs[0][:len(i.Blobs[0])-20]
			m.Layers[0].Digest, m.Layers[0].Size = registrytest.DigestOf(b), int64(len(b))
			reg.PutBlob(b)
		}), nil, []string{"layer 1 of 1", "unexpected EOF"}},
		"too-long": {manifest(func(m *v1.Manifest, i *registrytest.Image) { m.Layers[0].Size -= 5 }), errs.Invalid, []string{"layer 1 of 1", "larger than"}},
		"no-blob":  {manifest(func(m *v1.Manifest, _ *registrytest.Image) { m.Layers[0].Digest = registrytest.DigestOf([]byte("x")) }), errs.NotFound, []string{"layer 1 of 1", "blob unknown"}},
		"wrong-diff": {func(name string) {
			img := registrytest.NewImage(t, [][]byte{good}, nil, func(c *v1.Image) { c.RootFS.DiffIDs[0] = registrytest.DigestOf([]byte("x")) })
			reg.Push(t, name, "v", img)
		}, errs.Invalid, []string{"layer 1 of 1", "diff ID"}},
		"traversal": {layer(registrytest.File("../../../etc/passwd", "x")), errs.Invalid, []string{"layer 1 of 1", `"../../../etc/passwd"`, "climbs out"}},
		"not-gzip": {manifest(func(m *v1.Manifest, _ *registrytest.Image) {
			b := append([]byte{0x1f, 0x8b}, make([]byte, 500)...)
			m.Layers[0].Digest, m.Layers[0].Size = registrytest.DigestOf(b), int64(len(b))
			reg.PutBlob(b)
		}), errs.Invalid, []string{"layer 1 of 1", "gzip"}},
		"not-json":    {raw(v1.MediaTypeImageManifest, "<html>"), errs.Invalid, []string{"read manifest"}},
		"ambiguous":   {raw(v1.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[{"digest":"sha256:x"}],"layers":[{"digest":"sha256:y"}]}`), errs.Invalid, []string{"ambiguous"}},
		"two-types":   {raw(v1.MediaTypeImageIndex, `{"schemaVersion":2,"mediaType":"`+v1.MediaTypeImageManifest+`","config":{}}`), errs.Invalid, []string{"ambiguous"}},
		"schema1":     {raw("application/vnd.docker.distribution.manifest.v1+json", `{"schemaVersion":1,"fsLayers":[]}`), errs.Unsupported, []string{"schema 1"}},
		"artifact":    {raw(v1.MediaTypeImageManifest, `{"schemaVersion":2,"artifactType":"application/vnd.cncf.helm","config":{"mediaType":"application/vnd.oci.empty.v1+json","size":2},"layers":[]}`), errs.Invalid, []string{"artifact", "helm"}},
		"attestation": {manifest(func(m *v1.Manifest, _ *registrytest.Image) { m.Layers[0].MediaType = "application/vnd.in-toto+json" }), errs.Invalid, []string{"no container image", "in-toto"}},
		"deep-json":   {raw(v1.MediaTypeImageManifest, strings.Repeat("[", 1<<20)), errs.Invalid, []string{"read manifest"}},
		"huge":        {raw(v1.MediaTypeImageManifest, `{"schemaVersion":2,"x":"`+strings.Repeat("x", 9<<20)+`"}`), errs.Invalid, []string{"larger than"}},
		"nested-for":  {raw(v1.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[]}`), errs.NotFound, []string{"none for"}},
	} {
		t.Run(name, func(t *testing.T) {
			tt.make(name)
			_, err := n.Pull(t.Context(), reg.Host+"/"+name+":v", nil)
			if err == nil {
				t.Fatal("pulled")
			}
			if tt.kind == nil {
				tt.kind = err
			}
			wantKind(t, err, tt.kind, append(tt.words, reg.Host+"/"+name+":v")...)
		})
	}
	if len(n.List()) != 0 {
		t.Errorf("listed: %v", n.List())
	}
	n.clean(t)
	if err := n.Collect(t.Context()); err != nil || len(n.snap.Layers()) != 0 {
		t.Errorf("layers left: %v, %v", n.snap.Layers(), err)
	}
}

func TestUnreachable(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	reg.HTTP().Close()
	_, err := n.Pull(t.Context(), reg.Host+"/app:v1", nil)
	wantKind(t, err, errs.Unavailable, "connection refused")
	wantKind(t, err, crierrors.ErrRegistryUnavailable)
}

// A layer that a snapshot or a pull needs is never collected.
func TestCollectBesidePulls(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	base := registrytest.Tar(t, registrytest.File("base", strings.Repeat("x", 100_000)))
	for _, name := range []string{"a", "b", "c", "d"} {
		reg.Push(t, name, "v", registrytest.NewImage(t, [][]byte{base, registrytest.Tar(t, registrytest.File(name, ""))}, nil, nil))
	}
	i := n.pull(t, reg.Host+"/a:v", nil)
	if err := n.snap.Create(t.Context(), "c", i.Layers); err != nil {
		t.Fatal(err)
	}
	if err := n.Remove(t.Context(), i.ID); err != nil {
		t.Fatal(err)
	}
	for _, k := range i.Layers {
		if !n.snap.Has(k) {
			t.Error("a container's layer is gone")
		}
	}
	if err := n.snap.Remove(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := n.Collect(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}
	})
	var pulls sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d"} {
		pulls.Go(func() {
			for range 5 {
				i, err := n.Pull(t.Context(), reg.Host+"/"+name+":v", nil)
				if err != nil {
					t.Error(err)
					return
				}
				if got := n.read(t, i, name); got != "" {
					t.Error(got)
				}
				if err := n.Remove(t.Context(), i.ID); err != nil {
					t.Error(err)
				}
			}
		})
	}
	pulls.Wait()
	close(stop)
	wg.Wait()
	if err := n.Collect(t.Context()); err != nil || len(n.snap.Layers()) != 0 {
		t.Errorf("left %v, %v", n.snap.Layers(), err)
	}
	n.clean(t)
}

func TestTooManyLayers(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	layers := make([][]byte, snapshot.MaxLayers+1)
	for i := range layers {
		layers[i] = registrytest.Tar(t)
	}
	reg.Push(t, "app", "v", registrytest.NewImage(t, layers, nil, nil))
	_, err := n.Pull(t.Context(), reg.Host+"/app:v", nil)
	wantKind(t, err, errs.Invalid, "501 layers")
	few := open(t, t.TempDir(), func(o *image.Options) { o.MaxLayers = 1 })
	reg.Push(t, "app", "two", simple(t, "x"))
	_, err = few.Pull(t.Context(), reg.Host+"/app:two", nil)
	wantKind(t, err, errs.Invalid, "2 layers; at most 1")
}
