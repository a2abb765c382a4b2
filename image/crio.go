// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"crishim.dev/image/registry"
	"crishim.dev/internal/errs"
)

// Names in a store of CRI-O and Podman (github.com/containers/storage, overlay driver), below its root.
const (
	crioImages = "overlay-images" // images.json, <id>/<document>
	crioLayers = "overlay-layers" // layers.json, <id>.tar-split.gz
	crioTrees  = "overlay"        // <id>/diff
)

// maxCRIOList bounds images.json and layers.json.
const maxCRIOList = 64 << 20

// crioImage is an element of images.json.
type crioImage struct {
	ID     string   `json:"id"`
	Names  []string `json:"names"`
	Digest string   `json:"digest"`
	Layer  string   `json:"layer"` // the topmost
}

// crioLayer is an element of layers.json.
type crioLayer struct {
	ID     string `json:"id"`
	Parent string `json:"parent"`
	DiffID string `json:"diff-digest"`
}

// ImportCRIO makes the images of a CRI-O (or Podman) on this machine present without downloading them. root is its store, usually
// /var/lib/containers/storage. CRI-O may be running; nothing of it is changed. failed has an error for each image that can't be
// taken over.
//
// The store has layers unpacked, and what is needed to make their archives again (tar-split); each is checked against its diff ID.
func (s *Store) ImportCRIO(ctx context.Context, root string) (images []Image, failed []error, err error) {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return nil, nil, fmt.Errorf("import from CRI-O: %w", err)
	}
	defer dir.Close()
	var found []crioImage
	var list []crioLayer
	if err := errors.Join(readList(dir, crioImages+"/images.json", &found), readList(dir, crioLayers+"/layers.json", &list)); err != nil {
		return nil, nil, fmt.Errorf("import from CRI-O: %w", err)
	}
	layers := make(map[string]crioLayer, len(list))
	for _, l := range list {
		layers[l.ID] = l
	}
	for _, i := range found {
		image, err := s.importCRIOImage(ctx, dir, i, layers)
		if ctx.Err() != nil {
			return images, failed, fmt.Errorf("import from CRI-O: %w", context.Cause(ctx))
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("import %s %s from CRI-O: %w", i.ID, strings.Join(i.Names, " "), err))
			continue
		}
		images = append(images, image)
	}
	return images, failed, s.snap.Sync(ctx)
}

func readList(dir *os.Root, name string, into any) error {
	b, err := readMember(dirBundle{dir}, name, maxCRIOList)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

func (s *Store) importCRIOImage(ctx context.Context, dir *os.Root, i crioImage, layers map[string]crioLayer) (Image, error) {
	id := "sha256:" + i.ID
	if !registry.ValidDigest(id) {
		return Image{}, errs.Newf(errs.Invalid, "malformed id %q", i.ID)
	}
	name := "=" + base64.StdEncoding.EncodeToString([]byte(id)) // as the store writes names with a colon
	raw, err := readMember(dirBundle{dir}, path.Join(crioImages, i.ID, name), maxConfig)
	if err != nil {
		return Image{}, fmt.Errorf("image configuration: %w", err)
	}
	if sum := sha256.Sum256(raw); hex.EncodeToString(sum[:]) != i.ID {
		return Image{}, errs.Newf(errs.Invalid, "its configuration has another digest")
	}
	config, err := parseConfig(raw)
	if err == nil {
		err = runsHere(config, s.o.Platform)
	}
	if err != nil {
		return Image{}, err
	}
	rec := &record{ID: id, Pulled: time.Now().Unix()}
	src := crioSource{dir, map[string]string{}}
	at := i.Layer
	for n, d := range slices.Backward(config.RootFS.DiffIDs) {
		diffID := string(d)
		l, ok := layers[at]
		if !ok || l.DiffID != diffID {
			return Image{}, errs.Newf(errs.Invalid, "%s: the store has %q in its place", layerName(n, len(config.RootFS.DiffIDs), diffID), l.DiffID)
		}
		src.layers[diffID], at = l.ID, l.Parent
	}
	for _, d := range config.RootFS.DiffIDs {
		rec.DiffIDs = append(rec.DiffIDs, string(d))
		rec.Blobs = append(rec.Blobs, registry.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: string(d)})
	}
	if !registry.ValidDigest(i.Digest) {
		i.Digest = ""
	}
	for _, n := range i.Names {
		rec.addName(n, i.Digest)
	}
	return s.assemble(ctx, src, rec, config, map[string][]byte{rec.ID: raw})
}

// crioSource makes layers' archives of their trees, by their diff IDs.
type crioSource struct {
	dir    *os.Root
	layers map[string]string // diff ID → the store's id
}

func (crioSource) manifest(context.Context, registry.Descriptor) ([]byte, error) {
	return nil, errs.Newf(errs.NotFound, "no manifests are read from CRI-O")
}

// blob gives a layer unchecked: its diff ID is checked.
func (c crioSource) blob(_ context.Context, want registry.Descriptor) (blobReader, error) {
	id := c.layers[want.Digest]
	f, err := c.dir.Open(path.Join(crioLayers, id+".tar-split.gz"))
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", f.Name(), err), f.Close())
	}
	tree, err := c.dir.OpenRoot(path.Join(crioTrees, id, "diff"))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	out := asm.NewOutputTarStream(treeFiles{tree}, storage.NewJSONUnpacker(z))
	return &crioBlob{out, []io.Closer{out, tree, f}}, nil
}

type crioBlob struct {
	io.Reader
	closers []io.Closer
}

// Close ends the making of the archive.
func (b *crioBlob) Close() error {
	var all []error
	for _, c := range b.closers {
		all = append(all, c.Close())
	}
	return errors.Join(all...)
}

// treeFiles gives the files of an unpacked layer by their names in its archive.
type treeFiles struct{ root *os.Root }

// Get is storage.FileGetter's.
func (t treeFiles) Get(name string) (io.ReadCloser, error) {
	r, _, err := dirBundle(t).open(path.Clean("/" + name)[1:])
	return r, err
}
