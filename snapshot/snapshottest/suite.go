// SPDX-License-Identifier: Apache-2.0

// Package snapshottest is the conformance suite of snapshot.Snapshotter: what every implementation must do, on a real kernel.
package snapshottest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/snapshot"
)

// Run runs the suite. open gives an empty Snapshotter; it is called once per test. The suite needs root.
func Run(t *testing.T, open func(t *testing.T) snapshot.Snapshotter) {
	if os.Geteuid() != 0 {
		t.Skip("mounting overlays needs root")
	}
	tests := []struct {
		name string
		run  func(t *testing.T, s snapshot.Snapshotter)
	}{
		{"layers appear by Commit alone", commit},
		{"a layer in use stays", removeLayer},
		{"a mount shows the merged layers", merged},
		{"whiteouts and opaque directories hide what is below", whiteouts},
		{"writes go to the writable layer", writes},
		{"a snapshot can be mounted again", again},
		{"a read-only mount takes no writes", readOnly},
		{"the root directory is the image's", root},
		{"many layers", many},
		{"a layer may be repeated", repeated},
		{"no layers at all", none},
		{"errors have their kinds", kinds},
		{"Remove takes everything", remove},
		{"nothing enters the mount table", detached},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, open(t)) })
	}
}

// Key makes the key of a made-up layer.
func Key(n int) snapshot.Key { return snapshot.Key(fmt.Sprintf("diff-%064x", n)) }

// Layer commits a layer that fill has filled.
func Layer(t *testing.T, s snapshot.Snapshotter, n int, l snapshot.Layer, fill func(root string)) snapshot.Key {
	t.Helper()
	d, err := s.Prepare(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fill(d.Root().Name())
	l.Key = Key(n)
	if err := d.Commit(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	return l.Key
}

func files(t *testing.T, names ...string) func(root string) {
	return func(root string) {
		t.Helper()
		for _, n := range names {
			path := filepath.Join(root, n)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(n), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Path is a path below a detached mount.
func Path(f *os.File, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), name) }

func mount(t *testing.T, s snapshot.Snapshotter, id string, m snapshot.Mount) *os.File {
	t.Helper()
	f, err := s.Mount(t.Context(), id, m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func create(t *testing.T, s snapshot.Snapshotter, id string, layers ...snapshot.Key) {
	t.Helper()
	if err := s.Create(t.Context(), id, layers); err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("got %v, want an error of the kind %v", err, kind)
	}
}

func wantFile(t *testing.T, f *os.File, name, content string) {
	t.Helper()
	b, err := os.ReadFile(Path(f, name))
	if err != nil || string(b) != content {
		t.Errorf("%s: %q, %v; want %q", name, b, err, content)
	}
}

func wantNone(t *testing.T, f *os.File, name string) {
	t.Helper()
	if _, err := os.Lstat(Path(f, name)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v, want it gone", name, err)
	}
}

func commit(t *testing.T, s snapshot.Snapshotter) {
	d, err := s.Prepare(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	files(t, "a")(d.Root().Name())
	if n := len(s.Layers()); n != 0 {
		t.Errorf("%d layers before Commit", n)
	}
	if err := d.Commit(t.Context(), snapshot.Layer{Key: Key(1), Bytes: 7, Inodes: 2}); err != nil {
		t.Fatal(err)
	}
	l, ok := s.Layer(Key(1))
	if !ok || l.Bytes != 7 || l.Inodes != 2 || l.Created.IsZero() {
		t.Errorf("got %+v, %v", l, ok)
	}
	// The same layer from elsewhere: no error, and the first one stays.
	Layer(t, s, 1, snapshot.Layer{Bytes: 9}, files(t, "b"))
	if l, _ := s.Layer(Key(1)); l.Bytes != 7 {
		t.Errorf("the second commit replaced the first: %+v", l)
	}
	d, err = s.Prepare(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Discard(), d.Discard()); err != nil {
		t.Error(err)
	}
	if n := len(s.Layers()); n != 1 {
		t.Errorf("%d layers, want 1", n)
	}
}

func removeLayer(t *testing.T, s snapshot.Snapshotter) {
	ctx := t.Context()
	a := Layer(t, s, 1, snapshot.Layer{}, files(t, "a"))
	create(t, s, "c", a)
	wantKind(t, s.RemoveLayer(ctx, a), errs.Precondition)
	if err := s.Remove(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	release := s.Hold(a, Key(2))
	wantKind(t, s.RemoveLayer(ctx, a), errs.Precondition)
	release()
	release()
	if err := errors.Join(s.RemoveLayer(ctx, a), s.RemoveLayer(ctx, a)); err != nil {
		t.Error(err)
	}
	if len(s.Layers()) != 0 {
		t.Error("the layer is still there")
	}
	wantKind(t, s.Create(ctx, "d", []snapshot.Key{a}), errs.NotFound)
	Layer(t, s, 1, snapshot.Layer{}, files(t, "a"))
}

func merged(t *testing.T, s snapshot.Snapshotter) {
	a := Layer(t, s, 1, snapshot.Layer{}, files(t, "x/low", "x/same", "only"))
	b := Layer(t, s, 2, snapshot.Layer{}, func(root string) {
		files(t, "x/high")(root)
		if err := os.WriteFile(root+"/x/same", []byte("upper"), 0o644); err != nil {
			t.Fatal(err)
		}
	})
	create(t, s, "c", a, b)
	view, err := s.View(t.Context(), []snapshot.Key{a, b})
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	for _, f := range []*os.File{mount(t, s, "c", snapshot.Mount{}), view} {
		wantFile(t, f, "x/low", "x/low")
		wantFile(t, f, "x/high", "x/high")
		wantFile(t, f, "x/same", "upper")
		wantFile(t, f, "only", "only")
	}
}

func whiteouts(t *testing.T, s snapshot.Snapshotter) {
	a := Layer(t, s, 1, snapshot.Layer{}, files(t, "gone", "stays", "dir/hidden", "dir2/hidden"))
	b := Layer(t, s, 2, snapshot.Layer{}, func(root string) {
		files(t, "dir/new")(root)
		if err := errors.Join(
			unix.Mknod(root+"/gone", unix.S_IFCHR, 0),
			unix.Mknod(root+"/dir2", unix.S_IFCHR, 0),
			unix.Setxattr(root+"/dir", "trusted.overlay.opaque", []byte("y"), 0),
		); err != nil {
			t.Fatal(err)
		}
	})
	create(t, s, "c", a, b)
	f := mount(t, s, "c", snapshot.Mount{})
	for _, n := range []string{"gone", "dir/hidden", "dir2"} {
		wantNone(t, f, n)
	}
	wantFile(t, f, "stays", "stays")
	wantFile(t, f, "dir/new", "dir/new")
}

func writes(t *testing.T, s snapshot.Snapshotter) {
	a := Layer(t, s, 1, snapshot.Layer{}, files(t, "a", "b"))
	create(t, s, "c", a)
	create(t, s, "other", a)
	f := mount(t, s, "c", snapshot.Mount{})
	if err := errors.Join(os.WriteFile(Path(f, "a"), []byte("changed"), 0o644), os.Remove(Path(f, "b")),
		os.WriteFile(Path(f, "new"), make([]byte, 1<<20), 0o644)); err != nil {
		t.Fatal(err)
	}
	wantFile(t, f, "a", "changed")
	wantNone(t, f, "b")
	o := mount(t, s, "other", snapshot.Mount{})
	wantFile(t, o, "a", "a")
	wantFile(t, o, "b", "b")
	wantNone(t, o, "new")
	// A large layer may take more than the first question.
	for {
		u, err := s.Usage("c")
		if err != nil && !errors.Is(err, errs.Unavailable) {
			t.Fatal(err)
		}
		if u.Bytes >= 1<<20 && u.Inodes >= 4 {
			return
		}
		if t.Context().Err() != nil {
			t.Fatalf("usage stays at %+v", u)
		}
	}
}

func again(t *testing.T, s snapshot.Snapshotter) {
	a := Layer(t, s, 1, snapshot.Layer{}, files(t, "a"))
	create(t, s, "c", a)
	for i := range 3 {
		f := mount(t, s, "c", snapshot.Mount{})
		for j := range i {
			wantFile(t, f, fmt.Sprint("run", j), "x")
		}
		if err := errors.Join(os.WriteFile(Path(f, fmt.Sprint("run", i)), []byte("x"), 0o644), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func readOnly(t *testing.T, s snapshot.Snapshotter) {
	a := Layer(t, s, 1, snapshot.Layer{}, files(t, "a"))
	create(t, s, "c", a)
	f, g := mount(t, s, "c", snapshot.Mount{ReadOnly: true}), mount(t, s, "c", snapshot.Mount{ReadOnly: true})
	wantFile(t, f, "a", "a")
	wantFile(t, g, "a", "a")
	if err := os.WriteFile(Path(f, "new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v, want EROFS", err)
	}
}

func root(t *testing.T, s snapshot.Snapshotter) {
	a := Layer(t, s, 1, snapshot.Layer{RootSet: true}, func(root string) {
		if err := errors.Join(unix.Chmod(root, 0o1777), os.Chown(root, 5, 6), unix.Setxattr(root, "user.note", []byte("hi"), 0)); err != nil {
			t.Fatal(err)
		}
	})
	b := Layer(t, s, 2, snapshot.Layer{}, files(t, "b"))
	create(t, s, "plain", b)
	create(t, s, "set", a, b)
	for id, want := range map[string]unix.Stat_t{"plain": {Mode: 0o755}, "set": {Mode: 0o1777, Uid: 5, Gid: 6}} {
		var st unix.Stat_t
		f := mount(t, s, id, snapshot.Mount{})
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode&0o7777 != want.Mode || st.Uid != want.Uid || st.Gid != want.Gid {
			t.Errorf("%s: root is %o %d:%d, want %o %d:%d", id, st.Mode&0o7777, st.Uid, st.Gid, want.Mode, want.Uid, want.Gid)
		}
		buf := make([]byte, 8)
		if n, err := unix.Getxattr(Path(f, "."), "user.note", buf); id == "set" && string(buf[:max(n, 0)]) != "hi" {
			t.Errorf("attribute of the root: %q, %v", buf[:max(n, 0)], err)
		}
	}
}

func many(t *testing.T, s snapshot.Snapshotter) {
	keys := make([]snapshot.Key, 0, snapshot.MaxLayers)
	for i := range 130 {
		keys = append(keys, Layer(t, s, i, snapshot.Layer{}, files(t, fmt.Sprint("f", i))))
	}
	create(t, s, "c", keys...)
	f := mount(t, s, "c", snapshot.Mount{})
	entries, err := os.ReadDir(Path(f, "."))
	if err != nil || len(entries) != len(keys) {
		t.Errorf("%d entries, %v; want %d", len(entries), err, len(keys))
	}
	wantKind(t, s.Create(t.Context(), "d", make([]snapshot.Key, snapshot.MaxLayers+1)), errs.Invalid)
}

func repeated(t *testing.T, s snapshot.Snapshotter) {
	a := Layer(t, s, 1, snapshot.Layer{}, files(t, "x/a", "both"))
	b := Layer(t, s, 2, snapshot.Layer{}, func(root string) {
		files(t, "x/b")(root)
		if err := errors.Join(os.WriteFile(root+"/both", []byte("b"), 0o644), unix.Mknod(root+"/x/a", unix.S_IFCHR, 0)); err != nil {
			t.Fatal(err)
		}
	})
	create(t, s, "c", a, a, b, a)
	f := mount(t, s, "c", snapshot.Mount{})
	wantFile(t, f, "x/a", "x/a")
	wantFile(t, f, "x/b", "x/b")
	wantFile(t, f, "both", "both")
	create(t, s, "d", a, b, b)
	f = mount(t, s, "d", snapshot.Mount{})
	wantNone(t, f, "x/a")
	wantFile(t, f, "both", "b")
	create(t, s, "e", a, a)
	wantFile(t, mount(t, s, "e", snapshot.Mount{ReadOnly: true}), "both", "both")
}

func none(t *testing.T, s snapshot.Snapshotter) {
	create(t, s, "c")
	f := mount(t, s, "c", snapshot.Mount{})
	if err := os.WriteFile(Path(f, "new"), nil, 0o644); err != nil {
		t.Error(err)
	}
	g := mount(t, s, "c", snapshot.Mount{ReadOnly: true})
	wantNone(t, g, "new")
}

func kinds(t *testing.T, s snapshot.Snapshotter) {
	ctx := t.Context()
	create(t, s, "c")
	wantKind(t, s.Create(ctx, "c", nil), errs.AlreadyExists)
	wantKind(t, s.Create(ctx, "x", []snapshot.Key{Key(9)}), errs.NotFound)
	for _, id := range []string{"", "..", "a/b", ".hidden", strings.Repeat("x", 200)} {
		wantKind(t, s.Create(ctx, id, nil), errs.Invalid)
		wantKind(t, s.Remove(ctx, id), errs.Invalid)
	}
	wantKind(t, s.RemoveLayer(ctx, "../x"), errs.Invalid)
	_, err := s.Mount(ctx, "unknown", snapshot.Mount{})
	wantKind(t, err, errs.NotFound)
	_, err = s.Usage("unknown")
	wantKind(t, err, errs.NotFound)
	_, err = s.View(ctx, []snapshot.Key{Key(9)})
	wantKind(t, err, errs.NotFound)
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Prepare(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("Prepare with an ended context: %v", err)
	}
	d, err := s.Prepare(ctx)
	if err != nil {
		t.Fatal(err)
	}
	wantKind(t, d.Commit(ctx, snapshot.Layer{Key: "../../x"}), errs.Invalid)
	if err := d.Discard(); err != nil {
		t.Error(err)
	}
}

func remove(t *testing.T, s snapshot.Snapshotter) {
	ctx := t.Context()
	create(t, s, "c")
	create(t, s, "d")
	f := mount(t, s, "c", snapshot.Mount{})
	if err := errors.Join(os.MkdirAll(Path(f, "x/y"), 0o755), os.WriteFile(Path(f, "x/y/z"), nil, 0o644), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Remove(ctx, "c"), s.Remove(ctx, "c"), s.Remove(ctx, "never")); err != nil {
		t.Error(err)
	}
	if ids, err := s.Snapshots(); err != nil || !slices.Equal(ids, []string{"d"}) {
		t.Errorf("snapshots left: %v, %v", ids, err)
	}
	create(t, s, "c")
	wantNone(t, mount(t, s, "c", snapshot.Mount{}), "x")
}

func detached(t *testing.T, s snapshot.Snapshotter) {
	table := func() string {
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	before := table()
	create(t, s, "c")
	f := mount(t, s, "c", snapshot.Mount{})
	if table() != before {
		t.Error("a mount changed the mount table")
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}
