// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	godigest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"crishim.dev/internal/errs"
	"crishim.dev/snapshot"
)

// Export writes an image as an OCI archive that docker load and podman load take too. Its layers are uncompressed, so its manifest is
// another than the registry's; its configuration, and with it its id, is the same. Each layer is checked before it is written.
// One whose archive can't be made again (see Verify) is errs.Unsupported.
func (s *Store) Export(ctx context.Context, ref string, w io.Writer) error {
	e, err := s.cat.find(ref)
	if err != nil {
		return err
	}
	defer s.snap.Hold(e.rec.Layers...)()
	x := &exporter{store: s, rec: e.rec, w: tar.NewWriter(w), done: map[string]bool{}}
	if err := x.run(ctx); err != nil {
		return fmt.Errorf("export image %s: %w", ref, err)
	}
	return nil
}

// exporter is one run of Export.
type exporter struct {
	store *Store
	rec   *record
	w     *tar.Writer
	done  map[string]bool // names written: equal layers are written once
}

func (x *exporter) run(ctx context.Context) error {
	config, err := x.store.cat.blob(x.rec.ID)
	if err != nil {
		return err
	}
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: godigest.Digest(x.rec.ID), Size: int64(len(config))}}
	m.SchemaVersion = 2
	saved := savedImage{Config: blobName(x.rec.ID), RepoTags: x.rec.Tags, Layers: []string{}}
	for i, k := range x.rec.Layers {
		size, err := x.layer(ctx, k, x.rec.DiffIDs[i])
		if err != nil {
			return fmt.Errorf("%s: %w", layerName(i, len(x.rec.Layers), x.rec.DiffIDs[i]), err)
		}
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: godigest.Digest(x.rec.DiffIDs[i]), Size: size})
		saved.Layers = append(saved.Layers, blobName(x.rec.DiffIDs[i]))
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		return err
	}
	index := v1.Index{MediaType: v1.MediaTypeImageIndex}
	index.SchemaVersion = 2
	d := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: godigest.FromBytes(manifest), Size: int64(len(manifest))}
	for _, t := range x.rec.Tags {
		named := d
		named.Annotations = map[string]string{annotationName: t}
		index.Manifests = append(index.Manifests, named)
	}
	if len(x.rec.Tags) == 0 {
		index.Manifests = []v1.Descriptor{d}
	}
	return errors.Join(
		x.file(blobName(x.rec.ID), config), x.file(blobName(string(d.Digest)), manifest),
		x.document("index.json", index), x.document("manifest.json", []savedImage{saved}),
		x.document(v1.ImageLayoutFile, v1.ImageLayout{Version: v1.ImageLayoutVersion}), x.w.Close(),
	)
}

// layer writes a layer's archive. It is made twice: a tar header must say its size first.
func (x *exporter) layer(ctx context.Context, k snapshot.Key, diffID string) (int64, error) {
	sum, n := sha256.New(), &counter{}
	if err := x.store.archive(ctx, k, io.MultiWriter(sum, n)); err != nil {
		return 0, err
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != diffID {
		return 0, errs.Newf(errs.Invalid, "its diff ID is %s now", got)
	}
	name := blobName(diffID)
	if x.done[name] {
		return n.n, nil
	}
	x.done[name] = true
	if err := x.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: n.n}); err != nil {
		return 0, err
	}
	return n.n, x.store.archive(ctx, k, x.w)
}

type counter struct{ n int64 }

// Write counts.
func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

func (x *exporter) document(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return x.file(name, b)
}

func (x *exporter) file(name string, b []byte) error {
	if err := x.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(b))}); err != nil {
		return err
	}
	_, err := x.w.Write(b)
	return err
}

// blob gives a document of an image.
func (c *catalog) blob(digest string) (b []byte, err error) {
	err = c.db.View(func(tx *bolt.Tx) error {
		v := tx.Bucket(bucketBlobs).Get([]byte(digest))
		if v == nil {
			return errs.Newf(errs.NotFound, "find document %s", digest)
		}
		b = append(b, v...) // bbolt's memory is the transaction's
		return nil
	})
	return b, err
}
