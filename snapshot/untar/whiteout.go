// SPDX-License-Identifier: Apache-2.0

package untar

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// Whiteouts, as archives and as overlayfs write them.
const (
	whiteoutPrefix = ".wh."
	opaqueSuffix   = ".wh..opq" // after the prefix
	opaqueName     = "trusted.overlay.opaque"
)

func isWhiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

func setOpaque(dir int, base string) error {
	return os.NewSyscallError("set "+opaqueName, unix.Lsetxattr(viaProc(dir, base), opaqueName, []byte("y"), 0))
}

func isOpaque(dir int, base string) bool {
	buf := make([]byte, 2)
	n, err := unix.Lgetxattr(viaProc(dir, base), opaqueName, buf)
	return err == nil && n == 1 && buf[0] == 'y'
}

// whiteout hides what the layers below have under a name; hidden is that name, or what marks an opaque directory. dir is the
// directory's name.
func (u *unpacker) whiteout(parent int, dir, hidden string) error {
	u.cachedName = "" // names that led through a link below may end here; the descriptor is still in use
	switch {
	case hidden == opaqueSuffix:
		if err := u.lower(dir); err != nil {
			return err
		}
		if parent == u.root {
			u.opaque = true // overlayfs does not look at the root's own attribute
			return nil
		}
		u.opaques = true
		return setOpaque(parent, ".")
	case strings.HasPrefix(hidden, whiteoutPrefix):
		return nil // bookkeeping of AUFS
	case hidden == "" || hidden == "." || hidden == "..":
		return errs.Newf(errs.Invalid, "whiteout without a name")
	}
	if err := u.lower(join(dir, hidden)); err != nil {
		return err
	}
	return u.hide(parent, hidden)
}

// hide makes a whiteout, unless this layer has something under the name: that stays.
func (u *unpacker) hide(parent int, name string) error {
	var st unix.Stat_t
	err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		u.whiteouts = true
		return os.NewSyscallError("make whiteout", unix.Mknodat(parent, name, unix.S_IFCHR, 0))
	case err != nil:
		return os.NewSyscallError("stat", err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		u.opaques = true
		return setOpaque(parent, name)
	}
	return nil // a file of this layer hides what is below anyway
}

// lower takes back the files at or under a name that were copied from below: what hides the layers below hides them too.
func (u *unpacker) lower(name string) error {
	for raised := range u.raised {
		if raised != name && name != "" && !strings.HasPrefix(raised, name+"/") {
			continue
		}
		delete(u.raised, raised)
		dir, base := split(raised)
		fd, err := openIn(u.root, dir, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			continue // replaced meanwhile
		}
		err = unix.Unlinkat(fd, base, 0)
		_ = unix.Close(fd)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return os.NewSyscallError("unlink", err)
		}
	}
	return nil
}

// prune removes whiteouts that have nothing to hide: those in opaque directories, and all of them in the bottom layer. overlayfs
// filters whiteouts only out of directories that it merges; elsewhere they would be listed as files that can't be opened.
func (u *unpacker) prune() error {
	bottom := u.Lower == nil
	if bottom && u.whiteouts {
		u.res.SelfContained = false // on other layers they would hide something
	}
	if !u.whiteouts || !bottom && !u.opaques {
		return nil
	}
	fd, err := openIn(u.root, "", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	if err := pruneDir(os.NewFile(uintptr(fd), "/"), bottom, 0); err != nil {
		return fmt.Errorf("remove whiteouts that hide nothing: %w", err)
	}
	return nil
}

// pruneDir closes f. hidden says that nothing below shows in it.
func pruneDir(f *os.File, hidden bool, depth int) error {
	defer f.Close()
	fd := int(f.Fd())
	for {
		entries, err := f.ReadDir(256)
		for _, e := range entries {
			name := e.Name()
			switch {
			case e.IsDir() && depth < maxDepth:
				child, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
				if err != nil {
					return os.NewSyscallError("open", err)
				}
				if err := pruneDir(os.NewFile(uintptr(child), name), hidden || isOpaque(fd, name), depth+1); err != nil {
					return err
				}
			case hidden && e.Type()&os.ModeCharDevice != 0:
				var st unix.Stat_t
				if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || !isWhiteout(&st) {
					continue
				}
				if err := unix.Unlinkat(fd, name, 0); err != nil {
					return os.NewSyscallError("unlink", err)
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
