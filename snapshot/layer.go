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
	d := &Draft{store: s, dir: s.disk.draft()}
	s.syncer.draft(+1)
	fs := filepath.Join(d.dir, "fs")
	err := os.MkdirAll(fs, 0o700)
	if err == nil {
		err = os.Chmod(fs, 0o755) // what a root directory without an entry gets; the umask must not count
	}
	if err == nil {
		d.root, err = os.Open(fs)
	}
	if err != nil {
		s.syncer.draft(-1)
		return nil, errors.Join(fmt.Errorf("prepare layer: %w", err), s.disk.discard(d.dir))
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
	return filepath.Join(s.disk.layer(key), sidePrefix+filepath.Base(name))
}

// FSDir is the host path of the layer's tree. It must not be written.
func (s *Store) FSDir(key Key) string { return s.disk.tree(key) }

// Discard throws the draft away. After Commit it does nothing.
func (d *Draft) Discard() error {
	if d.done {
		return nil
	}
	d.done = true
	d.store.syncer.draft(-1)
	return errors.Join(d.root.Close(), d.store.disk.discard(d.dir))
}

// Commit makes the draft the layer l.Key, at once and completely. It is written to disk soon after; Sync has that done now. If the
// layer is already there, from another pull, the draft is thrown away; both came from the same bytes.
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
	l.Created, l.Boot = time.Now().UTC().Truncate(time.Second), s.syncer.boot
	b, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("commit layer %s: %w", l.Key, err)
	}
	if err := os.WriteFile(filepath.Join(d.dir, layerFile), b, 0o600); err != nil {
		return fmt.Errorf("commit layer %s: %w", l.Key, err)
	}
	if err := os.Rename(d.dir, s.disk.layer(l.Key)); err != nil {
		return fmt.Errorf("commit layer %s: %w", l.Key, err)
	}
	d.done = true
	s.index.putLayer(l)
	s.syncer.draft(-1)
	s.syncer.put(s.disk.layer(l.Key))
	return d.root.Close()
}

// Sync writes the layers committed so far to disk.
func (s *Store) Sync(ctx context.Context) error {
	select {
	case <-s.syncer.flush():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("sync layers: %w", context.Cause(ctx))
	}
}

// Hold keeps layers, also ones yet to be committed, from being removed until release is called. release may be called twice.
func (s *Store) Hold(keys ...Key) (release func()) {
	s.index.hold(keys, +1)
	return sync.OnceFunc(func() { s.index.hold(keys, -1) })
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
	l, ok, err := s.index.takeLayer(key)
	if err != nil {
		return fmt.Errorf("remove layer %s: %w", key, err)
	}
	if !ok {
		return nil
	}
	if err := s.disk.discard(s.disk.layer(key)); err != nil {
		s.index.putLayer(l)
		return fmt.Errorf("remove layer %s: %w", key, err)
	}
	return nil
}

// ReadSide reads a file that Draft.SideFile made for the layer, at most limit bytes.
func (s *Store) ReadSide(key Key, name string, limit int64) ([]byte, error) {
	dir, err := os.OpenFile(s.disk.layer(key), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("read layer %s: %w", key, err)
	}
	defer dir.Close()
	return fsx.ReadFileInRoot(dir, sidePrefix+filepath.Base(name), limit)
}
