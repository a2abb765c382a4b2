// SPDX-License-Identifier: Apache-2.0

package untar_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/snapshot"
	"crishim.dev/snapshot/untar"
)

// generator makes random layers with few names, so that entries meet.
type generator struct {
	*rand.Rand
	names []string
}

func (g *generator) pick(list ...string) string { return list[g.IntN(len(list))] }

func (g *generator) name() string {
	var n strings.Builder
	n.WriteString(g.pick(g.names...))
	for range g.IntN(3) {
		n.WriteString("/" + g.pick(g.names...))
	}
	return n.String()
}

func (g *generator) header() *tar.Header {
	h := &tar.Header{
		Name: g.name(), Mode: int64(g.IntN(0o10000)), Uid: g.IntN(3) * 1000, Gid: g.IntN(3) * 70000,
		ModTime: time.Unix(int64(g.IntN(2e9))-1e8, int64(g.IntN(1e9))), PAXRecords: map[string]string{}, Format: tar.FormatPAX,
	}
	switch g.IntN(12) {
	case 0, 1, 2, 3:
		h.Typeflag = tar.TypeReg
		h.Size = int64(g.IntN(2000))
	case 4, 5, 6:
		h.Typeflag = tar.TypeDir
	case 7:
		h.Typeflag, h.Linkname = tar.TypeSymlink, g.pick("", "/", "../", "./")+g.name()
	case 8:
		h.Typeflag, h.Linkname = tar.TypeLink, g.name()
	case 9:
		h.Typeflag = tar.TypeReg
		dir, base := filepath.Split(h.Name)
		h.Name = dir + ".wh." + base
	case 10:
		h.Typeflag = tar.TypeReg
		h.Name += "/.wh..wh..opq"
	case 11:
		h.Typeflag = tar.TypeFifo
		if g.IntN(2) == 0 {
			h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, 1, int64(1+g.IntN(300))
		}
	}
	if (h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeDir) && g.IntN(4) == 0 {
		h.PAXRecords["SCHILY.xattr.user.test"] = g.pick("a", "b\x00c")
	}
	return h
}

// layer makes an archive of entries that the model can apply, and applies them.
func (g *generator) layer(t *testing.T, m *model) []byte {
	t.Helper()
	m.layer++
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for range 2 + g.IntN(14) {
		h := g.header()
		body := strings.Repeat(g.pick("x", "yz"), int(h.Size))[:h.Size]
		if m.try(h, body) != nil {
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// store unpacks layers on top of each other.
type store struct {
	*snapshot.Store
	n int
}

func newStore(t *testing.T) *store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("unpacking and mounting layers needs root")
	}
	s, err := snapshot.Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return &store{s, 0}
}

func (s *store) add(t *testing.T, below []snapshot.Key, archive []byte) []snapshot.Key {
	t.Helper()
	d, err := s.Prepare(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Discard() }()
	var recipe bytes.Buffer
	o := untar.Options{Recipe: &recipe}
	if len(below) > 0 {
		o.Lower = func(ctx context.Context) (*os.File, error) { return s.View(ctx, below) }
	}
	res, err := untar.Unpack(t.Context(), d.Root(), bytes.NewReader(archive), o)
	if err != nil {
		t.Fatal(err)
	}
	if res.Rebuildable {
		var again bytes.Buffer
		if err := untar.Rebuild(t.Context(), d.Root(), &recipe, &again); err != nil || !bytes.Equal(again.Bytes(), archive) {
			t.Errorf("rebuilt %d bytes of %d: %v", again.Len(), len(archive), err)
		}
	}
	s.n++
	k := snapshot.Key(fmt.Sprintf("diff-%064x", s.n))
	if err := d.Commit(t.Context(), snapshot.Layer{Key: k, RootSet: res.RootSet}); err != nil {
		t.Fatal(err)
	}
	return append(slices.Clone(below), k)
}

// read makes a flat list of a mounted tree.
func read(t *testing.T, root string) map[string]*inode {
	t.Helper()
	out := map[string]*inode{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		n := &inode{mode: int64(st.Mode & 0o7777), uid: int(st.Uid), gid: int(st.Gid), mtime: time.Unix(st.Mtim.Unix()), xattrs: map[string]string{}}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			n.typ = tar.TypeReg
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			n.body = string(b)
		case unix.S_IFDIR:
			n.typ = tar.TypeDir
		case unix.S_IFLNK:
			n.typ = tar.TypeSymlink
			n.link, _ = os.Readlink(path)
		case unix.S_IFIFO:
			n.typ = tar.TypeFifo
		case unix.S_IFCHR:
			n.typ, n.major, n.minor = tar.TypeChar, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
		}
		buf := make([]byte, 100)
		if size, err := unix.Lgetxattr(path, "user.test", buf); err == nil {
			n.xattrs["user.test"] = string(buf[:size])
		}
		out[strings.TrimSuffix(strings.TrimPrefix(path, strings.TrimSuffix(root, "/")), "/")] = n
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// compare says what differs between a tree and what it should be.
func compare(got, want map[string]*inode) string {
	var b strings.Builder
	names := map[string]bool{}
	for n := range got {
		names[n] = true
	}
	for n := range want {
		names[n] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		g, w := got[name], want[name]
		switch {
		case g == nil:
			fmt.Fprintf(&b, "%q is missing: %v\n", name, w)
		case w == nil:
			fmt.Fprintf(&b, "%q should not be there: %v\n", name, g)
		case w.typ == tar.TypeSymlink:
			if g.typ != w.typ || g.link != w.link || g.uid != w.uid || g.gid != w.gid {
				fmt.Fprintf(&b, "%q: %v, want %v\n", name, g, w)
			}
		case g.String() != w.String():
			fmt.Fprintf(&b, "%q: %v, want %v\n", name, g, w)
		case !w.unmodified && name != "" && !g.mtime.Equal(w.mtime):
			fmt.Fprintf(&b, "%q: mtime %v, want %v\n", name, g.mtime, w.mtime)
		}
	}
	return b.String()
}

// Random images, each layer unpacked alone, look through the overlay as if their archives had been applied in order.
func TestRandomImages(t *testing.T) {
	seeds := 150
	if n, err := strconv.Atoi(os.Getenv("CRISHIM_SEEDS")); err == nil { // for a long run by hand
		seeds = n
	}
	s := newStore(t)
	for seed := range uint64(seeds) {
		g := &generator{rand.New(rand.NewPCG(seed, 1)), []string{"a", "b", "c", "d"}}
		m := newModel()
		var keys []snapshot.Key
		var archives [][]byte
		for range 1 + g.IntN(5) {
			archives = append(archives, g.layer(t, m))
			keys = s.add(t, keys, archives[len(archives)-1])
		}
		id := fmt.Sprint("c", seed)
		if err := s.Create(t.Context(), id, keys); err != nil {
			t.Fatal(err)
		}
		f, err := s.Mount(t.Context(), id, snapshot.Mount{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := compare(read(t, fmt.Sprintf("/proc/self/fd/%d/", f.Fd())), m.paths()); diff != "" {
			t.Errorf("seed %d:\n%s%s", seed, diff, list(t, archives))
		}
		_ = f.Close()
		if t.Failed() {
			return
		}
	}
}

// list prints archives for a person.
func list(t *testing.T, archives [][]byte) string {
	t.Helper()
	var b strings.Builder
	for i, a := range archives {
		tr := tar.NewReader(bytes.NewReader(a))
		for {
			h, err := tr.Next()
			if err != nil {
				break
			}
			fmt.Fprintf(&b, "layer %d: %c %s -> %s mode %o %d:%d\n", i+1, h.Typeflag, h.Name, h.Linkname, h.Mode, h.Uid, h.Gid)
		}
	}
	return b.String()
}
