// SPDX-License-Identifier: Apache-2.0

// Package untar turns the tar stream of one image layer into a directory as overlayfs wants its layers.
//
// The stream is hostile. Every name is resolved inside the directory by openat2(2), so neither "..", nor absolute names, nor
// symbolic links made by earlier entries lead out of it; names that climb out are refused by name. Nothing is held in memory but
// the entry at hand and the times of directories.
//
// The result is what applying the archives of an image in order, each with tar, would give, seen through the overlay:
//
//   - An entry whose parent directory the layer lacks gets one with the owner, mode, attributes and times it has in the layers
//     below; a parent that is a symbolic link below is followed, as tar would.
//   - A hard link to a file that only a lower layer has copies that file into this layer first, as overlayfs itself would.
//   - A whiteout (".wh.NAME") hides what the layers below have; what this very layer has stays, wherever the whiteout stands in
//     the archive (OCI image specification, layer.md, "Whiteouts").
//   - A later entry replaces an earlier one of the same name; a directory over a directory keeps its content.
//
// As soon as anything was looked up below, the layer is only right on top of just these layers: Result.SelfContained says so.
//
// The package knows no compression, digests or stores; package image feeds it, package snapshot owns the directory.
package untar

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// Options say what Unpack may use.
type Options struct {
	// Lower gives the merged layers below, read-only. It is called at most once, when something must be looked up there; it may
	// wait until they are complete. Unpack closes what it returns. nil: this is the bottom layer.
	Lower func(ctx context.Context) (*os.File, error)
	// MaxBytes bounds the sum of all file sizes, holes included; MaxEntries the number of entries. 0: the defaults.
	MaxBytes   int64
	MaxEntries int
	// Room, if not nil, is asked every few megabytes and entries whether to go on: the disk may be filling up. Whether ctx is over is
	// looked at as often: holes of a sparse file take time and need nothing from the reader.
	Room func() error
	// Recipe, if not nil, receives what Rebuild needs to make the same archive again out of the directory.
	Recipe io.Writer
}

// The limits that hold unless Options says otherwise.
const (
	DefaultMaxBytes   = 256 << 30
	DefaultMaxEntries = 10_000_000
)

// Result says what became of a layer.
type Result struct {
	// RootSet says that the archive has an entry for the root directory.
	RootSet bool
	// SelfContained says that nothing was looked up in the layers below.
	SelfContained bool
	// Rebuildable says that Recipe and the directory give the archive again, byte for byte.
	Rebuildable bool
	// Entries counts the archive's entries.
	Entries int
}

// Unpack reads an archive to its end, trailing bytes included, and makes its entries below root.
func Unpack(ctx context.Context, root *os.File, r io.Reader, o Options) (res Result, err error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxEntries == 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	room := o.Room
	o.Room = func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if room == nil {
			return nil
		}
		return room()
	}
	u := &unpacker{Options: o, root: int(root.Fd()), buf: make([]byte, 256<<10), budget: o.MaxBytes}
	u.res.SelfContained = true
	u.tape = newTape(r, o.Recipe)
	u.res.Rebuildable = o.Recipe != nil
	defer func() { err = errors.Join(err, u.close()) }()
	if err := u.run(ctx); err != nil {
		return u.res, err
	}
	return u.res, nil
}

// unpacker is one run of Unpack.
type unpacker struct {
	Options
	res    Result
	root   int
	tape   *tape
	buf    []byte
	budget int64 // bytes that may still come
	since  int64 // bytes and entries since Room was asked
	below  below
	times  map[uint64]dirTimes // of directories, by inode: set when all their entries are made
	raised map[string]bool     // files copied from below for a link, by name: no entries of this layer
	links  bool                // the archive has symbolic links
	opaque bool                // the archive hides everything below its root
	// whiteouts and opaques say that some were made. Together they may be more than overlayfs takes: see prune.
	whiteouts, opaques bool
	// cached is the parent directory of the last entry, by the name it was asked for; -1: none.
	cached     int
	cachedName string
	cachedReal string
	rootName   string // of root, as the kernel has it; "": not asked yet
}

func (u *unpacker) close() error {
	u.forget()
	return errors.Join(u.below.close(), u.tape.close())
}

func (u *unpacker) run(ctx context.Context) error {
	u.cached = -1
	u.times, u.raised = map[uint64]dirTimes{}, map[string]bool{}
	tr := tar.NewReader(u.tape)
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("unpack: %w", context.Cause(ctx))
		}
		u.tape.record(true)
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // names are judged here
			return readError(err)
		}
		u.tape.record(false)
		if err := u.entry(ctx, h, tr); err != nil {
			return fmt.Errorf("unpack entry %s: %w", quote(h.Name), err)
		}
	}
	if err := u.trailer(); err != nil {
		return err
	}
	if u.opaque {
		if err := u.hideBelow(ctx); err != nil {
			return fmt.Errorf("unpack opaque root: %w", err)
		}
	}
	if err := u.prune(); err != nil {
		return err
	}
	return u.setTimes()
}

// readError tells a broken stream from a broken archive.
func readError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) {
		return errs.Newf(errs.Invalid, "read archive: %w", err)
	}
	return fmt.Errorf("read archive: %w", err)
}

// trailer reads what follows the archive's end: the digest covers it.
func (u *unpacker) trailer() error {
	for {
		n, err := u.tape.Read(u.buf)
		if e := u.spend(int64(n)); e != nil {
			return e
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
	}
}

// entry makes one entry.
func (u *unpacker) entry(ctx context.Context, h *tar.Header, body io.Reader) error {
	if u.res.Entries++; u.res.Entries > u.MaxEntries {
		return errs.Newf(errs.Exhausted, "more than %d entries", u.MaxEntries)
	}
	if err := u.spend(512); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	if name == "" {
		if h.Typeflag != tar.TypeDir {
			return errs.Newf(errs.Invalid, "the root can only be a directory, not %s", kind(h.Typeflag))
		}
		u.res.RootSet = true
		return u.attributes(u.root, ".", "", h)
	}
	dir, base := split(name)
	hidden, whiteout := strings.CutPrefix(base, whiteoutPrefix)
	parent, real, err := u.parent(ctx, dir)
	if whiteout && errors.Is(err, unix.ENOTDIR) {
		return nil // umoci says of a directory that became a file that all its files are gone
	}
	if err != nil {
		return err
	}
	if whiteout {
		return u.whiteout(parent, real, hidden)
	}
	n := node{parent: parent, base: base, path: join(real, base), name: name}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		return u.file(n, h, body)
	case tar.TypeDir:
		return u.directory(n, h)
	case tar.TypeSymlink:
		u.links = true
		return u.special(n, h, func() error { return unix.Symlinkat(h.Linkname, n.parent, n.base) })
	case tar.TypeLink:
		return u.link(ctx, n, h.Linkname)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.device(n, h)
	}
	return errs.Newf(errs.Invalid, "unknown entry type %q", h.Typeflag)
}

// spend counts what was made, and stops a bomb.
func (u *unpacker) spend(n int64) error {
	if err := u.afford(n); err != nil {
		return err
	}
	u.budget -= n
	if u.since += n; u.since < 32<<20 {
		return nil
	}
	u.since = 0
	return u.Room()
}

// afford says whether n bytes more would still do.
func (u *unpacker) afford(n int64) error {
	if n > u.budget {
		return errs.Newf(errs.Exhausted, "larger than %d bytes unpacked", u.MaxBytes)
	}
	return nil
}

func kind(flag byte) string {
	switch flag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		return "a file"
	case tar.TypeDir:
		return "a directory"
	case tar.TypeSymlink:
		return "a symbolic link"
	case tar.TypeLink:
		return "a hard link"
	case tar.TypeChar, tar.TypeBlock:
		return "a device"
	case tar.TypeFifo:
		return "a fifo"
	}
	return fmt.Sprintf("type %q", flag)
}

// quote shortens a name for an error.
func quote(name string) string {
	if len(name) > 200 {
		return fmt.Sprintf("%q…", name[:200])
	}
	return fmt.Sprintf("%q", name)
}
