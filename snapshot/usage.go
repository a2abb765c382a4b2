// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

const (
	// usageAge is how old a measurement may be before a question starts another.
	usageAge = 10 * time.Second
	// usageWait bounds how long a question waits for the first measurement, which it started.
	usageWait = 20 * time.Millisecond
	// usageDepth bounds the open directories of one walk. What lies deeper is not counted.
	usageDepth = 256
)

// Usage is what a writable layer takes: disk space, number of files, and when that was measured.
type Usage struct {
	Bytes, Inodes uint64
	At            time.Time
}

// Usage is what the snapshot's writable layer takes. It answers from the last measurement and starts a new one when that is old. Only
// where there is none yet does it wait for one, briefly, and not behind another: errs.Unavailable then. Nothing is measured when nobody
// asks.
func (s *Store) Usage(id string) (Usage, error) {
	if _, err := s.index.layersOf(id); err != nil {
		return Usage{}, err
	}
	u := s.usage.get(id, s.disk.upper(id))
	if u.At.IsZero() {
		return Usage{}, errs.Newf(errs.Unavailable, "measure snapshot %s: it has not been measured yet", id)
	}
	return u, nil
}

// UsageAll sums the writable layers, as last measured.
func (s *Store) UsageAll() (bytes, inodes uint64) {
	for _, id := range s.index.snapshots() {
		u := s.usage.peek(id, s.disk.upper(id))
		bytes += u.Bytes
		inodes += u.Inodes
	}
	return bytes, inodes
}

// Measure walks the snapshot's writable layer now, however long it takes.
func (s *Store) Measure(ctx context.Context, id string) (bytes, inodes uint64, err error) {
	if _, err := s.index.layersOf(id); err != nil {
		return 0, 0, err
	}
	return MeasureDir(ctx, s.disk.upper(id))
}

// MeasureDir is the disk space and number of files below a directory; a file with several names counts once.
func MeasureDir(ctx context.Context, dir string) (bytes, inodes uint64, err error) {
	u, err := measure(ctx.Done(), dir)
	if errors.Is(err, errStopped) {
		err = fmt.Errorf("measure %s: %w", dir, context.Cause(ctx))
	}
	return u.Bytes, u.Inodes, err
}

// meter keeps the last measurement of each writable layer. One walk runs at a time. The zero value is ready.
type meter struct {
	walk sync.Mutex // held by the walk under way; taken before mu

	mu    sync.Mutex
	last  map[string]*reading // guarded by mu
	walks sync.WaitGroup      // added to under mu
	// waiting is how many walks are under way or wait for their turn; guarded by mu
	waiting int
	quit    chan struct{} // closes when the store does; made with the first walk; guarded by mu
	closed  bool          // guarded by mu
}

type reading struct {
	Usage
	running chan struct{} // closes when the walk under way ends; nil: none
}

// get answers with the last reading, or the first if that can be had soon.
func (m *meter) get(id, dir string) Usage {
	running, free := m.refresh(id, dir)
	u := m.read(id)
	if running == nil || !u.At.IsZero() || !free {
		return u
	}
	t := time.NewTimer(usageWait)
	defer t.Stop()
	select {
	case <-running:
	case <-t.C:
	}
	return m.read(id)
}

// peek answers at once; unlike get it does not wait for the first walk either.
func (m *meter) peek(id, dir string) Usage {
	m.refresh(id, dir)
	return m.read(id)
}

func (m *meter) read(id string) Usage {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.last[id]; r != nil {
		return r.Usage
	}
	return Usage{}
}

// refresh starts a walk when the last reading is old. running closes with the walk under way, if there is one; free says that no other
// holds it up.
func (m *meter) refresh(id, dir string) (running <-chan struct{}, free bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last == nil {
		m.last, m.quit = map[string]*reading{}, make(chan struct{})
	}
	r := m.last[id]
	if r == nil {
		r = &reading{}
		m.last[id] = r
	}
	if r.running != nil || m.closed || time.Since(r.At) < usageAge {
		return r.running, false
	}
	done := make(chan struct{})
	r.running = done
	quit := m.quit
	free = m.waiting == 0
	m.waiting++
	m.walks.Go(func() {
		m.walk.Lock()
		u, err := measure(quit, dir)
		m.walk.Unlock()
		m.mu.Lock()
		defer m.mu.Unlock()
		if err == nil {
			r.Usage = u
		}
		r.running = nil
		m.waiting--
		close(done)
	})
	return done, free
}

func (m *meter) forget(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.last, id)
}

func (m *meter) stop() {
	m.mu.Lock()
	if m.quit != nil && !m.closed {
		close(m.quit)
	}
	m.closed = true
	m.mu.Unlock()
	m.walks.Wait()
}

// measure walks a tree. Files that vanish meanwhile are not counted.
func measure(quit <-chan struct{}, dir string) (Usage, error) {
	w := walker{Usage: Usage{At: time.Now()}, quit: quit, seen: map[uint64]struct{}{}}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return Usage{}, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	w.count(&st)
	fd, err := openDir(unix.AT_FDCWD, dir)
	if err != nil {
		return Usage{}, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	err = w.dir(fd, 0)
	return w.Usage, err
}

type walker struct {
	Usage
	quit <-chan struct{}
	seen map[uint64]struct{}
}

func (w *walker) count(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if _, ok := w.seen[st.Ino]; ok {
			return
		}
		w.seen[st.Ino] = struct{}{}
	}
	w.Bytes += uint64(st.Blocks) * 512
	w.Inodes++
}

// dir counts what is below an open directory and closes it.
func (w *walker) dir(fd, depth int) error {
	f := os.NewFile(uintptr(fd), "directory")
	defer f.Close()
	for {
		select {
		case <-w.quit:
			return errStopped
		default:
		}
		names, err := f.Readdirnames(256)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("measure directory: %w", err)
		}
		for _, n := range names {
			var st unix.Stat_t
			if unix.Fstatat(fd, n, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue
			}
			w.count(&st)
			if st.Mode&unix.S_IFMT != unix.S_IFDIR || depth >= usageDepth {
				continue
			}
			child, err := openDir(fd, n)
			if err != nil {
				continue
			}
			if err := w.dir(child, depth+1); err != nil {
				return err
			}
		}
	}
}
