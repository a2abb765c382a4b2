// SPDX-License-Identifier: Apache-2.0

package untar

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// node is where an entry goes.
type node struct {
	parent int    // O_PATH descriptor of its directory
	base   string // its last component
	path   string // its name in the layer, links of lower layers resolved
	name   string // its name in the archive, cleaned
}

// file makes a regular file.
func (u *unpacker) file(n node, h *tar.Header, body io.Reader) error {
	if err := u.afford(h.Size); err != nil { // before its first byte: a sparse file claims much and brings little
		return err
	}
	fd, err := u.create(n)
	if err != nil {
		return err
	}
	err = u.fill(fd, n, h, body)
	if e := unix.Close(fd); err == nil && e != nil {
		err = os.NewSyscallError("close", e)
	}
	if err != nil {
		return err
	}
	return u.attributes(n.parent, n.base, "", h)
}

func (u *unpacker) create(n node) (int, error) {
	const flags = unix.O_CREAT | unix.O_EXCL | unix.O_WRONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(n.parent, n.base, flags, 0o600)
	if !errors.Is(err, unix.EEXIST) {
		return fd, err
	}
	if err := u.replace(n); err != nil {
		return -1, err
	}
	return unix.Openat(n.parent, n.base, flags, 0o600)
}

// castagnoli is a read-only table; the polynomial has an instruction on amd64 and arm64.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// fill writes a file's content, with holes where a sparse entry has them.
func (u *unpacker) fill(fd int, n node, h *tar.Header, body io.Reader) error {
	sparse := isSparse(h)
	if sparse {
		u.res.Rebuildable = false // the archive's own map of holes is not kept
	}
	var size int64
	var sum uint32
	for {
		read, err := io.ReadFull(body, u.buf)
		chunk := u.buf[:read]
		if e := u.spend(int64(read)); e != nil {
			return e
		}
		if e := writeAll(fd, chunk, sparse); e != nil {
			return e
		}
		size += int64(read)
		sum = crc32.Update(sum, castagnoli, chunk)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && size == h.Size {
			break
		}
		if err != nil {
			return fmt.Errorf("read content: %w", err)
		}
	}
	if size != h.Size {
		return fmt.Errorf("read content: %d bytes of %d: %w", size, h.Size, io.ErrUnexpectedEOF)
	}
	if sparse {
		if err := unix.Ftruncate(fd, size); err != nil {
			return os.NewSyscallError("truncate", err)
		}
	}
	return u.tape.file(n.path, size, sum)
}

func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if len(k) > 11 && k[:11] == "GNU.sparse." {
			return true
		}
	}
	return false
}

const block = 4096

// writeAll writes b at the file's position. With holes, blocks of zeros are skipped instead.
func writeAll(fd int, b []byte, holes bool) error {
	for len(b) > 0 {
		run := len(b)
		if holes {
			run = min(block, len(b))
			if allZero(b[:run]) {
				if _, err := unix.Seek(fd, int64(run), io.SeekCurrent); err != nil {
					return os.NewSyscallError("seek", err)
				}
				b = b[run:]
				continue
			}
		}
		n, err := unix.Write(fd, b[:run])
		if err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("write", err)
		}
		b = b[max(n, 0):]
	}
	return nil
}

func allZero(b []byte) bool {
	return len(b) > 0 && b[0] == 0 && bytes.Equal(b[:len(b)-1], b[1:])
}

// directory makes a directory, or gives the one there its metadata.
func (u *unpacker) directory(n node, h *tar.Header) error {
	err := unix.Mkdirat(n.parent, n.base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err := unix.Fstatat(n.parent, n.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			clearAttributes(n.parent, n.base)
			return u.attributes(n.parent, n.base, n.path, h)
		}
		if err := u.replace(n); err != nil {
			return err
		}
		if err := unix.Mkdirat(n.parent, n.base, 0o700); err != nil {
			return err
		}
		// What stood here hid the layers below, and it came before this directory.
		u.opaques = true
		if err := setOpaque(n.parent, n.base); err != nil {
			return err
		}
	} else if err != nil {
		return os.NewSyscallError("mkdir", err)
	}
	return u.attributes(n.parent, n.base, n.path, h)
}

// special makes what one system call makes.
func (u *unpacker) special(n node, h *tar.Header, mk func() error) error {
	u.forgetUnless(n)
	err := mk()
	if errors.Is(err, unix.EEXIST) {
		if err := u.replace(n); err != nil {
			return err
		}
		err = mk()
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", kind(h.Typeflag), err)
	}
	return u.attributes(n.parent, n.base, "", h)
}

// forgetUnless marks the cached parent stale without closing it: n still uses it.
func (u *unpacker) forgetUnless(n node) {
	if u.cached == n.parent {
		u.cachedName = ""
		return
	}
	u.forget()
}

// device makes a device or fifo. A character device 0:0 is what overlayfs takes for a whiteout, and acts as one.
func (u *unpacker) device(n node, h *tar.Header) error {
	mode := uint32(h.Mode) & 0o7777
	switch h.Typeflag {
	case tar.TypeChar:
		mode |= unix.S_IFCHR
	case tar.TypeBlock:
		mode |= unix.S_IFBLK
	default:
		mode |= unix.S_IFIFO
		h.Devmajor, h.Devminor = 0, 0
	}
	if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
		return errs.Newf(errs.Invalid, "device number %d:%d", h.Devmajor, h.Devminor)
	}
	dev := int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	return u.special(n, h, func() error { return unix.Mknodat(n.parent, n.base, mode, dev) })
}

// link makes a hard link. The target is in this layer, or is copied into it from below.
func (u *unpacker) link(ctx context.Context, n node, linkname string) error {
	target, err := clean(linkname)
	if err != nil {
		return fmt.Errorf("link to %s: %w", quote(linkname), err)
	}
	if target == "" {
		return errs.Newf(errs.Invalid, "link to the root directory")
	}
	// The parent's descriptor would be dropped by the walk to the target.
	own, err := unix.FcntlInt(uintptr(n.parent), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("dup", err)
	}
	defer unix.Close(own)
	n.parent = own
	dir, base := split(target)
	parent, _, err := u.parent(ctx, dir)
	if err != nil {
		return fmt.Errorf("link to %s: %w", quote(target), err)
	}
	var st unix.Stat_t
	err = unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		if err := u.raise(ctx, dir, base); err != nil {
			return fmt.Errorf("link to %s: %w", quote(target), err)
		}
		if parent, _, err = u.parent(ctx, dir); err == nil {
			err = unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW)
		}
	}
	switch {
	case err != nil:
		return fmt.Errorf("link to %s: %w", quote(target), err)
	case isWhiteout(&st):
		return errs.Newf(errs.Invalid, "link to %s, which this layer removes", quote(target))
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return errs.Newf(errs.Invalid, "link to the directory %s", quote(target))
	}
	return u.hardlink(n, parent, base, st.Ino)
}

func (u *unpacker) hardlink(n node, parent int, base string, ino uint64) error {
	err := unix.Linkat(parent, base, n.parent, n.base, 0)
	if !errors.Is(err, unix.EEXIST) {
		return os.NewSyscallError("link", err)
	}
	var st unix.Stat_t
	if unix.Fstatat(n.parent, n.base, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Ino == ino {
		delete(u.raised, n.path) // to itself: now an entry has it
		return nil
	}
	// The cached parent, which may be what is replaced, must stay open for a moment.
	own, err := unix.FcntlInt(uintptr(parent), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("dup", err)
	}
	defer unix.Close(own)
	if err := u.replace(n); err != nil {
		return err
	}
	return os.NewSyscallError("link", unix.Linkat(own, base, n.parent, n.base, 0))
}

// replace removes what stands in an entry's place.
func (u *unpacker) replace(n node) error {
	var st unix.Stat_t
	if err := unix.Fstatat(n.parent, n.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("stat", err)
	}
	u.forgetUnless(n)
	raised := u.raised[n.path]
	delete(u.raised, n.path)
	if !isWhiteout(&st) && !raised {
		u.res.Rebuildable = false // what the archive said first is lost
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return os.NewSyscallError("unlink", unix.Unlinkat(n.parent, n.base, 0))
	}
	for name := range u.raised {
		if strings.HasPrefix(name, n.path+"/") {
			delete(u.raised, name)
		}
	}
	return removeTree(n.parent, n.base, 0)
}

// removeTree removes a directory that this archive made.
func removeTree(dir int, base string, depth int) error {
	if depth > maxDepth {
		return errs.Newf(errs.Invalid, "more than %d directories deep", maxDepth)
	}
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	for {
		entries, err := f.ReadDir(256)
		for _, e := range entries {
			if e.IsDir() {
				err = removeTree(fd, e.Name(), depth+1)
			} else {
				err = os.NewSyscallError("unlink", unix.Unlinkat(fd, e.Name(), 0))
			}
			if err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || len(entries) == 0 {
			break
		}
		if err != nil {
			return err
		}
	}
	return os.NewSyscallError("rmdir", unix.Unlinkat(dir, base, unix.AT_REMOVEDIR))
}
