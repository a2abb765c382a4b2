// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// dialTimeout bounds the question whether a socket's owner is still there.
const dialTimeout = time.Second

// Listen makes a unix socket of mode 0600 at path, and its directory if need be. A socket that a dead daemon left is
// replaced; errs.Precondition when somebody answers on it, or when something else is there.
//
// Two daemons that start at once are kept apart by a lock on path.lock, which lives as long as the listener.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := listen(ctx, path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), lock.Close())
	}
	return &locked{UnixListener: l, lock: lock}, nil
}

func listen(ctx context.Context, path string) (*net.UnixListener, error) {
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	// Bound under another name, the socket gets its mode before anybody can find it.
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(temp, 0o600), os.Rename(temp, path)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// removeStale removes a socket that nobody answers on.
func removeStale(ctx context.Context, path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return errs.Newf(errs.Precondition, "something that is no socket is there (%s)", fi.Mode())
	}
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		return errors.Join(errs.Newf(errs.Precondition, "another daemon answers there"), c.Close())
	}
	if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Remove(path)
}

// lockFile holds an exclusive lock until the file is closed, which the kernel does for a dead daemon too.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errs.Newf(errs.Precondition, "another daemon runs there")
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// locked is a listener with its lock. The socket's file stays after Close: removing it could hit a successor's.
type locked struct {
	*net.UnixListener
	lock *os.File
}

// Accept waits for a connection of root or of the daemon's own user. The socket's mode says the same, but whoever got
// hold of a descriptor of its directory entry is asked again here.
func (l *locked) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if allowed(c) {
			return c, nil
		}
		_ = c.Close()
	}
}

func allowed(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var peer *unix.Ucred
	if e := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil || err != nil {
		return false
	}
	return peer.Uid == 0 || int(peer.Uid) == os.Geteuid()
}

// Close closes the listener and lets go of the lock.
func (l *locked) Close() error { return errors.Join(l.UnixListener.Close(), l.lock.Close()) }
