// SPDX-License-Identifier: Apache-2.0

package untar

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// maxLinks is how many symbolic links a path may lead through, as the kernel's own limit.
const maxLinks = 40

// clean gives a name without ".", ".." and slashes at its ends; the root is "". A name that climbs out is refused; a leading slash
// means the layer's root.
func clean(name string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", errs.Newf(errs.Invalid, "the name has a zero byte")
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			if len(parts) == 0 {
				return "", errs.Newf(errs.Invalid, "the name climbs out of the layer")
			}
			parts = parts[:len(parts)-1]
		default:
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "/"), nil
}

func split(name string) (dir, base string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return "", name
}

func join(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}

// openIn opens path inside dir; links and ".." stay inside. It retries EAGAIN: a rename elsewhere raced with "..".
func openIn(dir int, path string, flags uint64) (int, error) {
	if path == "" {
		path = "."
	}
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range 64 {
		fd, err := unix.Openat2(dir, path, &how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// parent opens the directory dir of the layer and makes it when the layer lacks it. The descriptor stays valid until the next
// call; it is O_PATH. real is the directory's name without symbolic links: they may be replaced later.
func (u *unpacker) parent(ctx context.Context, dir string) (fd int, real string, err error) {
	if dir == "" {
		return u.root, "", nil
	}
	if u.cached >= 0 && u.cachedName == dir {
		return u.cached, u.cachedReal, nil
	}
	u.forget()
	fd, err = openIn(u.root, dir, unix.O_PATH|unix.O_DIRECTORY)
	real = dir
	if err == nil && u.links {
		real, err = u.realName(fd)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		var p place
		p, err = u.walk(ctx, dir)
		fd, real = p.fd, p.name
	}
	if err != nil {
		return -1, "", fmt.Errorf("open parent directory: %w", err)
	}
	u.cached, u.cachedName, u.cachedReal = fd, dir, real
	if real != dir {
		u.cachedName = "" // it led through a link, which any entry may take the place of: ask again
	}
	return fd, real, nil
}

// realName asks the kernel for the name of a directory of the layer.
func (u *unpacker) realName(fd int) (string, error) {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", err
	}
	if u.rootName == "" {
		if u.rootName, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", u.root)); err != nil {
			return "", err
		}
	}
	name, ok := strings.CutPrefix(path, u.rootName)
	if !ok {
		return "", fmt.Errorf("a directory has left the layer: %s", quote(path))
	}
	return strings.TrimPrefix(name, "/"), nil
}

// forget drops the cached parent. It must be called whenever a name may lead elsewhere than before.
func (u *unpacker) forget() {
	if u.cached >= 0 {
		_ = unix.Close(u.cached)
	}
	u.cached, u.cachedName, u.cachedReal = -1, "", ""
}

// place is a directory of the layer that a walk came to.
type place struct {
	fd   int
	name string // its name without symbolic links
	// hidden says that nothing of the layers below shows here: the directory, or one above it, is opaque.
	hidden bool
}

// walk goes to dir one component at a time, looking into this layer first and then below, makes what is missing, and follows
// symbolic links of both. The caller closes the place's descriptor.
func (u *unpacker) walk(ctx context.Context, dir string) (place, error) {
	w := walk{u: u, rest: strings.Split(dir, "/"), stack: []place{{fd: u.root, hidden: u.opaque}}}
	defer w.closeAll()
	for len(w.rest) > 0 {
		if err := w.step(ctx); err != nil {
			return place{fd: -1}, err
		}
	}
	p := w.top()
	fd, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, 0)
	p.fd = fd
	return p, err
}

type walk struct {
	u     *unpacker
	rest  []string
	stack []place // from the root to where the walk is
	links int
}

func (w *walk) top() place { return w.stack[len(w.stack)-1] }

func (w *walk) pop() {
	if len(w.stack) > 1 {
		_ = unix.Close(w.top().fd)
		w.stack = w.stack[:len(w.stack)-1]
	}
}

func (w *walk) closeAll() {
	for len(w.stack) > 1 {
		w.pop()
	}
}

// maxDepth bounds the directories that one walk or removal holds open.
const maxDepth = 1024

func (w *walk) push(base string, hidden bool) error {
	at := w.top()
	if len(w.stack) > maxDepth {
		return errs.Newf(errs.Invalid, "more than %d directories deep", maxDepth)
	}
	fd, err := unix.Openat(at.fd, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	w.stack = append(w.stack, place{fd: fd, name: join(at.name, base), hidden: hidden})
	return nil
}

func (w *walk) step(ctx context.Context) error {
	base := w.rest[0]
	w.rest = w.rest[1:]
	switch base {
	case "", ".":
		return nil
	case "..":
		w.pop()
		return nil
	}
	at := w.top()
	var st unix.Stat_t
	err := unix.Fstatat(at.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return w.missing(ctx, base)
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return w.push(base, at.hidden || isOpaque(at.fd, base))
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		target, err := readlink(at.fd, base)
		if err != nil {
			return err
		}
		return w.follow(target)
	case isWhiteout(&st): // removed, and now it is there again
		if err := unix.Unlinkat(at.fd, base, 0); err != nil {
			return err
		}
		if err := makeDirectory(at.fd, base); err != nil {
			return err
		}
		w.u.opaques = true
		return errors.Join(setOpaque(at.fd, base), w.push(base, true))
	}
	return unix.ENOTDIR
}

// missing makes the directory base, which this layer lacks, after what the layers below say of it.
func (w *walk) missing(ctx context.Context, base string) error {
	at := w.top()
	if at.hidden {
		if err := makeDirectory(at.fd, base); err != nil {
			return err
		}
		return w.push(base, true)
	}
	name := join(at.name, base)
	st, link, err := w.u.lowerStat(ctx, name)
	switch {
	case errors.Is(err, unix.ENOENT):
		if err := makeDirectory(at.fd, base); err != nil {
			return err
		}
	case err != nil:
		return err
	case link != "":
		return w.follow(link)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s in a lower layer: %w", quote(name), unix.ENOTDIR)
	default:
		if err := w.u.copyDirectory(at.fd, base, name); err != nil {
			return err
		}
	}
	return w.push(base, false)
}

func (w *walk) follow(target string) error {
	if w.links++; w.links > maxLinks {
		return unix.ELOOP
	}
	if strings.HasPrefix(target, "/") {
		w.closeAll()
	}
	w.rest = append(strings.Split(target, "/"), w.rest...)
	return nil
}

func readlink(dir int, base string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, base, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// makeDirectory makes a directory as one without an entry anywhere gets it.
func makeDirectory(dir int, base string) error {
	if err := unix.Mkdirat(dir, base, 0o755); err != nil {
		return err
	}
	if err := unix.Fchownat(dir, base, 0, 0, unix.AT_SYMLINK_NOFOLLOW); err != nil { // a setgid parent passes its group on
		return err
	}
	return chmod(dir, base, 0o755) // the umask must not count
}

// viaProc names an entry for the system calls that take no directory descriptor. The last component is not followed by the l-forms.
func viaProc(dir int, base string) string {
	if base == "." {
		return fmt.Sprintf("/proc/self/fd/%d/.", dir)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir, base)
}
