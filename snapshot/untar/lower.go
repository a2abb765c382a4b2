// SPDX-License-Identifier: Apache-2.0

package untar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// below is the merged layers below, once they were needed. The zero value has not asked.
type below struct {
	asked bool
	root  *os.File // nil: there are none
}

func (l *below) close() error {
	if l.root == nil {
		return nil
	}
	return l.root.Close()
}

// lowerRoot asks for the layers below. From here on the layer is no longer self-contained, whatever they say.
func (u *unpacker) lowerRoot(ctx context.Context) (*os.File, error) {
	if u.below.asked {
		return u.below.root, nil
	}
	u.below.asked, u.res.SelfContained = true, false
	if u.Lower == nil {
		return nil, nil
	}
	root, err := u.Lower(ctx)
	if err != nil {
		return nil, fmt.Errorf("look into the layers below: %w", err)
	}
	u.below.root = root
	return root, nil
}

// openBelow opens name, which has no symbolic link before its last component, in the layers below.
func (u *unpacker) openBelow(ctx context.Context, name string, flags uint64) (*os.File, error) {
	root, err := u.lowerRoot(ctx)
	if err != nil {
		return nil, err
	}
	if root == nil {
		return nil, unix.ENOENT
	}
	// A link in the middle means that this layer has a directory of its own there, which nothing below shows through.
	how := unix.OpenHow{Flags: flags | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(int(root.Fd()), name, &how)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		err = unix.ENOENT
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// lowerStat says what the layers below have under name. link is its target if it is a symbolic link.
func (u *unpacker) lowerStat(ctx context.Context, name string) (st unix.Stat_t, link string, err error) {
	f, err := u.openBelow(ctx, name, unix.O_PATH)
	if err != nil {
		return st, "", err
	}
	defer f.Close()
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return st, "", os.NewSyscallError("stat", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		link, err = readlink(int(f.Fd()), "")
	}
	return st, link, err
}

// copyDirectory makes the directory base with the metadata that name has below.
func (u *unpacker) copyDirectory(dir int, base, name string) error {
	from, err := u.openBelow(context.Background(), name, unix.O_RDONLY|unix.O_DIRECTORY) // open by now
	if err != nil {
		return fmt.Errorf("open %s below: %w", quote(name), err)
	}
	defer from.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return os.NewSyscallError("stat", err)
	}
	if err := unix.Mkdirat(dir, base, 0o700); err != nil {
		return os.NewSyscallError("mkdir", err)
	}
	if err := copyMetadata(from, dir, base, &st); err != nil {
		return err
	}
	return u.later(dir, base, name, [2]unix.Timespec{st.Atim, st.Mtim})
}

// maxRaised bounds the files copied from below: each whiteout looks through them.
const maxRaised = 100_000

// raise copies the file base of the directory dir from below into this layer, as overlayfs does before it links one.
func (u *unpacker) raise(ctx context.Context, dir, base string) error {
	to, err := u.walk(ctx, dir)
	if err != nil {
		return err
	}
	defer unix.Close(to.fd)
	if to.hidden {
		return errs.As(errs.Invalid, unix.ENOENT)
	}
	name := join(to.name, base)
	st, link, err := u.lowerStat(ctx, name)
	if errors.Is(err, unix.ENOENT) {
		return errs.As(errs.Invalid, unix.ENOENT)
	}
	if err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return errs.Newf(errs.Invalid, "it is a directory below")
	case unix.S_IFREG:
		err = u.copyFile(ctx, to.fd, base, name)
	case unix.S_IFLNK:
		u.links = true
		err = unix.Symlinkat(link, to.fd, base)
	default:
		err = unix.Mknodat(to.fd, base, st.Mode, int(st.Rdev))
	}
	if err != nil {
		return fmt.Errorf("copy from below: %w", err)
	}
	if u.raised[name] = true; len(u.raised) > maxRaised {
		return errs.Newf(errs.Exhausted, "more than %d files of the layers below are linked to", maxRaised)
	}
	from, err := u.openBelow(ctx, name, unix.O_PATH)
	if err != nil {
		return fmt.Errorf("copy from below: %w", err)
	}
	defer from.Close()
	if err := copyMetadata(from, to.fd, base, &st); err != nil {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return os.NewSyscallError("set times", unix.UtimesNanoAt(to.fd, base, times, unix.AT_SYMLINK_NOFOLLOW))
}

func (u *unpacker) copyFile(ctx context.Context, dir int, base, name string) error {
	from, err := u.openBelow(ctx, name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer from.Close()
	fd, err := unix.Openat(dir, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	to := os.NewFile(uintptr(fd), base)
	n, err := io.Copy(to, from) // copy_file_range(2): shared extents where the file system can
	return errors.Join(err, to.Close(), u.spend(n))
}

// copyMetadata copies owner, mode and extended attributes. from may be O_PATH.
func copyMetadata(from *os.File, dir int, base string, st *unix.Stat_t) error {
	if err := unix.Fchownat(dir, base, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("chown", err)
	}
	link := st.Mode&unix.S_IFMT == unix.S_IFLNK
	if !link {
		if err := chmod(dir, base, st.Mode&0o7777); err != nil {
			return os.NewSyscallError("chmod", err)
		}
	}
	if link {
		return nil // no attribute that matters can be on one
	}
	path := fmt.Sprintf("/proc/self/fd/%d", from.Fd())
	list := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Listxattr(path, list)
	if err != nil || n == 0 {
		return nil // none, or a file system without them
	}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		n, err := unix.Getxattr(path, name, value)
		if err != nil {
			return os.NewSyscallError("read attribute "+name, err)
		}
		if err := setAttribute(dir, base, name, string(value[:n])); err != nil {
			return err
		}
	}
	return nil
}

// hideBelow carries out a whiteout of everything below the root: overlayfs knows no opaque root, so each name is hidden by itself.
func (u *unpacker) hideBelow(ctx context.Context) error {
	root, err := u.lowerRoot(ctx)
	if err != nil || root == nil {
		return err
	}
	fd, err := openIn(int(root.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	f := os.NewFile(uintptr(fd), "/")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := u.hide(u.root, name); err != nil {
			return err
		}
	}
	return nil
}
