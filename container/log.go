// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// openLog opens a container's log file, made if need be, never through a link in its last component (KUBELET.md 28); nil for no
// path. Not O_APPEND: the keeper writes at offsets of its own.
func openLog(path string) (*os.File, error) {
	if path == "" {
		return nil, nil
	}
	const flags = os.O_RDWR | os.O_CREATE | unix.O_NOFOLLOW | unix.O_NONBLOCK
	f, err := os.OpenFile(path, flags, 0o640)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, fmt.Errorf("open log: %w", errs.OfPath(err))
		}
		f, err = os.OpenFile(path, flags, 0o640)
	}
	if err != nil {
		return nil, fmt.Errorf("open log: %w", errs.OfPath(err))
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errs.Newf(errs.Invalid, "open log: %s is not a regular file", path)
	}
	if err == nil {
		err = f.Chmod(0o640)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// ReopenLog sends a running container's output to a new file at its log path: kubelet has renamed the old one.
func (m *Manager) ReopenLog(ctx context.Context, id ID) error {
	r := m.current(id)
	switch {
	case r == nil:
		return errs.Newf(errs.NotFound, "reopen log of %s: no such container", id)
	case r.State != Running:
		return errs.Newf(errs.Precondition, "reopen log of %s: the container is %s", r.name(), r.State)
	}
	f, err := openLog(r.LogPath)
	if err != nil {
		return err
	}
	if f == nil {
		return errs.Newf(errs.Precondition, "reopen log of %s: the container has no log", r.name())
	}
	defer f.Close()
	return m.o.Keeper.Reopen(ctx, string(id), f)
}
