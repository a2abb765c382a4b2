// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/internal/keylock"
)

// Store is the Snapshotter in one directory. Safe for concurrent use; one process at a time may have a directory open.
type Store struct {
	log     *slog.Logger
	disk    disk
	index   *index
	keys    keylock.Locks
	syncer  syncer
	mounter mounter
	usage   meter
	lock    *os.File
	closing sync.Once
}

const (
	layerFile    = "layer.json"
	snapshotFile = "snapshot.json"
)

// Open opens the store in dir, making it if it is missing, and throws away what a crash left half done.
func Open(dir string, log *slog.Logger) (_ *Store, err error) {
	s := &Store{log: log, index: newIndex()}
	s.disk.dir, s.mounter.disk = dir, &s.disk
	for _, d := range []string{"", "layers", "snapshots", "drafts", "trash"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("open snapshot store: %w", err)
		}
	}
	defer func() {
		if err != nil {
			s.syncer.stop()
			_ = s.closeFiles()
		}
	}()
	if s.lock, err = lockDir(dir); err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	s.syncer.start(s.lock, boot, log)
	if s.disk.trash.dir, err = os.Open(filepath.Join(dir, "trash")); err != nil {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	if err := errors.Join(s.loadLayers(), s.loadSnapshots(), s.dropDrafts()); err != nil {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	s.disk.trash.start(log)
	return s, nil
}

// lockDir keeps a second daemon out: two would remove each other's drafts.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(errs.Newf(errs.Unavailable, "open snapshot store %s: another process has it open: %w", dir, err), f.Close())
	}
	return f, nil
}

// Close ends removals under way (the next Open continues them) and releases the directory. Mounted snapshots live on. A second
// Close does nothing.
func (s *Store) Close() (err error) {
	s.closing.Do(func() {
		s.disk.trash.stop()
		s.usage.stop()
		s.syncer.stop()
		err = s.closeFiles()
	})
	return err
}

func (s *Store) closeFiles() error {
	var all []error
	for _, f := range []*os.File{s.disk.trash.dir, s.lock} {
		if f != nil {
			all = append(all, f.Close())
		}
	}
	return errors.Join(all...)
}

// Drain waits until everything that was removed so far is gone from the disk too.
func (s *Store) Drain(ctx context.Context) error { return s.disk.trash.drain(ctx) }

// Dir is the store's directory: it names the file system that layers and writable layers are on.
func (s *Store) Dir() string { return s.disk.dir }

// UpperDir is the host path of the snapshot's writable directory.
func (s *Store) UpperDir(id string) string { return s.disk.upper(id) }

func (s *Store) loadLayers() error {
	entries, err := os.ReadDir(s.disk.path("layers"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir, durable := s.disk.layer(Key(e.Name())), false
		l, err := readLayer(dir)
		if err == nil && (l.Key != Key(e.Name()) || !l.Key.valid()) {
			err = fmt.Errorf("its record is of %q", l.Key)
		}
		if err == nil {
			durable, err = s.syncer.intact(dir, l)
		}
		if err == nil {
			s.index.layers[l.Key] = l
			if !durable {
				s.syncer.put(dir)
			}
			continue
		}
		s.log.Warn("Dropping a damaged image layer.", "layer", e.Name(), "err", err)
		if err := s.disk.discard(s.disk.layer(Key(e.Name()))); err != nil {
			return err
		}
	}
	return nil
}

func readLayer(dir string) (l Layer, err error) {
	b, err := os.ReadFile(filepath.Join(dir, layerFile))
	if err != nil {
		return l, err
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return l, fmt.Errorf("read %s: %w", layerFile, err)
	}
	st, err := os.Lstat(filepath.Join(dir, "fs"))
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("read layer: fs is no directory")
	}
	return l, err
}

// record is the content of snapshot.json.
type record struct {
	Layers []Key `json:"layers"`
}

func (s *Store) loadSnapshots() error {
	entries, err := os.ReadDir(s.disk.path("snapshots"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		var r record
		b, err := os.ReadFile(filepath.Join(s.disk.snapshot(e.Name()), snapshotFile))
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if err != nil { // Create was cut off: nobody has been told of it
			s.log.Warn("Dropping an unfinished snapshot.", "snapshot", e.Name(), "err", err)
			if err := s.disk.discard(s.disk.snapshot(e.Name())); err != nil {
				return err
			}
			continue
		}
		s.index.addLocked(e.Name(), r.Layers)
	}
	return nil
}

func (s *Store) dropDrafts() error {
	entries, err := os.ReadDir(s.disk.path("drafts"))
	if err != nil {
		return err
	}
	var all []error
	for _, e := range entries {
		all = append(all, s.disk.discard(s.disk.path("drafts", e.Name())))
	}
	return errors.Join(all...)
}

// Snapshots lists the snapshots' ids, sorted.
func (s *Store) Snapshots() ([]string, error) { return s.index.snapshots(), nil }

// Has says that the layer is there and complete.
func (s *Store) Has(key Key) bool {
	_, ok := s.index.layer(key)
	return ok
}

// Layer describes a complete layer.
func (s *Store) Layer(key Key) (Layer, bool) { return s.index.layer(key) }

// Layers lists the complete layers, sorted by key.
func (s *Store) Layers() []Layer { return s.index.allLayers() }

// LayerUsage is the disk space and number of files of a layer, as measured when it was committed.
func (s *Store) LayerUsage(key Key) (bytes, inodes uint64, err error) {
	l, ok := s.index.layer(key)
	if !ok {
		return 0, 0, errs.Newf(errs.NotFound, "find layer %s", key)
	}
	return l.Bytes, l.Inodes, nil
}
