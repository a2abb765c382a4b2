// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bufio"
	"bytes"
	"compress/flate"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"crishim.dev/image/registry"
	"crishim.dev/internal/errs"
	"crishim.dev/snapshot"
	"crishim.dev/snapshot/untar"
)

// blobReader reads a blob once.
type blobReader = io.ReadCloser

// checked reads a blob and, at its end, compares it with its descriptor.
type checked struct {
	r    io.ReadCloser
	want registry.Descriptor
	sum  hash.Hash
	n    int64
}

func newChecked(r io.ReadCloser, want registry.Descriptor) *checked {
	return &checked{r: r, want: want, sum: sha256.New()}
}

// Read gives io.EOF only if everything was right.
func (c *checked) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.sum.Write(p[:n])
	c.n += int64(n)
	switch {
	case c.n > c.want.Size:
		return n, errs.Newf(errs.Invalid, "it is larger than the %d bytes its descriptor says", c.want.Size)
	case !errors.Is(err, io.EOF):
		return n, err
	case c.n < c.want.Size:
		return n, errs.Newf(errs.Invalid, "it ended after %d of %d bytes", c.n, c.want.Size)
	}
	if got := "sha256:" + hex.EncodeToString(c.sum.Sum(nil)); got != c.want.Digest {
		return n, errs.Newf(errs.Invalid, "its digest is %s, not %s", got, c.want.Digest)
	}
	return n, err
}

func (c *checked) Close() error { return c.r.Close() }

// readAll reads a small blob.
func readAll(ctx context.Context, f fetcher, d registry.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, errs.Newf(errs.Invalid, "fetch %s: %d bytes; at most %d", d.Digest, d.Size, limit)
	}
	r, err := f.blob(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", d.Digest, err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", d.Digest, err)
	}
	return b, nil
}

// How much of its output a zstd stream may refer back to, and so how much memory reading it takes.
const (
	// window is what any number of layers at work may have: all that tools make by default.
	window = 8 << 20
	// maxWindow is what one layer at a time may have: the largest that "zstd --ultra" makes.
	maxWindow = 128 << 20
)

// decompress finds out by its first bytes what a layer is packed with; media types are often wrong. most bounds the window of zstd.
func decompress(r io.Reader, most uint64) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	magic, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, compressionError(err)
		}
		return z, nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(most))
		if err != nil {
			return nil, compressionError(err)
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(magic, []byte("BZh")), bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X'}):
		return nil, errs.Newf(errs.Unsupported, "decompress: neither gzip nor zstd nor plain tar")
	}
	return io.NopCloser(b), nil
}

// compressionError marks what is wrong with the data, as opposed to what is wrong with its source.
func compressionError(err error) error {
	var corrupt flate.CorruptInputError
	for _, e := range []error{gzip.ErrHeader, gzip.ErrChecksum, zstd.ErrMagicMismatch, zstd.ErrCRCMismatch, zstd.ErrWindowSizeExceeded, zstd.ErrDecoderSizeExceeded} {
		if errors.Is(err, e) {
			return errs.Newf(errs.Invalid, "decompress: %w", err)
		}
	}
	if errors.As(err, &corrupt) {
		return errs.Newf(errs.Invalid, "decompress: %w", err)
	}
	return fmt.Errorf("decompress: %w", err)
}

// job is one layer of one image to be made.
type job struct {
	blob   registry.Descriptor
	diffID string
	chain  snapshot.Key // its key if it depends on the layers below
	source fetcher
	window uint64 // of zstd, at most
	// below waits for the layers below and mounts them; nil for the bottom layer.
	below func(ctx context.Context) (*os.File, error)
}

// recipeName is the side file that lets a layer's archive be made again.
const recipeName = "recipe.zst"

// make downloads, checks and unpacks a layer, all at once. It gives the key under which it was committed.
func (s *Store) make(ctx context.Context, j job) (key snapshot.Key, err error) {
	n, fetched := s.progress.fetching(j.blob.Digest)
	defer fetched()
	ctx, end := context.WithCancelCause(ctx)
	cancel := func() { end(errDone) }
	defer cancel() // before the readers below are waited for
	draft, err := s.snap.Prepare(ctx)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, draft.Discard()) }()

	blob, err := j.source.blob(ctx, j.blob)
	if err != nil {
		return "", err
	}
	defer blob.Close()
	raw := readAhead(counted{blob, n})
	defer raw.Close()
	defer cancel()
	res, diffID, err := s.unpack(ctx, cancel, draft, raw, j)
	if err != nil {
		return "", err
	}
	// Bytes after the compressed stream count for the digest.
	if _, err := io.Copy(io.Discard, raw); err != nil {
		return "", err
	}
	if diffID != j.diffID {
		return "", errs.Newf(errs.Invalid, "its diff ID is %s, the image's configuration says %s", diffID, j.diffID)
	}
	l := snapshot.Layer{Key: snapshot.DiffKey(j.diffID), DiffID: j.diffID, RootSet: res.RootSet}
	if !res.SelfContained {
		l.Key = j.chain
	}
	if l.Bytes, l.Inodes, err = snapshot.MeasureDir(ctx, draft.Root().Name()); err != nil {
		return "", err
	}
	if err := draft.Commit(ctx, l); err != nil {
		return "", err
	}
	return l.Key, nil
}

// unpack reads a layer's compressed bytes into a draft and computes its diff ID.
func (s *Store) unpack(ctx context.Context, cancel func(), draft *snapshot.Draft, raw io.Reader, j job) (res untar.Result, diffID string, err error) {
	z, err := decompress(raw, j.window)
	if err != nil {
		return res, "", err
	}
	defer z.Close()
	sum := sha256.New()
	tar := readAhead(&decompressed{z, sum})
	defer func() {
		if err != nil {
			cancel() // or the reader would wait for a slow registry
		}
		_ = tar.Close()
	}()
	recipe, err := newRecipe(draft)
	if err != nil {
		return res, "", err
	}
	res, err = untar.Unpack(ctx, draft.Root(), tar, untar.Options{Lower: j.below, Room: s.room, Recipe: recipe})
	if err = errors.Join(err, recipe.finish(res.Rebuildable && err == nil)); err != nil {
		return res, "", err
	}
	return res, "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}

// decompressed hashes what a decompressor gives and names its errors.
type decompressed struct {
	r   io.Reader
	sum hash.Hash
}

func (d *decompressed) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	d.sum.Write(p[:n])
	if err != nil && !errors.Is(err, io.EOF) {
		err = compressionError(err)
	}
	return n, err
}

// recipe is the side file being written.
type recipe struct {
	f *os.File
	z *zstd.Encoder
}

func newRecipe(draft *snapshot.Draft) (*recipe, error) {
	f, err := draft.SideFile(recipeName)
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(1<<20))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write recipe: %w", err), f.Close())
	}
	return &recipe{f, z}, nil
}

// Write compresses part of the recipe.
func (r *recipe) Write(p []byte) (int, error) { return r.z.Write(p) }

// finish closes the file, and removes it when it is of no use.
func (r *recipe) finish(keep bool) error {
	err := errors.Join(r.z.Close(), r.f.Close())
	if !keep {
		err = errors.Join(err, os.Remove(r.f.Name()))
	}
	return err
}

// room refuses to fill the file system to the brim.
func (s *Store) room() error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.snap.Dir(), &st); err != nil {
		return os.NewSyscallError("statfs", err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < s.o.MinFree {
		return errs.Newf(errs.Exhausted, "the file system of %s has only %d MiB left", s.snap.Dir(), free>>20)
	}
	if st.Files > 0 && st.Ffree < 1000 {
		return errs.Newf(errs.Exhausted, "the file system of %s has only %d inodes left", s.snap.Dir(), st.Ffree)
	}
	return nil
}
