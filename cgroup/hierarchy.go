// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// hierarchy is one mounted cgroup file system. Its methods take a group's path as the package comment defines it ("" is the
// mount point) and are safe for concurrent use. Errors are *fs.PathError with the full path.
type hierarchy struct {
	dir         string // the mount point
	root        *os.File
	v2          bool
	controllers []string // version 1 only
}

func openHierarchy(dir string, v2 bool, controllers []string) (*hierarchy, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &hierarchy{dir: dir, root: os.NewFile(uintptr(fd), dir), v2: v2, controllers: controllers}, nil
}

// Close gives back the descriptor.
func (h *hierarchy) Close() error { return h.root.Close() }

// name is for messages: "memory", "cpu,cpuacct", "systemd", "unified".
func (h *hierarchy) name() string { return filepath.Base(h.dir) }

// rel joins without a leading slash, for the *at system calls.
func rel(path, file string) string {
	p := strings.TrimPrefix(path, "/")
	switch {
	case p == "" && file == "":
		return "."
	case p == "":
		return file
	case file == "":
		return p
	}
	return p + "/" + file
}

// open opens a control file, or the group's directory when file is "". The File never enters the runtime's poller.
func (h *hierarchy) open(path, file string, flags int) (*os.File, error) {
	name := rel(path, file)
	fd, err := openat(int(h.root.Fd()), name, flags)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: h.dir + "/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), h.dir+"/"+name), nil
}

func openat(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// read gives a control file's content.
func (h *hierarchy) read(path, file string) ([]byte, error) { return h.readInto(nil, path, file) }

// readInto is read with a buffer that is reused when large enough.
func (h *hierarchy) readInto(buf []byte, path, file string) ([]byte, error) {
	name := rel(path, file)
	fd, err := openat(int(h.root.Fd()), name, unix.O_RDONLY)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: h.dir + "/" + name, Err: err}
	}
	defer unix.Close(fd)
	if cap(buf) < 512 {
		buf = make([]byte, 4096)
	}
	buf = buf[:0]
	for {
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: h.dir + "/" + name, Err: err}
		case n == 0:
			return buf, nil
		default:
			buf = buf[:len(buf)+n]
			if len(buf) == cap(buf) {
				buf = slices.Grow(buf, len(buf))
			}
		}
	}
}

// write gives each value to a control file by one write(2), which is how these files tell values apart.
func (h *hierarchy) write(path, file string, values ...string) error {
	name := rel(path, file)
	fd, err := openat(int(h.root.Fd()), name, unix.O_WRONLY|unix.O_TRUNC)
	if err != nil {
		return &fs.PathError{Op: "open", Path: h.dir + "/" + name, Err: err}
	}
	defer unix.Close(fd)
	for _, v := range values {
		for {
			_, err = unix.Write(fd, []byte(v))
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if err != nil {
			return &fs.PathError{Op: "write " + v + " to", Path: h.dir + "/" + name, Err: err}
		}
	}
	return nil
}

func (h *hierarchy) exists(path string) bool {
	var st unix.Stat_t
	return unix.Fstatat(int(h.root.Fd()), rel(path, ""), &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

func (h *hierarchy) mkdir(path string) error {
	if err := unix.Mkdirat(int(h.root.Fd()), rel(path, ""), 0o755); err != nil {
		return &fs.PathError{Op: "mkdir", Path: h.dir + path, Err: err}
	}
	return nil
}

func (h *hierarchy) rmdir(path string) error {
	if err := unix.Unlinkat(int(h.root.Fd()), rel(path, ""), unix.AT_REMOVEDIR); err != nil {
		return &fs.PathError{Op: "rmdir", Path: h.dir + path, Err: err}
	}
	return nil
}

// markName is the extended attribute of the directories that we made above containers. Kernels keep trusted.* attributes of
// cgroup directories in memory, for both versions.
const markName = "trusted.crishim"

// mark is best effort: an unmarked directory is not removed by Prune, nothing worse.
func (h *hierarchy) mark(path string) { _ = unix.Lsetxattr(h.dir+path, markName, []byte("1"), 0) }

func (h *hierarchy) marked(path string) bool {
	n, err := unix.Lgetxattr(h.dir+path, markName, nil)
	return err == nil && n > 0
}

// children lists the groups directly below path. A cgroup directory's link count is 2 plus its subdirectories', so that the
// common case, none, costs one fstatat.
func (h *hierarchy) children(path string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(int(h.root.Fd()), rel(path, ""), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: h.dir + path, Err: err}
	}
	if st.Nlink == 2 {
		return nil, nil
	}
	d, err := h.open(path, "", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, path+"/"+e.Name())
		}
	}
	return names, err
}

// walk calls f for path and every group below it, parents first. Groups that vanish meanwhile are no error.
func (h *hierarchy) walk(path string, f func(path string) error) error {
	err := f(path)
	if err == nil {
		var names []string
		names, err = h.children(path)
		for _, c := range names {
			if err := h.walk(c, f); err != nil {
				return err
			}
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// mount is a cgroup file system found in mountinfo.
type mount struct {
	dir, dev    string
	v2          bool
	controllers []string
}

// findMounts reads mountinfo (proc_pid_mountinfo(5)) for cgroup file systems directly below root, each superblock once.
func findMounts(r io.Reader, root string) ([]mount, error) {
	var found []mount
	s := bufio.NewScanner(r)
	for s.Scan() {
		before, after, ok := strings.Cut(s.Text(), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(g) < 3 || (g[0] != "cgroup" && g[0] != "cgroup2") || filepath.Dir(f[4]) != root {
			continue
		}
		m := mount{dir: f[4], dev: f[2], v2: g[0] == "cgroup2"}
		if slices.ContainsFunc(found, func(o mount) bool { return o.dev == m.dev }) {
			continue
		}
		if !m.v2 {
			m.controllers = controllersOf(g[2])
		}
		found = append(found, m)
	}
	return found, s.Err()
}

// controllersOf picks the controllers from the superblock's options.
func controllersOf(options string) []string {
	var cs []string
	for o := range strings.SplitSeq(options, ",") {
		switch o {
		case "rw", "ro", "xattr", "clone_children", "cpuset_v2_mode", "favordynmods", "none":
		default:
			if !strings.Contains(o, "=") {
				cs = append(cs, o)
			}
		}
	}
	return cs
}
