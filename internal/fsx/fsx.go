// SPDX-License-Identifier: Apache-2.0

// Package fsx is path work inside a root that somebody hostile may have filled: a container's root file system or an image layer.
//
// Nothing here joins strings and opens the result. Every path is resolved by openat2(2) with RESOLVE_IN_ROOT, which treats the
// root's descriptor as "/" for absolute names, ".." and symbolic links alike, and RESOLVE_NO_MAGICLINKS, which refuses /proc's
// jumping links. Needs Linux 5.6.
package fsx

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

const resolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// OpenInRoot opens path below root. A leading slash means the root. flags and mode are those of open(2); O_CLOEXEC is added.
func OpenInRoot(root *os.File, path string, flags int, mode uint32) (*os.File, error) {
	fd, err := openat2(int(root.Fd()), path, flags, mode)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openat2 retries EAGAIN: the kernel gives it when a rename elsewhere raced with the walk through "..".
func openat2(dir int, path string, flags int, mode uint32) (int, error) {
	if path == "" {
		path = "."
	}
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(mode), Resolve: resolve}
	for range 64 {
		fd, err := unix.Openat2(dir, path, &how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// maxLinks bounds the symbolic links that MkdirAllInRoot follows to targets that don't exist yet (as the kernel: 40).
const maxLinks = 40

// MkdirAllInRoot makes the directory path and its missing parents below root, with the given mode and owner, and returns an
// O_PATH descriptor of it. Dangling symbolic links on the way are followed inside the root and their targets made.
func MkdirAllInRoot(root *os.File, path string, mode uint32, uid, gid int) (*os.File, error) {
	fd, err := mkdirAll(root, path, mode, uid, gid)
	if err != nil {
		return nil, &os.PathError{Op: "mkdir", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func mkdirAll(root *os.File, path string, mode uint32, uid, gid int) (int, error) {
	const want = unix.O_PATH | unix.O_DIRECTORY
	if fd, err := openat2(int(root.Fd()), path, want, 0); err == nil || !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	rest := split(path)
	var done []string // resolved so far: no symbolic link in it
	links := 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		if name == ".." {
			done = done[:max(0, len(done)-1)]
			continue
		}
		dir, err := openat2(int(root.Fd()), join(done), want, 0)
		if err != nil {
			return -1, err
		}
		target, err := step(dir, name, mode, uid, gid)
		_ = unix.Close(dir)
		if err != nil {
			return -1, err
		}
		if target == "" {
			done = append(done, name)
			continue
		}
		if links++; links > maxLinks {
			return -1, unix.ELOOP
		}
		if strings.HasPrefix(target, "/") {
			done = nil
		}
		rest = append(split(target), rest...)
	}
	return openat2(int(root.Fd()), join(done), want, 0)
}

// step makes the directory name in dir unless something is there, and gives the target if that is a symbolic link.
func step(dir int, name string, mode uint32, uid, gid int) (link string, err error) {
	err = unix.Mkdirat(dir, name, mode)
	if err == nil {
		if err := unix.Fchmodat(dir, name, mode, 0); err != nil { // the umask must not count
			return "", err
		}
		return "", unix.Fchownat(dir, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	}
	if !errors.Is(err, unix.EEXIST) {
		return "", err
	}
	return readLink(dir, name) // if it is no link and no directory either, the next open says so
}

// readLink gives a symbolic link's target, or "" for anything else.
func readLink(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if errors.Is(err, unix.EINVAL) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func split(path string) []string {
	var out []string
	for p := range strings.SplitSeq(path, "/") {
		if p != "" && p != "." {
			out = append(out, p)
		}
	}
	return out
}

func join(parts []string) string { return "/" + strings.Join(parts, "/") }

// TouchInRoot makes an empty regular file at path below root unless there is one, or another file, with its missing parents. It is what
// a file is mounted over, so that a directory there is EISDIR. A dangling symbolic link is followed inside the root and its target made.
func TouchInRoot(root *os.File, path string, mode uint32, uid, gid int) error {
	for range maxLinks {
		if fd, err := openat2(int(root.Fd()), path, unix.O_PATH, 0); err == nil {
			return notDirectory(fd, path)
		}
		next, err := touch(root, path, mode, uid, gid)
		if err != nil || next == "" {
			return err
		}
		path = next
	}
	return &os.PathError{Op: "create", Path: path, Err: unix.ELOOP}
}

// notDirectory closes fd, and fails if it is a directory's.
func notDirectory(fd int, path string) error {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = unix.EISDIR
	}
	if err != nil {
		err = &os.PathError{Op: "create", Path: path, Err: err}
	}
	return errors.Join(err, unix.Close(fd))
}

// touch makes the file, or gives the path that a dangling link in its place leads to.
func touch(root *os.File, path string, mode uint32, uid, gid int) (next string, err error) {
	parent, name := filepath.Split(strings.TrimRight("/"+path, "/"))
	dir, err := MkdirAllInRoot(root, parent, 0o755, uid, gid)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	target, err := occupy(int(dir.Fd()), name, mode, uid, gid)
	if err != nil {
		return "", &os.PathError{Op: "create", Path: path, Err: err}
	}
	if target == "" || strings.HasPrefix(target, "/") {
		return target, nil
	}
	return parent + target, nil
}

func occupy(dir int, name string, mode uint32, uid, gid int) (link string, err error) {
	err = unix.Mknodat(dir, name, unix.S_IFREG|mode, 0)
	if err == nil {
		return "", unix.Fchownat(dir, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	}
	if !errors.Is(err, unix.EEXIST) {
		return "", err
	}
	return readLink(dir, name)
}

// ReadFileInRoot reads a regular file below root. Anything else (a FIFO, a device, a directory) and anything larger than
// limit bytes is refused as Invalid.
func ReadFileInRoot(root *os.File, path string, limit int64) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO must not wait for a writer.
	f, err := OpenInRoot(root, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errs.Newf(errs.Invalid, "read %s: not a regular file (%s)", path, st.Mode().Type())
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, errs.Newf(errs.Invalid, "read %s: larger than %d bytes", path, limit)
	}
	return b, nil
}

// WriteFileAtomic replaces the file path by data through a rename in its directory: a reader sees the old content or the new.
// With sync it is on disk, name included, when the call returns.
func WriteFileAtomic(path string, data []byte, mode os.FileMode, sync bool) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err = os.Rename(f.Name(), path); err != nil || !sync {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
