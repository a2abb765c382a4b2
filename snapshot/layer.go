// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/internal/fsx"
)

// Draft is a layer being filled. Its methods are not safe for concurrent use, except that Discard may follow Commit.
type Draft struct {
	store *Store
	dir   string
	root  *os.File
	done  bool
}

// Prepare makes an empty draft of a layer. It ends with Commit or Discard.
func (s *Store) Prepare(ctx context.Context) (*Draft, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d := &Draft{store: s, dir: s.draftPath()}
	fs := filepath.Join(d.dir, "fs")
	if err := os.MkdirAll(fs, 0o700); err != nil {
		return nil, fmt.Errorf("prepare layer: %w", err)
	}
	err := os.Chmod(fs, 0o755) // what a root directory without an entry gets; the umask must not count
	if err == nil {
		d.root, err = os.Open(fs)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare layer: %w", err), s.discard(d.dir))
	}
	return d, nil
}

// Root is the directory to fill. It belongs to the draft.
func (d *Draft) Root() *os.File { return d.root }

// SideFile makes a file that is kept beside the layer's tree under the given name, for who fills it to find again by
// Store.SidePath. The caller closes it before Commit.
func (d *Draft) SideFile(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(d.dir, sidePrefix+filepath.Base(name)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("prepare layer: %w", err)
	}
	return f, nil
}

const sidePrefix = "side-"

// SidePath is the host path of a file that Draft.SideFile made for the layer.
func (s *Store) SidePath(key Key, name string) string {
	return filepath.Join(s.layerDir(key), sidePrefix+filepath.Base(name))
}

// FSDir is the host path of the layer's tree. It must not be written.
func (s *Store) FSDir(key Key) string { return s.layerFS(key) }

// Discard throws the draft away. After Commit it does nothing.
func (d *Draft) Discard() error {
	if d.done {
		return nil
	}
	d.done = true
	return errors.Join(d.root.Close(), d.store.discard(d.dir))
}

// Commit makes the draft the layer l.Key: first the content is durable, then the name. If the layer is already there, from
// another pull, the draft is thrown away; both came from the same bytes.
func (d *Draft) Commit(ctx context.Context, l Layer) error {
	s := d.store
	if !l.Key.valid() {
		return errs.Newf(errs.Invalid, "commit layer: malformed key %q", l.Key)
	}
	unlock, err := s.keys.Lock(ctx, "layer "+string(l.Key))
	if err != nil {
		return fmt.Errorf("commit layer: %w", err)
	}
	defer unlock()
	if s.Has(l.Key) {
		return d.Discard()
	}
	l.Created = time.Now().UTC().Truncate(time.Second)
	b, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("commit layer %s: %w", l.Key, err)
	}
	if err := os.WriteFile(filepath.Join(d.dir, layerFile), b, 0o600); err != nil {
		return fmt.Errorf("commit layer %s: %w", l.Key, err)
	}
	if err := s.syncer.sync(); err != nil {
		return fmt.Errorf("commit layer %s: %w", l.Key, err)
	}
	if err := os.Rename(d.dir, s.layerDir(l.Key)); err != nil {
		return fmt.Errorf("commit layer %s: %w", l.Key, err)
	}
	d.done = true
	s.mu.Lock()
	s.layers[l.Key] = l
	s.mu.Unlock()
	return errors.Join(d.root.Close(), s.layersDir.Sync())
}

// Hold keeps layers, also ones yet to be committed, from being removed until release is called. release may be called twice.
func (s *Store) Hold(keys ...Key) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		s.holds[k]++
	}
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, k := range keys {
			if s.holds[k]--; s.holds[k] == 0 {
				delete(s.holds, k)
			}
		}
	})
}

// RemoveLayer removes a layer. An unknown one is no error; one that a snapshot refers to, or that is held, is Precondition.
// The layer is invisible when the call returns; its disk space follows soon (Drain waits for it).
func (s *Store) RemoveLayer(ctx context.Context, key Key) error {
	if !key.valid() {
		return errs.Newf(errs.Invalid, "remove layer: malformed key %q", key)
	}
	unlock, err := s.keys.Lock(ctx, "layer "+string(key))
	if err != nil {
		return fmt.Errorf("remove layer: %w", err)
	}
	defer unlock()
	s.mu.Lock()
	l, ok := s.layers[key]
	refs, holds := s.refs[key], s.holds[key]
	if ok && refs == 0 && holds == 0 {
		delete(s.layers, key) // from here on no snapshot can be made on it
	}
	s.mu.Unlock()
	if !ok {
		return nil
	}
	if refs > 0 || holds > 0 {
		return errs.Newf(errs.Precondition, "remove layer %s: in use by %d snapshots and %d pulls", key, refs, holds)
	}
	if err := s.discard(s.layerDir(key)); err != nil {
		s.mu.Lock()
		s.layers[key] = l
		s.mu.Unlock()
		return fmt.Errorf("remove layer %s: %w", key, err)
	}
	return nil
}

// ReadSide reads a file that Draft.SideFile made for the layer, at most limit bytes.
func (s *Store) ReadSide(key Key, name string, limit int64) ([]byte, error) {
	dir, err := os.OpenFile(s.layerDir(key), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("read layer %s: %w", key, err)
	}
	defer dir.Close()
	return fsx.ReadFileInRoot(dir, sidePrefix+filepath.Base(name), limit)
}

// syncer makes everything written to the file system durable by syncfs(2), once for all who ask at the same time.
type syncer struct {
	// dir is on the file system. It is opened before anything is written, so that syncfs reports every write-back error
	// since (Linux 5.8).
	dir    *os.File
	serial sync.Mutex // held while syncfs runs; taken before mu

	mu   sync.Mutex
	next *round // collects who asks until its syncfs begins; guarded by mu
}

type round struct {
	done chan struct{}
	err  error // written before done closes
}

// sync returns when all that was written before the call is on disk.
func (y *syncer) sync() error {
	y.mu.Lock()
	r := y.next
	leader := r == nil
	if leader {
		r = &round{done: make(chan struct{})}
		y.next = r
	}
	y.mu.Unlock()
	if !leader {
		<-r.done
		return r.err
	}
	y.serial.Lock()
	defer y.serial.Unlock()
	y.mu.Lock()
	y.next = nil // who comes now may have written after syncfs looked
	y.mu.Unlock()
	if err := unix.Syncfs(int(y.dir.Fd())); err != nil {
		r.err = fmt.Errorf("sync file system: %w", err)
	}
	close(r.done)
	return r.err
}
