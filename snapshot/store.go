// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/internal/keylock"
)

// Store is the Snapshotter in one directory. Safe for concurrent use; one process at a time may have a directory open.
type Store struct {
	dir    string
	log    *slog.Logger
	keys   keylock.Locks
	syncer syncer
	trash  trash
	probe  probe
	usage  meter
	// layersDir and draftsDir stay open: the first is fsynced after each commit, both are on the file system that syncer syncs.
	layersDir *os.File
	lock      *os.File
	serial    atomic.Uint64
	closing   sync.Once

	// mu guards what follows. refs[k] is the number of snapshots that have layer k; holds[k] that of holds on it.
	mu     sync.Mutex
	layers map[Key]Layer
	snaps  map[string][]Key
	refs   map[Key]int
	holds  map[Key]int
}

const (
	layerFile    = "layer.json"
	snapshotFile = "snapshot.json"
)

// Open opens the store in dir, making it if it is missing, and throws away what a crash left half done.
func Open(dir string, log *slog.Logger) (_ *Store, err error) {
	s := &Store{
		dir: dir, log: log,
		layers: map[Key]Layer{}, snaps: map[string][]Key{}, refs: map[Key]int{}, holds: map[Key]int{},
	}
	for _, d := range []string{"", "layers", "snapshots", "drafts", "trash"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("open snapshot store: %w", err)
		}
	}
	defer func() {
		if err != nil {
			s.closeFiles()
		}
	}()
	if s.lock, err = lockDir(dir); err != nil {
		return nil, err
	}
	if s.layersDir, err = os.Open(filepath.Join(dir, "layers")); err != nil {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	s.syncer.dir = s.layersDir
	if s.trash.dir, err = os.Open(filepath.Join(dir, "trash")); err != nil {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	if err := errors.Join(s.loadLayers(), s.loadSnapshots(), s.dropDrafts()); err != nil {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	s.trash.start(log)
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
		s.trash.stop()
		s.usage.stop()
		err = s.closeFiles()
	})
	return err
}

func (s *Store) closeFiles() error {
	var all []error
	for _, f := range []*os.File{s.layersDir, s.trash.dir, s.lock} {
		if f != nil {
			all = append(all, f.Close())
		}
	}
	return errors.Join(all...)
}

// Drain waits until everything that was removed so far is gone from the disk too.
func (s *Store) Drain(ctx context.Context) error { return s.trash.drain(ctx) }

// Dir is the store's directory: it names the file system that layers and writable layers are on.
func (s *Store) Dir() string { return s.dir }

func (s *Store) layerDir(k Key) string        { return filepath.Join(s.dir, "layers", string(k)) }
func (s *Store) layerFS(k Key) string         { return filepath.Join(s.dir, "layers", string(k), "fs") }
func (s *Store) snapshotDir(id string) string { return filepath.Join(s.dir, "snapshots", id) }
func (s *Store) workDir(id string) string     { return filepath.Join(s.dir, "snapshots", id, "work") }
func (s *Store) trashPath() string            { return filepath.Join(s.dir, "trash", s.unique()) }
func (s *Store) draftPath() string            { return filepath.Join(s.dir, "drafts", s.unique()) }
func (s *Store) discard(path string) error    { return s.discardTo(path, s.trashPath()) }
func (s *Store) unique() string               { return uniqueName(&s.serial) }
func uniqueName(serial *atomic.Uint64) string {
	return strconv.Itoa(os.Getpid()) + "." + strconv.FormatUint(serial.Add(1), 10)
}

// UpperDir is the host path of the snapshot's writable directory.
func (s *Store) UpperDir(id string) string { return filepath.Join(s.dir, "snapshots", id, "upper") }

func (s *Store) loadLayers() error {
	entries, err := os.ReadDir(filepath.Join(s.dir, "layers"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		l, err := readLayer(s.layerDir(Key(e.Name())))
		if err == nil && l.Key == Key(e.Name()) && l.Key.valid() {
			s.layers[l.Key] = l
			continue
		}
		s.log.Warn("Dropping a damaged image layer.", "layer", e.Name(), "err", err)
		if err := s.discard(s.layerDir(Key(e.Name()))); err != nil {
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
	entries, err := os.ReadDir(filepath.Join(s.dir, "snapshots"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		var r record
		b, err := os.ReadFile(filepath.Join(s.snapshotDir(e.Name()), snapshotFile))
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if err != nil { // Create was cut off: nobody has been told of it
			s.log.Warn("Dropping an unfinished snapshot.", "snapshot", e.Name(), "err", err)
			if err := s.discard(s.snapshotDir(e.Name())); err != nil {
				return err
			}
			continue
		}
		s.addLocked(e.Name(), r.Layers)
	}
	return nil
}

func (s *Store) dropDrafts() error {
	entries, err := os.ReadDir(filepath.Join(s.dir, "drafts"))
	if err != nil {
		return err
	}
	var all []error
	for _, e := range entries {
		all = append(all, s.discard(filepath.Join(s.dir, "drafts", e.Name())))
	}
	return errors.Join(all...)
}

// discardTo moves path out of sight in one step. A missing path is fine. Its removal follows.
func (s *Store) discardTo(path, trash string) error {
	if err := os.Rename(path, trash); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	s.trash.put(filepath.Base(trash))
	return nil
}

// addLocked enters a snapshot into the index. It needs mu, or the store to itself.
func (s *Store) addLocked(id string, layers []Key) {
	s.snaps[id] = layers
	for _, k := range layers {
		s.refs[k]++
	}
}

// dropLocked is the inverse of addLocked.
func (s *Store) dropLocked(id string) {
	for _, k := range s.snaps[id] {
		if s.refs[k]--; s.refs[k] == 0 {
			delete(s.refs, k)
		}
	}
	delete(s.snaps, id)
}

// Snapshots lists the snapshots' ids, sorted.
func (s *Store) Snapshots() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.snaps)), nil
}

// Has says that the layer is there and complete.
func (s *Store) Has(key Key) bool {
	_, ok := s.Layer(key)
	return ok
}

// Layer describes a complete layer.
func (s *Store) Layer(key Key) (Layer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.layers[key]
	return l, ok
}

// Layers lists the complete layers, sorted by key.
func (s *Store) Layers() []Layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Layer, 0, len(s.layers))
	for _, k := range slices.Sorted(maps.Keys(s.layers)) {
		out = append(out, s.layers[k])
	}
	return out
}

// LayerUsage is the disk space and number of files of a layer, as measured when it was committed.
func (s *Store) LayerUsage(key Key) (bytes, inodes uint64, err error) {
	l, ok := s.Layer(key)
	if !ok {
		return 0, 0, errs.Newf(errs.NotFound, "find layer %s", key)
	}
	return l.Bytes, l.Inodes, nil
}
