// SPDX-License-Identifier: Apache-2.0

package untar

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// A recipe is what an archive has besides the content of files: with the unpacked directory it gives the archive again, so that a
// layer can be verified against its diff ID and exported without keeping a second copy of it.
//
//	recipe = { 'r' length bytes | 'f' size crc32c length path }
//
// Numbers are unsigned varints, but for the checksum: 4 bytes, little-endian. Recipes are repetitive; who stores one compresses it.
const (
	recipeRaw  = 'r'
	recipeFile = 'f'
)

// tape passes an archive on and writes its recipe.
type tape struct {
	r   io.Reader
	w   *bufio.Writer // nil: no recipe is wanted
	on  bool          // what passes goes into the recipe
	raw bytes.Buffer  // passed, not yet written
}

func newTape(r io.Reader, recipe io.Writer) *tape {
	t := &tape{r: r}
	if recipe != nil {
		t.w = bufio.NewWriterSize(recipe, 64<<10)
	}
	return t
}

// record says whether what comes next goes into the recipe: everything does but the content of files.
func (t *tape) record(on bool) { t.on = on && t.w != nil }

// Read passes bytes of the archive on.
func (t *tape) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if t.on {
		t.raw.Write(p[:n])
		if t.raw.Len() >= 32<<10 {
			if e := t.flushRaw(); e != nil {
				return n, e
			}
		}
	}
	return n, err
}

func (t *tape) flushRaw() error {
	if t.raw.Len() == 0 {
		return nil
	}
	b := binary.AppendUvarint([]byte{recipeRaw}, uint64(t.raw.Len()))
	_, err := t.w.Write(b)
	if err == nil {
		_, err = t.w.Write(t.raw.Bytes())
	}
	t.raw.Reset()
	if err != nil {
		return fmt.Errorf("write recipe: %w", err)
	}
	return nil
}

// file notes that the content of a file came here.
func (t *tape) file(path string, size int64, sum uint32) error {
	if t.w == nil || size == 0 {
		return nil
	}
	if err := t.flushRaw(); err != nil {
		return err
	}
	b := binary.AppendUvarint([]byte{recipeFile}, uint64(size))
	b = binary.LittleEndian.AppendUint32(b, sum)
	b = binary.AppendUvarint(b, uint64(len(path)))
	if _, err := t.w.Write(append(b, path...)); err != nil {
		return fmt.Errorf("write recipe: %w", err)
	}
	return nil
}

func (t *tape) close() error {
	if t.w == nil {
		return nil
	}
	if err := t.flushRaw(); err != nil {
		return err
	}
	if err := t.w.Flush(); err != nil {
		return fmt.Errorf("write recipe: %w", err)
	}
	return nil
}

// maxRecipeRun bounds what one record of a recipe may claim to hold in memory.
const maxRecipeRun = 4 << 20

// Rebuild writes the archive that the directory root was unpacked from. An error names the first file that has changed.
func Rebuild(ctx context.Context, root *os.File, recipe io.Reader, w io.Writer) error {
	r := bufio.NewReaderSize(recipe, 64<<10)
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("rebuild archive: %w", context.Cause(ctx))
		}
		op, err := r.ReadByte()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read recipe: %w", err)
		}
		switch op {
		case recipeRaw:
			err = copyRaw(r, w, buf)
		case recipeFile:
			err = copyContent(root, r, w, buf)
		default:
			err = errs.Newf(errs.Invalid, "read recipe: unknown record %q", op)
		}
		if err != nil {
			return err
		}
	}
}

func copyRaw(r *bufio.Reader, w io.Writer, buf []byte) error {
	n, err := binary.ReadUvarint(r)
	if err == nil && n > maxRecipeRun {
		err = errs.Newf(errs.Invalid, "a record of %d bytes", n)
	}
	if err == nil {
		_, err = io.CopyBuffer(w, io.LimitReader(r, int64(n)), buf)
	}
	if err != nil {
		return fmt.Errorf("rebuild archive: %w", err)
	}
	return nil
}

func copyContent(root *os.File, r *bufio.Reader, w io.Writer, buf []byte) error {
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return fmt.Errorf("read recipe: %w", err)
	}
	var want [4]byte
	if _, err := io.ReadFull(r, want[:]); err != nil {
		return fmt.Errorf("read recipe: %w", err)
	}
	length, err := binary.ReadUvarint(r)
	if err != nil || length > unix.PathMax*maxLinks {
		return errs.Newf(errs.Invalid, "read recipe: a name of %d bytes: %w", length, err)
	}
	name := make([]byte, length)
	if _, err := io.ReadFull(r, name); err != nil {
		return fmt.Errorf("read recipe: %w", err)
	}
	fd, err := openIn(int(root.Fd()), string(name), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return fmt.Errorf("read file %s of the layer: %w", quote(string(name)), err)
	}
	f := os.NewFile(uintptr(fd), string(name))
	defer f.Close()
	sum := crc32.New(castagnoli)
	n, err := io.CopyBuffer(io.MultiWriter(w, sum), io.LimitReader(f, int64(size)), buf)
	if err != nil {
		return fmt.Errorf("read file %s of the layer: %w", quote(string(name)), err)
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if uint64(n) != size || st.Size() != n || sum.Sum32() != binary.LittleEndian.Uint32(want[:]) {
		return fmt.Errorf("read file %s of the layer: %w", quote(string(name)), ErrChanged)
	}
	return nil
}

// ErrChanged is returned when a file of an unpacked layer is no longer what the archive had.
var ErrChanged = errors.New("content differs from what was unpacked")
