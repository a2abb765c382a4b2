// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	bolt "go.etcd.io/bbolt"

	"crishim.dev/internal/errs"
	"crishim.dev/snapshot"
	"crishim.dev/snapshot/untar"
)

// LayerCheck is what Verify found out about one layer.
type LayerCheck struct {
	Key    snapshot.Key
	DiffID string
	// Err is what is wrong; errs.Unsupported says that the layer can't be checked, because its archive can't be made again.
	Err error
}

// Verify checks an image on disk: its configuration against its id, and each layer's content against its diff ID, by making the
// layer's archive again. err is about the image as a whole; what is wrong with a layer is in its check.
func (s *Store) Verify(ctx context.Context, ref string) ([]LayerCheck, error) {
	e, err := s.cat.find(ref)
	if err != nil {
		return nil, err
	}
	// A layer must not go while it is read.
	defer s.snap.Hold(e.rec.Layers...)()
	if err := s.cat.verifyConfig(e.rec.ID); err != nil {
		return nil, fmt.Errorf("verify image %s: %w", ref, err)
	}
	out := make([]LayerCheck, 0, len(e.rec.Layers))
	for i, k := range e.rec.Layers {
		sum := sha256.New()
		err := s.archive(ctx, k, sum)
		if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); err == nil && got != e.rec.DiffIDs[i] {
			err = errs.Newf(errs.Invalid, "its diff ID is %s now", got)
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("verify image %s: %w", ref, context.Cause(ctx))
		}
		out = append(out, LayerCheck{Key: k, DiffID: e.rec.DiffIDs[i], Err: err})
	}
	return out, nil
}

func (c *catalog) verifyConfig(id string) error {
	return c.db.View(func(tx *bolt.Tx) error { return checkConfig(tx, id) })
}

// checkConfig compares a configuration with its digest.
func checkConfig(tx *bolt.Tx, id string) error {
	sum := sha256.Sum256(tx.Bucket(bucketBlobs).Get([]byte(id)))
	if got := "sha256:" + hex.EncodeToString(sum[:]); got != id {
		return errs.Newf(errs.Invalid, "its configuration has the digest %s", got)
	}
	return nil
}

// archive writes the tar archive that a layer was unpacked from.
func (s *Store) archive(ctx context.Context, key snapshot.Key, w io.Writer) error {
	f, err := os.Open(s.snap.SidePath(key, recipeName))
	if errors.Is(err, os.ErrNotExist) {
		return errs.Newf(errs.Unsupported, "make the archive of layer %s again: its entries replace one another, or it has sparse files", key)
	}
	if err != nil {
		return fmt.Errorf("read layer %s: %w", key, err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return fmt.Errorf("read layer %s: %w", key, err)
	}
	defer z.Close()
	root, err := os.Open(s.snap.FSDir(key))
	if err != nil {
		return fmt.Errorf("read layer %s: %w", key, err)
	}
	defer root.Close()
	return untar.Rebuild(ctx, root, z, w)
}
