// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"crishim.dev/image"
	"crishim.dev/image/registry/registrytest"
	"crishim.dev/internal/errs"
)

// hostileMemory bounds what one pull of a hostile image may hold in memory, in bytes.
const hostileMemory = 64 << 20

// hostile is an image that wants something it must not get.
type hostile struct {
	push  func(c *corpus, name string)
	kind  error    // of the refusal; nil: pulled, and contained
	words []string // in the refusal
}

// corpus makes hostile images in a registry.
type corpus struct {
	t       *testing.T
	reg     *registrytest.Server
	outside string // a directory that no pull may touch
}

// layer pushes an image of one layer with these entries.
func (c *corpus) layer(name string, entries ...registrytest.Entry) {
	c.layers(name, registrytest.Tar(c.t, entries...))
}

func (c *corpus) layers(name string, archives ...[]byte) {
	c.reg.Push(c.t, name, "v", registrytest.NewImage(c.t, archives, nil, nil))
}

// packed pushes an image of one layer that is sent as it is here.
func (c *corpus) packed(name string, blob, archive []byte) {
	send := func(testing.TB, []byte) []byte { return blob }
	c.reg.Push(c.t, name, "v", registrytest.NewImage(c.t, [][]byte{archive}, send, nil))
}

// manifest pushes an image with a manifest that is changed.
func (c *corpus) manifest(name string, change func(m *v1.Manifest)) {
	img := registrytest.NewImage(c.t, [][]byte{c.good()}, nil, nil)
	c.reg.Push(c.t, name, "v", img)
	var m v1.Manifest
	if err := json.Unmarshal(img.Manifest, &m); err != nil {
		c.t.Fatal(err)
	}
	change(&m)
	b, err := json.Marshal(m)
	if err != nil {
		c.t.Fatal(err)
	}
	c.reg.PutManifest(name, "v", m.MediaType, b)
}

// config pushes an image with these bytes as its configuration.
func (c *corpus) config(name string, config []byte) {
	c.reg.PutBlob(config)
	c.manifest(name, func(m *v1.Manifest) {
		m.Config.Digest, m.Config.Size = registrytest.DigestOf(config), int64(len(config))
	})
}

// diffIDs pushes an image of two layers whose configuration has other diff IDs.
func (c *corpus) diffIDs(name string, change func(c *v1.Image)) {
	archives := [][]byte{c.good(), registrytest.Tar(c.t, registrytest.File("second", "x"))}
	c.reg.Push(c.t, name, "v", registrytest.NewImage(c.t, archives, nil, change))
}

func (c *corpus) good() []byte { return registrytest.Tar(c.t, registrytest.File("good", "content")) }

// bomb is a layer of a gigabyte of zeros, packed by pack.
func (c *corpus) bomb(name string, pack func(io.Writer) io.WriteCloser) {
	var b bytes.Buffer
	z := pack(&b)
	w := tar.NewWriter(z)
	const size = 1 << 30
	err := w.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Mode: 0o644, Size: size})
	block := make([]byte, 1<<20)
	for range size / len(block) {
		_, e := w.Write(block)
		err = errors.Join(err, e)
	}
	if err := errors.Join(err, w.Close(), z.Close()); err != nil {
		c.t.Fatal(err)
	}
	if ratio := size / b.Len(); ratio < 500 {
		c.t.Errorf("only %d times as large unpacked: no bomb", ratio)
	}
	c.packed(name, b.Bytes(), c.good()) // its diff ID does not matter: it never comes so far
}

// sparse is a layer with a file of this size that has no content, as GNU tar writes it.
func (c *corpus) sparse(name, size string) {
	dir := c.t.TempDir()
	script := exec.CommandContext(c.t.Context(), "sh", "-c", "truncate -s "+size+" hole && tar -c -S --format=gnu hole")
	script.Dir = dir
	out, err := script.Output()
	if err != nil {
		c.t.Fatal(err)
	}
	c.layers(name, out)
}

// nested pushes indexes in each other around an image.
func (c *corpus) nested(name string, depth int) {
	img := registrytest.NewImage(c.t, [][]byte{c.good()}, nil, nil)
	d := c.reg.Push(c.t, name, "", img)
	for i := range depth {
		index := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{d}}
		index.SchemaVersion = 2
		b, err := json.Marshal(index)
		if err != nil {
			c.t.Fatal(err)
		}
		tag := ""
		if i == depth-1 {
			tag = "v"
		}
		d = c.reg.PutManifest(name, tag, index.MediaType, b)
	}
}

func link(flag byte, name, target string) registrytest.Entry {
	return registrytest.Entry{Header: tar.Header{Typeflag: flag, Name: name, Linkname: target, Mode: 0o777}}
}

func gz(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }

func zst(w io.Writer) io.WriteCloser {
	z, err := zstd.NewWriter(w)
	if err != nil {
		panic(err)
	}
	return z
}

// escapes want to read or write outside the layer.
func escapes() map[string]hostile {
	victim := func(c *corpus) string { return c.outside + "/victim" }
	return map[string]hostile{
		"traversal":        {func(c *corpus, n string) { c.layer(n, registrytest.File("../../../../outside/victim", "x")) }, errs.Invalid, []string{`"../../../../outside/victim"`, "climbs out"}},
		"traversal-within": {func(c *corpus, n string) { c.layer(n, registrytest.File("a/b/../../../../../../outside/victim", "x")) }, errs.Invalid, []string{"climbs out"}},
		"absolute":         {func(c *corpus, n string) { c.layer(n, registrytest.File(victim(c), "x")) }, nil, nil},
		"write-through-symlink": {func(c *corpus, n string) {
			c.layer(n, link(tar.TypeSymlink, "l", c.outside), registrytest.File("l/victim", "x"), registrytest.File("l/new", "x"))
		}, nil, nil},
		"write-through-relative-symlink": {func(c *corpus, n string) {
			c.layer(n, link(tar.TypeSymlink, "l", strings.Repeat("../", 30)+c.outside), registrytest.File("l/victim", "x"))
		}, nil, nil},
		"write-through-symlink-of-lower-layer": {func(c *corpus, n string) {
			c.layers(n, registrytest.Tar(c.t, link(tar.TypeSymlink, "l", c.outside)), registrytest.Tar(c.t, registrytest.File("l/victim", "x")))
		}, nil, nil},
		"remove-through-symlink": {func(c *corpus, n string) {
			c.layer(n, link(tar.TypeSymlink, "l", c.outside), registrytest.File("l/.wh.victim", ""), registrytest.File("l/.wh..wh..opq", ""))
		}, nil, nil},
		"write-through-proc": {func(c *corpus, n string) {
			c.layer(n, link(tar.TypeSymlink, "l", "/proc/self/root"), registrytest.File("l"+victim(c), "x"))
		}, nil, nil},
		"hard-link-outside":  {func(c *corpus, n string) { c.layer(n, link(tar.TypeLink, "l", "../../../../outside/victim")) }, errs.Invalid, []string{"climbs out"}},
		"hard-link-absolute": {func(c *corpus, n string) { c.layer(n, link(tar.TypeLink, "l", victim(c))) }, errs.Invalid, []string{"no such file"}},
		"hard-link-through-symlink": {func(c *corpus, n string) {
			c.layer(n, link(tar.TypeSymlink, "d", c.outside), link(tar.TypeLink, "l", "d/victim"))
		}, errs.Invalid, []string{"no such file"}},
		"mode-and-owner-by-symlink": {func(c *corpus, n string) { c.layer(n, link(tar.TypeSymlink, "l", victim(c)), registrytest.Dir("l")) }, nil, nil},
		"device-of-the-host": {func(c *corpus, n string) {
			c.layer(n, registrytest.Entry{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "disk", Mode: 0o666, Devmajor: 8}})
		}, nil, nil},
		"device-written-to": {func(c *corpus, n string) {
			c.layer(n, registrytest.Entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "mem", Mode: 0o666, Devmajor: 1, Devminor: 1}}, registrytest.File("mem", "x"))
		}, nil, nil},
		"device-number-out-of-range": {func(c *corpus, n string) {
			c.layer(n, registrytest.Entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "d", Devmajor: 1 << 20}})
		}, errs.Invalid, []string{"device number"}},
	}
}

// bombs are small and want to be large.
func bombs() map[string]hostile {
	return map[string]hostile{
		"ratio-gzip":             {func(c *corpus, n string) { c.bomb(n, gz) }, errs.Exhausted, []string{"layer 1 of 1"}},
		"ratio-zstd":             {func(c *corpus, n string) { c.bomb(n, zst) }, errs.Exhausted, []string{"layer 1 of 1"}},
		"ratio-sparse":           {func(c *corpus, n string) { c.sparse(n, "300G") }, errs.Exhausted, []string{"larger than"}},
		"ratio-sparse-that-fits": {func(c *corpus, n string) { c.sparse(n, "1G") }, nil, nil},
		"count-of-files":         {func(c *corpus, n string) { c.layer(n, many(40_000, registrytest.File)...) }, errs.Exhausted, []string{"layer 1 of 1"}},
		"count-of-directories": {func(c *corpus, n string) {
			c.layer(n, many(40_000, func(name, _ string) registrytest.Entry { return registrytest.Dir(name) })...)
		}, errs.Exhausted, []string{"layer 1 of 1"}},
		"count-of-names-of-one-file": {func(c *corpus, n string) {
			c.layer(n, append([]registrytest.Entry{registrytest.File("f", "")}, many(40_000, func(name, _ string) registrytest.Entry { return link(tar.TypeLink, name, "f") })...)...)
		}, errs.Exhausted, []string{"layer 1 of 1"}},
		"count-of-replacements": {func(c *corpus, n string) {
			c.layer(n, slices.Repeat([]registrytest.Entry{registrytest.File("same", "x")}, 40_000)...)
		}, nil, nil},
		"count-of-layers": {func(c *corpus, n string) { c.layers(n, slices.Repeat([][]byte{c.good()}, 501)...) }, errs.Invalid, []string{"501 layers"}},
		"zstd-window": {func(c *corpus, n string) { // a frame that asks for 3.75 TiB
			c.packed(n, append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff}, make([]byte, 100)...), c.good())
		}, errs.Invalid, []string{"window size"}},
	}
}

func many(n int, entry func(name, body string) registrytest.Entry) []registrytest.Entry {
	out := make([]registrytest.Entry, 0, n)
	for i := range n {
		out = append(out, entry(fmt.Sprint("n", i), ""))
	}
	return out
}

// lies say something else than what comes.
func lies() map[string]hostile {
	first := func(change func(d *v1.Descriptor)) func(*corpus, string) {
		return func(c *corpus, n string) { c.manifest(n, func(m *v1.Manifest) { change(&m.Layers[0]) }) }
	}
	config := func(change func(d *v1.Descriptor)) func(*corpus, string) {
		return func(c *corpus, n string) { c.manifest(n, func(m *v1.Manifest) { change(&m.Config) }) }
	}
	after := func(pack func(testing.TB, []byte) []byte, more string) func(*corpus, string) {
		return func(c *corpus, n string) { c.packed(n, append(pack(c.t, c.good()), more...), c.good()) }
	}
	return map[string]hostile{
		"size-too-small":       {first(func(d *v1.Descriptor) { d.Size -= 5 }), errs.Invalid, []string{"larger than"}},
		"size-too-large":       {first(func(d *v1.Descriptor) { d.Size += 5 }), errs.Unavailable, []string{"ended after 97 of 102 bytes"}},
		"size-negative":        {first(func(d *v1.Descriptor) { d.Size = -1 }), errs.Invalid, []string{"no valid digest and size"}},
		"size-of-config-small": {config(func(d *v1.Descriptor) { d.Size -= 5 }), errs.Invalid, []string{"larger than"}},
		"size-of-config-huge":  {config(func(d *v1.Descriptor) { d.Size = 1 << 40 }), errs.Invalid, []string{"a configuration of"}},
		"size-in-archive":      {func(c *corpus, n string) { c.layers(n, lyingEntry(c.t, 1<<30)) }, io.ErrUnexpectedEOF, []string{"layer 1 of 1", `"f"`}},
		"size-in-archive-huge": {func(c *corpus, n string) { c.layers(n, lyingEntry(c.t, 1<<45)) }, errs.Exhausted, []string{"larger than"}},
		"truncated-archive":    {func(c *corpus, n string) { c.layers(n, c.good()[:515]) }, io.ErrUnexpectedEOF, []string{"layer 1 of 1", `"good"`}},
		"digest":               {first(func(d *v1.Descriptor) { d.Digest = registrytest.DigestOf([]byte("x")) }), errs.NotFound, []string{"layer 1 of 1"}},
		"trailing-after-tar":   {func(c *corpus, n string) { c.layers(n, append(c.good(), "trailing"...)) }, nil, nil},
		"trailing-after-gzip":  {after(registrytest.Gzip, strings.Repeat("trailing", 10)), errs.Invalid, []string{"layer 1 of 1", "decompress"}},
		"trailing-after-zstd":  {after(registrytest.Zstd, "trailing"), errs.Invalid, []string{"layer 1 of 1", "decompress"}},
		"second-gzip-stream":   {func(c *corpus, n string) { after(registrytest.Gzip, string(registrytest.Gzip(c.t, c.good())))(c, n) }, errs.Invalid, []string{"diff ID"}},
		"trailing-in-manifest": {func(c *corpus, n string) {
			c.reg.PutManifest(n, "v", v1.MediaTypeImageManifest, []byte(`{"schemaVersion":2} {}`))
		}, errs.Invalid, []string{"read manifest"}},
		"trailing-in-config": {func(c *corpus, n string) { c.config(n, []byte(`{"rootfs":{"type":"layers"}} {}`)) }, errs.Invalid, []string{"read image configuration"}},
		"diff-ids-swapped":   {func(c *corpus, n string) { c.diffIDs(n, func(i *v1.Image) { slices.Reverse(i.RootFS.DiffIDs) }) }, errs.Invalid, []string{"diff ID"}},
		"diff-ids-too-few":   {func(c *corpus, n string) { c.diffIDs(n, func(i *v1.Image) { i.RootFS.DiffIDs = i.RootFS.DiffIDs[:1] }) }, errs.Invalid, []string{"2 layers"}},
		"diff-id-wrong": {func(c *corpus, n string) {
			c.diffIDs(n, func(i *v1.Image) { i.RootFS.DiffIDs[1] = registrytest.DigestOf([]byte("x")) })
		}, errs.Invalid, []string{"diff ID"}},
		"diff-id-malformed": {func(c *corpus, n string) { c.diffIDs(n, func(i *v1.Image) { i.RootFS.DiffIDs[1] = "sha256:../../x" }) }, errs.Invalid, []string{"malformed diff ID"}},
		"diff-id-of-other-hash": {func(c *corpus, n string) {
			c.diffIDs(n, func(i *v1.Image) { i.RootFS.DiffIDs[1] = "md5:d41d8cd98f00b204e9800998ecf8427e" })
		}, errs.Invalid, []string{"malformed diff ID"}},
	}
}

// lyingEntry is an archive that ends long before its only entry does.
func lyingEntry(t *testing.T, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: size, Format: tar.FormatGNU}); err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), make([]byte, 10_000)...)
}

// documents are JSON, and names, that are large or deep.
func documents() map[string]hostile {
	manifest := func(body string) func(*corpus, string) {
		return func(c *corpus, n string) { c.reg.PutManifest(n, "v", v1.MediaTypeImageManifest, []byte(body)) }
	}
	return map[string]hostile{
		"manifest-huge":    {manifest(`{"schemaVersion":2,"x":"` + strings.Repeat("x", 9<<20) + `"}`), errs.Invalid, []string{"larger than"}},
		"manifest-deep":    {manifest(strings.Repeat(`{"config":`, 200_000)), errs.Invalid, []string{"read manifest"}},
		"manifest-of-many": {manifest(`{"schemaVersion":2,"manifests":[{}` + strings.Repeat(",{}", 5000) + "]}"), errs.Invalid, []string{"5001 manifests"}},
		"config-huge":      {func(c *corpus, n string) { c.config(n, []byte(`{"x":"`+strings.Repeat("x", 9<<20)+`"}`)) }, errs.Invalid, []string{"a configuration of"}},
		"config-deep":      {func(c *corpus, n string) { c.config(n, bytes.Repeat([]byte("["), 1<<20)) }, errs.Invalid, []string{"read image configuration"}},
		"config-of-many": {func(c *corpus, n string) {
			c.config(n, []byte(`{"config":{"Env":[""`+strings.Repeat(`,""`, 1<<20)+"]}}"))
		}, errs.Invalid, nil},
		"indexes-nested":      {func(c *corpus, n string) { c.nested(n, 4) }, nil, nil},
		"indexes-nested-deep": {func(c *corpus, n string) { c.nested(n, 40) }, errs.Invalid, []string{"nested more than"}},
		"directories-deep":    {func(c *corpus, n string) { c.layer(n, registrytest.File(strings.Repeat("d/", 1500)+"f", "")) }, errs.Invalid, []string{"directories deep"}},
		"directories-one-by-one": {func(c *corpus, n string) {
			var e []registrytest.Entry
			for i := range 1500 {
				e = append(e, registrytest.Dir(strings.Repeat("d/", i+1)))
			}
			c.layer(n, e...)
		}, nil, nil},
		"name-too-long":      {func(c *corpus, n string) { c.layer(n, registrytest.File(strings.Repeat("d/", 5000)+"f", "")) }, unix.ENAMETOOLONG, []string{"too long"}},
		"component-too-long": {func(c *corpus, n string) { c.layer(n, registrytest.File(strings.Repeat("d", 5000), "")) }, unix.ENAMETOOLONG, []string{"too long"}},
		"pax-record-huge":    {func(c *corpus, n string) { c.layers(n, hugeRecord(c.t)) }, errs.Invalid, []string{"too long"}},
		"symlink-loop": {func(c *corpus, n string) {
			c.layer(n, link(tar.TypeSymlink, "a", "b"), link(tar.TypeSymlink, "b", "a"), registrytest.File("a/x", "x"))
		}, unix.ELOOP, []string{"too many levels"}},
	}
}

// hugeRecord is an archive with an extended header of megabytes, which tools refuse to write.
func hugeRecord(t *testing.T) []byte {
	t.Helper()
	b := registrytest.Tar(t, registrytest.File("f", strings.Repeat("x", 3<<20)))
	const typeflag, sum = 156, 148
	b[typeflag] = tar.TypeXHeader
	copy(b[sum:], "        ")
	var n int
	for _, c := range b[:512] {
		n += int(c)
	}
	copy(b[sum:], fmt.Sprintf("%06o\x00 ", n))
	return b
}

// Each hostile image is refused by name, or what it does stays in its layer's directory; and the daemon's memory stays small.
func TestHostileCorpus(t *testing.T) {
	dir := small(t, "64m,nr_inodes=30000")
	n := open(t, dir, func(o *image.Options) { o.MinFree = 4 << 20 })
	c := &corpus{t, registrytest.New(t), filepath.Join(dir, "outside")}
	if err := errors.Join(os.Mkdir(c.outside, 0o700), os.WriteFile(c.outside+"/victim", []byte("safe"), 0o600)); err != nil {
		t.Fatal(err)
	}
	before := fingerprint(t, c.outside)
	for class, images := range map[string]map[string]hostile{"escape": escapes(), "bomb": bombs(), "lie": lies(), "document": documents()} {
		for name, h := range images {
			t.Run(class+"/"+name, func(t *testing.T) {
				c.t = t
				h.push(c, name)
				free := available(t, dir)
				peak := watchHeap()
				i, err := n.Pull(t.Context(), c.reg.Host+"/"+name+":v", nil)
				if most := peak(); most > hostileMemory {
					t.Errorf("it took %d MiB of memory", most>>20)
				}
				if h.kind == nil && err != nil {
					t.Errorf("refused: %v", err)
				}
				if h.kind != nil {
					wantKind(t, err, h.kind, append(h.words, name)...)
				}
				if got := fingerprint(t, c.outside); got != before {
					t.Errorf("touched outside:\n%s\nwas\n%s", got, before)
				}
				if err == nil {
					err = n.Remove(t.Context(), i.ID)
					if err != nil {
						t.Error(err)
					}
				}
				n.clean(t)
				if err := n.Collect(t.Context()); err != nil || len(n.snap.Layers()) != 0 {
					t.Errorf("layers left: %v, %v", n.snap.Layers(), err)
				}
				n.clean(t)
				if after := available(t, dir); after+(1<<20) < free {
					t.Errorf("%d bytes were free, now %d", free, after)
				}
			})
		}
	}
	// What is contained is for root alone until it is mounted for a container: a device node can't be opened by its path.
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "snapshots"), &st); err != nil || st.Mode&0o077 != 0 {
		t.Errorf("layers are open to others: mode %o, %v", st.Mode, err)
	}
}

// watchHeap measures until the function it returns is called, which gives how far the heap rose, in bytes.
func watchHeap() func() uint64 {
	percent := debug.SetGCPercent(10) // garbage hardly counts
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before, most := m.HeapAlloc, m.HeapAlloc
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapAlloc)
			select {
			case <-quit:
				return
			case <-tick.C:
			}
		}
	}()
	return func() uint64 {
		close(quit)
		<-done
		debug.SetGCPercent(percent)
		return most - before
	}
}
