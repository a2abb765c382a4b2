// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"crishim.dev/image/registry"
	"crishim.dev/internal/errs"
)

// Where containerd keeps things below its root (/var/lib/containerd).
const (
	containerdMeta    = "io.containerd.metadata.v1.bolt/meta.db"
	containerdContent = "io.containerd.content.v1.content"
)

// ImportContainerd makes the images of a containerd on this machine present without downloading them. root is its --root, namespace
// usually "k8s.io". containerd may be running; nothing of it is changed. Images that it has discarded the layers of can't be taken
// over: failed has an error for each.
func (s *Store) ImportContainerd(ctx context.Context, root, namespace string) (images []Image, failed []error, err error) {
	found, err := s.containerdImages(root, namespace)
	if err != nil {
		return nil, nil, fmt.Errorf("import from containerd: %w", err)
	}
	content, err := os.OpenRoot(filepath.Join(root, containerdContent))
	if err != nil {
		return nil, nil, fmt.Errorf("import from containerd: %w", err)
	}
	defer content.Close()
	src := layoutSource{dirBundle{content}}
	for _, f := range found {
		image, err := s.importContainerdImage(ctx, src, f)
		if ctx.Err() != nil {
			return images, failed, fmt.Errorf("import from containerd: %w", context.Cause(ctx))
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("import %s from containerd: %w", f.ref, err))
			continue
		}
		images = append(images, image)
	}
	return images, failed, s.snap.Sync(ctx)
}

// foreign is an image of another runtime's store.
type foreign struct {
	ref    registry.Reference
	target registry.Descriptor
}

func (s *Store) importContainerdImage(ctx context.Context, src layoutSource, f foreign) (Image, error) {
	b, err := src.manifest(ctx, f.target)
	if err != nil {
		return Image{}, err
	}
	rec := &record{}
	if f.ref.Tag != "" {
		rec.Tags = []string{f.ref.String()}
	}
	rec.addDigest(f.ref.Name()+"@"+f.target.Digest, f.ref.Digest != "")
	return s.ingest(ctx, src, s.o.Platform, f.target, b, rec)
}

// containerdImages reads the names. containerd holds a lock on its database, so a copy is read.
func (s *Store) containerdImages(root, namespace string) (out []foreign, err error) {
	copied, err := stableCopy(filepath.Join(root, containerdMeta), s.o.Dir)
	if err != nil {
		return nil, err
	}
	defer copied.Close()
	db, err := bolt.Open(fmt.Sprintf("/proc/self/fd/%d", copied.Fd()), 0o600, &bolt.Options{ReadOnly: true, OpenFile: os.OpenFile})
	if err != nil {
		return nil, fmt.Errorf("open containerd's database: %w", err)
	}
	defer db.Close()
	err = db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("v1"))
		for _, name := range []string{namespace, "images"} {
			if b == nil {
				break
			}
			b = b.Bucket([]byte(name))
		}
		if b == nil {
			return errs.Newf(errs.NotFound, "no images in containerd's namespace %q", namespace)
		}
		return b.ForEachBucket(func(name []byte) error {
			if f, ok := foreignImage(string(name), b.Bucket(name).Bucket([]byte("target"))); ok {
				out = append(out, f)
			}
			return nil
		})
	})
	return out, err
}

func foreignImage(name string, target *bolt.Bucket) (f foreign, ok bool) {
	ref, err := registry.Parse(name)
	if err != nil || target == nil || strings.HasPrefix(name, "sha256:") { // the CRI plugin's name for an image's id
		return f, false
	}
	size, n := binary.Varint(target.Get([]byte("size")))
	f = foreign{ref, registry.Descriptor{MediaType: string(target.Get([]byte("mediatype"))), Digest: string(target.Get([]byte("digest"))), Size: size}}
	return f, n > 0 && registry.ValidDigest(f.target.Digest)
}

// stableCopy copies a database that may be in use into an unnamed file, until no write has come in between.
func stableCopy(path, scratch string) (*os.File, error) {
	src, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	fd, err := unix.Open(scratch, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "make unnamed file", Path: scratch, Err: err}
	}
	out := os.NewFile(uintptr(fd), "copy of "+path)
	for range 20 {
		before, err := src.Stat()
		if err == nil {
			err = out.Truncate(0)
		}
		if err == nil {
			_, err = io.Copy(io.NewOffsetWriter(out, 0), io.NewSectionReader(src, 0, before.Size()))
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("copy %s: %w", path, err), out.Close())
		}
		after, err := src.Stat()
		if err == nil && after.ModTime().Equal(before.ModTime()) && after.Size() == before.Size() {
			return out, nil
		}
	}
	return nil, errors.Join(errs.Newf(errs.Unavailable, "copy %s: it keeps changing; stop containerd for a moment", path), out.Close())
}
