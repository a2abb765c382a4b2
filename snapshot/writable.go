// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/internal/undo"
)

// removeWait bounds how long Remove waits for the files to be gone from the disk as well. Ordinary writable layers are small and
// are gone at once; a huge one is deleted after the call has returned.
const removeWait = 100 * time.Millisecond

// Create makes a snapshot with an empty writable layer on layers, bottom first. Its root directory gets the image's owner and mode.
func (s *Store) Create(ctx context.Context, id string, layers []Key) (err error) {
	if !validID(id) {
		return errs.Newf(errs.Invalid, "create snapshot: malformed id %q", id)
	}
	if len(layers) > MaxLayers {
		return errs.Newf(errs.Invalid, "create snapshot %s: %d layers; Linux stacks at most %d", id, len(layers), MaxLayers)
	}
	unlock, err := s.keys.Lock(ctx, "snapshot "+id)
	if err != nil {
		return fmt.Errorf("create snapshot: %w", err)
	}
	defer unlock()
	var u undo.Stack
	defer u.Run(&err)
	if err := s.index.claim(id, layers); err != nil {
		return fmt.Errorf("create snapshot %s: %w", id, err)
	}
	u.Add(func() error { s.index.release(id); return nil })

	dir := s.disk.snapshot(id)
	if err := s.disk.discard(dir); err != nil { // a Create that was cut off after Open looked
		return fmt.Errorf("create snapshot %s: %w", id, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("create snapshot: %w", err)
	}
	u.Add(func() error { return s.disk.discard(dir) })
	for _, d := range []string{s.disk.upper(id), s.disk.work(id)} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return fmt.Errorf("create snapshot: %w", err)
		}
	}
	if err := s.dressRoot(s.disk.upper(id), layers); err != nil {
		return fmt.Errorf("create snapshot %s: %w", id, err)
	}
	b, err := json.Marshal(record{Layers: layers})
	if err != nil {
		return fmt.Errorf("create snapshot %s: %w", id, err)
	}
	// Written last: a snapshot without this file was never created.
	if err := os.WriteFile(filepath.Join(dir, snapshotFile), b, 0o600); err != nil {
		return fmt.Errorf("create snapshot: %w", err)
	}
	return nil
}

// dressRoot gives the writable root directory what the topmost layer with an entry for it says. overlayfs shows the root of the
// writable directory as the root of the whole.
func (s *Store) dressRoot(upper string, layers []Key) error {
	mode, uid, gid := uint32(0o755), 0, 0
	for _, v := range slices.Backward(layers) {
		l, _ := s.Layer(v)
		if !l.RootSet {
			continue
		}
		from := s.disk.tree(l.Key)
		var st unix.Stat_t
		if err := unix.Lstat(from, &st); err != nil {
			return &os.PathError{Op: "stat", Path: from, Err: err}
		}
		mode, uid, gid = st.Mode&0o7777, int(st.Uid), int(st.Gid)
		if err := copyAttributes(from, upper); err != nil {
			return err
		}
		break
	}
	if err := unix.Chown(upper, uid, gid); err != nil {
		return &os.PathError{Op: "chown", Path: upper, Err: err}
	}
	if err := unix.Chmod(upper, mode); err != nil {
		return &os.PathError{Op: "chmod", Path: upper, Err: err}
	}
	return nil
}

// copyAttributes copies extended attributes, except overlayfs's own.
func copyAttributes(from, to string) error {
	buf := make([]byte, 64<<10) // XATTR_LIST_MAX, and XATTR_SIZE_MAX
	n, err := unix.Llistxattr(from, buf)
	if err != nil || n == 0 {
		return nil // a file system without them
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "trusted.overlay.") || name == "security.selinux" {
			continue
		}
		n, err := unix.Lgetxattr(from, name, buf)
		if err == nil {
			err = unix.Lsetxattr(to, name, buf[:n], 0)
		}
		if err != nil {
			return &os.PathError{Op: "copy attribute " + name, Path: to, Err: err}
		}
	}
	return nil
}

// Remove removes a snapshot and its writable layer. An unknown one is no error. Its processes must have ended.
func (s *Store) Remove(ctx context.Context, id string) error {
	if !validID(id) {
		return errs.Newf(errs.Invalid, "remove snapshot: malformed id %q", id)
	}
	unlock, err := s.keys.Lock(ctx, "snapshot "+id)
	if err != nil {
		return fmt.Errorf("remove snapshot: %w", err)
	}
	defer unlock()
	if err := s.disk.discard(s.disk.snapshot(id)); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", id, err)
	}
	s.index.release(id)
	s.usage.forget(id)
	soon, cancel := context.WithTimeout(ctx, removeWait)
	defer cancel()
	if err := s.disk.trash.drain(soon); err != nil && !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return err
	}
	return nil
}

// validID says that the id may become a file name.
func validID(id string) bool {
	if id == "" || len(id) > 128 || id[0] == '.' {
		return false
	}
	for _, c := range id {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-", c) {
			return false
		}
	}
	return true
}
