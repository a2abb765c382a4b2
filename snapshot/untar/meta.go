// SPDX-License-Identifier: Apache-2.0

package untar

import (
	"archive/tar"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// maxTimes bounds the directories whose times are remembered. Beyond it they are set at once, and entries that follow in those
// directories show in them.
const maxTimes = 1 << 18

// attributes gives an entry its owner, mode, extended attributes and times, in this order: chown clears setuid and capabilities.
// directory is the entry's name if its times must wait until its own entries are made, else "".
func (u *unpacker) attributes(parent int, base, directory string, h *tar.Header) error {
	if h.Uid < 0 || int64(h.Uid) > math.MaxUint32-1 || h.Gid < 0 || int64(h.Gid) > math.MaxUint32-1 {
		return errs.Newf(errs.Invalid, "owner %d:%d", h.Uid, h.Gid) // 2^32-1 means "leave as it is" to chown
	}
	if err := unix.Fchownat(parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("chown", err)
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := chmod(parent, base, uint32(h.Mode)&0o7777); err != nil {
			return os.NewSyscallError("chmod", err)
		}
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			if err := setAttribute(parent, base, name, v); err != nil {
				return err
			}
		}
	}
	times := [2]unix.Timespec{timespec(h.AccessTime, h.ModTime), timespec(h.ModTime, h.ModTime)}
	if directory != "" || base == "." {
		return u.later(parent, base, directory, times)
	}
	if err := unix.UtimesNanoAt(parent, base, times[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("set times", err)
	}
	return nil
}

// chmod sets the mode of what was made here and is no link. A link that has taken its place meanwhile is refused.
func chmod(parent int, base string, mode uint32) error {
	err := unix.Fchmodat(parent, base, mode, unix.AT_SYMLINK_NOFOLLOW)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	// A link, or Linux before 6.6, which has no fchmodat2(2).
	fd, err := unix.Openat(parent, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode)
}

func timespec(t, otherwise time.Time) unix.Timespec {
	if t.IsZero() {
		t = otherwise
	}
	if t.IsZero() {
		t = time.Unix(0, 0)
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// dirTimes are a directory's times to be. The same directory may come under several names, through symbolic links.
type dirTimes struct {
	name  string
	times [2]unix.Timespec
}

// later notes the times of the directory base.
func (u *unpacker) later(parent int, base, name string, times [2]unix.Timespec) error {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("stat", err)
	}
	u.times[st.Ino] = dirTimes{name, times}
	if len(u.times) > maxTimes {
		return u.setTimes()
	}
	return nil
}

// setTimes sets the directories' times.
func (u *unpacker) setTimes() error {
	for ino, t := range u.times {
		name, times := t.name, t.times
		fd, err := openIn(u.root, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
				continue // replaced meanwhile
			}
			return fmt.Errorf("set times of %s: %w", quote(name), err)
		}
		var st unix.Stat_t
		if err = unix.Fstat(fd, &st); err == nil && st.Ino == ino {
			err = unix.UtimesNanoAt(fd, ".", times[:], 0)
		}
		_ = unix.Close(fd)
		if err != nil {
			return fmt.Errorf("set times of %s: %w", quote(name), err)
		}
	}
	clear(u.times)
	return nil
}

// setAttribute sets an extended attribute. Overlayfs's own would let an image reach into other layers, and labels are the host's
// business: both are left out.
func setAttribute(parent int, base, name, value string) error {
	if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") || name == "security.selinux" {
		return nil
	}
	err := unix.Lsetxattr(viaProc(parent, base), name, []byte(value), 0)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOTSUP) && (strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "system.")):
		return nil // this file system has none; who needs them puts the state directory elsewhere
	case errors.Is(err, unix.EPERM) && strings.HasPrefix(name, "user."):
		return nil // Linux allows them on files and directories only
	}
	return fmt.Errorf("set attribute %s: %w", quote(name), err)
}

// clearAttributes removes the extended attributes of a directory that is described anew, but for overlayfs's own. One that can't be
// removed is overwritten or stays, as with tar.
func clearAttributes(parent int, base string) {
	list := make([]byte, 64<<10) // XATTR_LIST_MAX
	path := viaProc(parent, base)
	n, err := unix.Llistxattr(path, list)
	if err != nil || n == 0 {
		return
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name != opaqueName && name != "security.selinux" {
			_ = unix.Lremovexattr(path, name)
		}
	}
}
