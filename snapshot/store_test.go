// SPDX-License-Identifier: Apache-2.0

package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/snapshot"
	"crishim.dev/snapshot/snapshottest"
)

func open(t *testing.T, dir string) *snapshot.Store {
	t.Helper()
	s, err := snapshot.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting overlays needs root")
	}
}

func TestConformance(t *testing.T) {
	snapshottest.Run(t, func(t *testing.T) snapshot.Snapshotter { return open(t, t.TempDir()) })
}

// A kernel without lowerdir+ (before 6.7) must give the same.
func TestConformanceOfTheWorker(t *testing.T) {
	snapshottest.Run(t, func(t *testing.T) snapshot.Snapshotter {
		s := open(t, t.TempDir())
		s.ForceWorker()
		return s
	})
}

// Directory names that mean something to overlayfs, or are too long for fsconfig(2), must do.
func TestConformanceInAwkwardDirectory(t *testing.T) {
	snapshottest.Run(t, func(t *testing.T) snapshot.Snapshotter {
		return open(t, filepath.Join(t.TempDir(), `a:b,c\d`, strings.Repeat("long", 60)))
	})
}

func TestReopenKeepsWhatIsCompleteOnly(t *testing.T) {
	needRoot(t)
	dir, ctx := t.TempDir(), t.Context()
	s := open(t, dir)
	a := snapshottest.Layer(t, s, 1, snapshot.Layer{DiffID: "sha256:x"}, func(string) {})
	if err := s.Create(ctx, "c", []snapshot.Key{a}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := snapshot.Open(dir, slog.New(slog.DiscardHandler)); !errors.Is(err, errs.Unavailable) {
		t.Errorf("a second store on the directory: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// What a crash may leave: a snapshot without its record, a layer without one, something in the trash.
	for _, p := range []string{"snapshots/half/upper", "layers/diff-junk/fs", "trash/x/y"} {
		if err := os.MkdirAll(filepath.Join(dir, p), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir)
	if ids, _ := s.Snapshots(); len(ids) != 1 || ids[0] != "c" {
		t.Errorf("snapshots %v", ids)
	}
	if l := s.Layers(); len(l) != 1 || l[0].Key != a || l[0].DiffID != "sha256:x" {
		t.Errorf("layers %v", l)
	}
	if err := s.RemoveLayer(ctx, a); !errors.Is(err, errs.Precondition) {
		t.Errorf("the reference is forgotten: %v", err)
	}
	if err := s.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"drafts", "trash"} {
		if left, _ := os.ReadDir(filepath.Join(dir, d)); len(left) != 0 {
			t.Errorf("left in %s: %v", d, left)
		}
	}
	for d, want := range map[string]int{"snapshots": 1, "layers": 1} {
		if left, _ := os.ReadDir(filepath.Join(dir, d)); len(left) != want {
			t.Errorf("left in %s: %v", d, left)
		}
	}
}

// What a container can leave behind must not stop the removal: nesting beyond the open-file limit, modes of 000, attributes of chattr.
func TestRemoveOfHostileTree(t *testing.T) {
	needRoot(t)
	dir, ctx := t.TempDir(), t.Context()
	s := open(t, dir)
	if err := s.Create(ctx, "c", nil); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(s.UpperDir("c"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 3000 {
		if err := unix.Mkdirat(fd, "deep", 0); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "deep", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		_ = unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		fd = next
	}
	_ = unix.Close(fd)
	locked := filepath.Join(s.UpperDir("c"), "locked")
	if err := errors.Join(os.Mkdir(locked, 0), os.WriteFile(locked+"/file", nil, 0)); err != nil {
		t.Fatal(err)
	}
	immutable(t, locked+"/file")
	immutable(t, locked)
	if err := s.Remove(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if err := s.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	for range 100 { // each round may raise directories that lay too deep
		if left, _ := os.ReadDir(dir + "/trash"); len(left) == 0 {
			return
		}
		if err := s.Drain(ctx); err != nil {
			t.Fatal(err)
		}
	}
	left, _ := os.ReadDir(dir + "/trash")
	t.Errorf("left: %v", left)
}

func immutable(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0x10); err != nil {
		t.Logf("no immutable flag here: %v", err)
	}
}

// After a reboot, layers that were not yet on disk are dropped; the others, and in the same boot all, are kept.
func TestLayersOfAnotherBoot(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	s := open(t, dir)
	var keys []snapshot.Key
	for i := range 3 {
		keys = append(keys, snapshottest.Layer(t, s, i, snapshot.Layer{}, func(string) {}))
	}
	if err := errors.Join(s.Sync(ctx), s.Close()); err != nil {
		t.Fatal(err)
	}
	layer := func(i int, name string) string { return filepath.Join(dir, "layers", string(keys[i]), name) }
	for i := range 2 { // the mark was not written
		if err := os.Remove(layer(i, "durable")); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(layer(0, "layer.json"))
	if err != nil {
		t.Fatal(err)
	}
	l, _ := s.Layer(keys[0])
	if err := os.WriteFile(layer(0, "layer.json"), []byte(strings.ReplaceAll(string(b), l.Boot, "another-boot")), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if s.Has(keys[0]) || !s.Has(keys[1]) || !s.Has(keys[2]) {
		t.Errorf("layers %v", s.Layers())
	}
	if err := s.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(layer(1, "durable")); err != nil {
		t.Error(err)
	}
}

func TestCommitsShareOneSync(t *testing.T) {
	s := open(t, t.TempDir())
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			d, err := s.Prepare(t.Context())
			if err == nil {
				err = os.WriteFile(filepath.Join(d.Root().Name(), "f"), []byte("x"), 0o644)
			}
			if err == nil {
				err = d.Commit(t.Context(), snapshot.Layer{Key: snapshottest.Key(i)})
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(s.Layers()); n != 20 {
		t.Errorf("%d layers", n)
	}
}

// Removing layers and making snapshots of them at once: a snapshot that was made has its layer.
func TestRemoveLayerAgainstCreate(t *testing.T) {
	needRoot(t)
	s, ctx := open(t, t.TempDir()), t.Context()
	for i := range 50 {
		k := snapshottest.Layer(t, s, i, snapshot.Layer{}, func(string) {})
		id := fmt.Sprint("c", i)
		var made, gone error
		var wg sync.WaitGroup
		wg.Go(func() { made = s.Create(ctx, id, []snapshot.Key{k}) })
		wg.Go(func() { gone = s.RemoveLayer(ctx, k) })
		wg.Wait()
		_, err := os.Stat(s.FSDir(k))
		if made == nil && (gone == nil || err != nil) || made != nil && (!errors.Is(made, errs.NotFound) || gone != nil) {
			t.Fatalf("create: %v, remove: %v, layer: %v", made, gone, err)
		}
	}
}

// userNS makes a user namespace that maps 0 to 100000.
func userNS(t *testing.T) *os.File {
	t.Helper()
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: 100000, Size: 65536}},
		GidMappings: []syscall.SysProcIDMap{{HostID: 200000, Size: 65536}},
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestUserNamespaceMapsTheLayers(t *testing.T) {
	needRoot(t)
	for _, worker := range []bool{false, true} {
		t.Run(fmt.Sprint("worker=", worker), func(t *testing.T) {
			s, ctx := open(t, t.TempDir()), t.Context()
			if worker {
				s.ForceWorker()
			}
			a := snapshottest.Layer(t, s, 1, snapshot.Layer{}, func(root string) {
				if err := errors.Join(os.WriteFile(root+"/f", nil, 0o644), os.Chown(root+"/f", 7, 8)); err != nil {
					t.Fatal(err)
				}
			})
			b := snapshottest.Layer(t, s, 2, snapshot.Layer{}, func(string) {})
			if err := s.Create(ctx, "c", []snapshot.Key{a, b}); err != nil {
				t.Fatal(err)
			}
			f, err := s.Mount(ctx, "c", snapshot.Mount{UserNS: userNS(t), UID: 100000, GID: 200000})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for name, want := range map[string][2]uint32{".": {100000, 200000}, "f": {100007, 200008}} {
				var st unix.Stat_t
				if err := unix.Stat(snapshottest.Path(f, name), &st); err != nil {
					t.Fatal(err)
				}
				if st.Uid != want[0] || st.Gid != want[1] {
					t.Errorf("%s belongs to %d:%d, want %v", name, st.Uid, st.Gid, want)
				}
			}
		})
	}
}

// A detached overlay, and the thread and namespace that made it, are gone with its descriptor.
func TestNothingIsLeft(t *testing.T) {
	needRoot(t)
	s, ctx := open(t, t.TempDir()), t.Context()
	s.ForceWorker()
	if err := s.Create(ctx, "c", nil); err != nil {
		t.Fatal(err)
	}
	spaces := func() int {
		seen := map[string]bool{}
		tasks, err := filepath.Glob("/proc/self/task/*/ns/mnt")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range tasks {
			if l, err := os.Readlink(p); err == nil {
				seen[l] = true
			}
		}
		return len(seen)
	}
	for range 20 {
		f, err := s.Mount(ctx, "c", snapshot.Mount{})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for spaces() > 1 { // a thread ends a moment after its goroutine
		if t.Context().Err() != nil {
			t.Fatal("threads in namespaces of their own remain")
		}
		runtime.Gosched()
	}
}

func TestUsageCountsLinksOnce(t *testing.T) {
	s, ctx := open(t, t.TempDir()), t.Context()
	if err := s.Create(ctx, "c", nil); err != nil {
		t.Fatal(err)
	}
	up := s.UpperDir("c")
	if err := errors.Join(os.WriteFile(up+"/a", make([]byte, 1<<20), 0o644), os.Link(up+"/a", up+"/b"), os.Mkdir(up+"/d", 0o755)); err != nil {
		t.Fatal(err)
	}
	bytes, inodes, err := s.Measure(ctx, "c")
	if err != nil || inodes != 3 || bytes < 1<<20 || bytes > 1<<20+64<<10 {
		t.Errorf("%d bytes, %d inodes, %v", bytes, inodes, err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, _, err := s.Measure(cancelled, "c"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, _, err := s.Measure(ctx, "no"); !errors.Is(err, errs.NotFound) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(s.UpperDir("no")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// TestUsageIsAnsweredFromMemory: while the walks of writable layers take as long as they like, who asks gets the last reading at once, and
// for the first of all waits once and not for each.
func TestUsageIsAnsweredFromMemory(t *testing.T) {
	s, ctx := open(t, t.TempDir()), t.Context()
	for i := range 100 {
		if err := s.Create(ctx, fmt.Sprint("c", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	first, err := s.Usage("c0")
	for errors.Is(err, errs.Unavailable) { // a busy machine
		first, err = s.Usage("c0")
	}
	if err != nil || first.Inodes != 1 || time.Since(first.At) > time.Minute {
		t.Fatalf("an empty layer: %+v, %v", first, err)
	}
	if err := os.WriteFile(s.UpperDir("c0")+"/new", make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Outdate("c0")
	release := s.HoldWalks()
	began := time.Now()
	for i := range 100 {
		u, err := s.Usage(fmt.Sprint("c", i))
		switch {
		case i == 0 && (err != nil || u.Inodes != 1):
			t.Errorf("the last reading: %+v, %v", u, err)
		case i > 0 && !errors.Is(err, errs.Unavailable):
			t.Errorf("a layer not measured yet: %+v, %v", u, err)
		}
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("100 answers took %v", took)
	}
	release()
	for u := first; u.Inodes != 2; {
		if t.Context().Err() != nil {
			t.Fatalf("the new reading does not come: %+v", u)
		}
		if u, err = s.Usage("c0"); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkMount(b *testing.B) {
	for _, worker := range []bool{false, true} {
		b.Run(fmt.Sprint("worker=", worker), func(b *testing.B) {
			s, err := snapshot.Open(b.TempDir(), slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			if worker {
				s.ForceWorker()
			}
			var keys []snapshot.Key
			for i := range 8 {
				d, err := s.Prepare(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				if err := d.Commit(b.Context(), snapshot.Layer{Key: snapshottest.Key(i)}); err != nil {
					b.Fatal(err)
				}
				keys = append(keys, snapshottest.Key(i))
			}
			for b.Loop() {
				if err := s.Create(b.Context(), "c", keys); err != nil {
					b.Fatal(err)
				}
				f, err := s.Mount(b.Context(), "c", snapshot.Mount{})
				if err != nil {
					b.Fatal(err)
				}
				_ = f.Close()
				if err := s.Remove(b.Context(), "c"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
