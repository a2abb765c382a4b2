// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"crishim.dev/image/registry"
	"crishim.dev/internal/errs"
)

// bundle is a set of files that images are imported from: a directory, or a tar archive that can be read at any place.
type bundle interface {
	// open opens a file by its slash-separated name. A missing one is fs.ErrNotExist.
	open(name string) (r io.ReadCloser, size int64, err error)
	io.Closer
}

// openBundle opens a directory, or an archive: plain, or compressed with gzip or zstd, in which case it is unpacked to an unnamed
// file in scratch first.
func openBundle(ctx context.Context, name, scratch string) (bundle, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		root, err := os.OpenRoot(name)
		if err != nil {
			return nil, err
		}
		return dirBundle{root}, nil
	}
	if !st.Mode().IsRegular() {
		return nil, errs.Newf(errs.Invalid, "%s is neither a directory nor a file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	plain, err := plainFile(ctx, f, scratch)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	b := &tarBundle{f: plain, members: map[string]member{}}
	if err := b.index(ctx); err != nil {
		return nil, errors.Join(errs.Newf(errs.Invalid, "read archive %s: %w", name, err), b.Close())
	}
	return b, nil
}

// plainFile gives f, or an unnamed file with what is compressed in it.
func plainFile(ctx context.Context, f *os.File, scratch string) (*os.File, error) {
	magic := make([]byte, 4)
	if _, err := io.ReadFull(f, magic); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	var r io.Reader
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, err
		}
		r = z
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(f, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = z
	default:
		return f, nil
	}
	fd, err := unix.Open(scratch, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "make unnamed file", Path: scratch, Err: err}
	}
	out := os.NewFile(uintptr(fd), f.Name())
	if _, err := io.Copy(out, &stoppable{ctx, r}); err != nil {
		return nil, errors.Join(fmt.Errorf("decompress %s: %w", f.Name(), err), out.Close())
	}
	return out, f.Close()
}

// stoppable ends a long copy with its context.
type stoppable struct {
	ctx context.Context //nolint:containedctx // a reader's
	r   io.Reader
}

func (s *stoppable) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(p)
}

// dirBundle is a directory. Links that lead out of it are refused by os.Root.
type dirBundle struct{ root *os.Root }

func (d dirBundle) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errs.Newf(errs.Invalid, "%s is not a file", name)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, st.Size(), nil
}

func (d dirBundle) Close() error { return d.root.Close() }

// tarBundle is an uncompressed tar archive. Its members are found once and then read in place, several at a time.
type tarBundle struct {
	f       *os.File
	members map[string]member
}

type member struct {
	off, size int64
	link      string // another member, if this one is a link
}

// maxMembers bounds an archive of images: each layer and document is one.
const maxMembers = 100_000

// index notes where each member begins.
func (b *tarBundle) index(ctx context.Context) error {
	pos := &position{f: b.f}
	tr := tar.NewReader(pos)
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return err
		}
		if len(b.members) >= maxMembers {
			return fmt.Errorf("more than %d members", maxMembers)
		}
		name := path.Clean("/" + h.Name)[1:]
		switch h.Typeflag {
		case tar.TypeReg:
			b.members[name] = member{off: pos.at, size: h.Size}
		case tar.TypeSymlink: // docker save of before 1.10.0 … 25: equal layers
			b.members[name] = member{link: path.Clean("/" + path.Dir(name) + "/" + h.Linkname)[1:]}
		case tar.TypeLink:
			b.members[name] = member{link: path.Clean("/" + h.Linkname)[1:]}
		}
	}
}

// position is a file being read that knows where. It can seek, so that the tar reader skips content.
type position struct {
	f  *os.File
	at int64
}

func (p *position) Read(b []byte) (int, error) {
	n, err := p.f.ReadAt(b, p.at)
	p.at += int64(n)
	return n, err
}

// Seek is io.Seeker's.
func (p *position) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
		p.at = off
	case io.SeekCurrent:
		p.at += off
	default:
		st, err := p.f.Stat()
		if err != nil {
			return 0, err
		}
		p.at = st.Size() + off
	}
	return p.at, nil
}

func (b *tarBundle) open(name string) (io.ReadCloser, int64, error) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	for range 8 {
		m, ok := b.members[name]
		if !ok {
			break
		}
		if m.link == "" {
			return io.NopCloser(io.NewSectionReader(b.f, m.off, m.size)), m.size, nil
		}
		name = m.link
	}
	return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

func (b *tarBundle) Close() error { return b.f.Close() }

// readMember reads a small file of a bundle.
func readMember(b bundle, name string, limit int64) ([]byte, error) {
	r, size, err := b.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > limit {
		return nil, errs.Newf(errs.Invalid, "%s has %d bytes; at most %d", name, size, limit)
	}
	return io.ReadAll(io.LimitReader(r, limit))
}

// layoutSource gets an image's parts from an OCI layout.
type layoutSource struct{ b bundle }

func blobName(digest string) string { return "blobs/sha256/" + strings.TrimPrefix(digest, "sha256:") }

func (l layoutSource) manifest(ctx context.Context, d registry.Descriptor) ([]byte, error) {
	return readAll(ctx, l, d, registry.MaxManifest)
}

func (l layoutSource) blob(_ context.Context, d registry.Descriptor) (blobReader, error) {
	if !registry.ValidDigest(d.Digest) {
		return nil, errs.Newf(errs.Invalid, "malformed digest %q", d.Digest)
	}
	r, _, err := l.b.open(blobName(d.Digest))
	if err != nil {
		return nil, err
	}
	return newChecked(r, d), nil
}
