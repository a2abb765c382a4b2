// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim.dev/image/registry"
	"crishim.dev/internal/errs"
)

// ImportOptions say how Import names what it finds.
type ImportOptions struct {
	// Name is the reference of an image that has none of its own. With several such images it is an error.
	Name string
	// Platform, if it names an architecture, is chosen instead of the store's.
	Platform v1.Platform
}

// Import makes the images of a docker-archive, an OCI archive or an OCI layout directory present; archives may be compressed with
// gzip or zstd. They are named as they are there. Images that have no name and get none are known by their id only.
func (s *Store) Import(ctx context.Context, path string, o ImportOptions) ([]Image, error) {
	b, err := openBundle(ctx, path, s.o.Dir)
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	defer b.Close()
	images, err := s.importBundle(ctx, b, o)
	if err != nil {
		return nil, fmt.Errorf("import images from %s: %w", path, err)
	}
	return images, s.snap.Sync(ctx) // unlike a pull, nobody repeats it after a power cut
}

func (s *Store) importBundle(ctx context.Context, b bundle, o ImportOptions) ([]Image, error) {
	if o.Platform.Architecture == "" {
		o.Platform = s.o.Platform
	}
	if o.Platform.OS == "" {
		o.Platform.OS = s.o.Platform.OS
	}
	saved, err := readSaved(b)
	if err != nil {
		return nil, err
	}
	index, err := readMember(b, "index.json", registry.MaxManifest)
	switch {
	case err == nil:
		return s.importLayout(ctx, b, index, saved, o)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	case saved == nil:
		return nil, errs.Newf(errs.Invalid, "neither index.json nor manifest.json in it")
	}
	var out []Image
	for _, m := range saved {
		image, err := s.importSaved(ctx, b, m, o)
		if err != nil {
			return nil, err
		}
		out = append(out, image)
	}
	return out, nil
}

// Annotations that name an image in an index.
const (
	annotationName      = "io.containerd.image.name"
	annotationReference = v1.AnnotationRefName // org.opencontainers.image.ref.name
)

// importLayout imports the images of an OCI layout. saved gives further names, where docker save wrote it.
func (s *Store) importLayout(ctx context.Context, b bundle, index []byte, saved []savedImage, o ImportOptions) ([]Image, error) {
	top, err := parseDocument(index, v1.MediaTypeImageIndex)
	if err != nil {
		return nil, err
	}
	src := layoutSource{b}
	var out []Image
	var nameless int
	for _, m := range top.Manifests {
		if m.Annotations["vnd.docker.reference.type"] != "" || !registry.ValidDigest(string(m.Digest)) {
			continue
		}
		if m.Platform != nil && m.Platform.Architecture != "unknown" && match(*m.Platform, o.Platform) == 0 {
			continue // another node's, beside ours
		}
		doc, err := src.manifest(ctx, descriptor(m))
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", m.Digest, err)
		}
		rec := &record{}
		rec.addName(m.Annotations[annotationName], string(m.Digest))
		if name := m.Annotations[annotationReference]; len(rec.Tags) == 0 && strings.ContainsAny(name, "/:") { // else it is a bare tag
			rec.addName(name, string(m.Digest))
		}
		addSaved(rec, doc, saved)
		if len(rec.Tags)+len(rec.Digests) == 0 {
			if nameless++; o.Name != "" && nameless > 1 {
				return nil, errs.Newf(errs.Invalid, "several images without a name; %s can be only one of them", o.Name)
			}
			rec.addName(o.Name, string(m.Digest))
		}
		image, err := s.ingest(ctx, src, o.Platform, descriptor(m), doc, rec)
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", m.Digest, err)
		}
		out = append(out, image)
	}
	if len(out) == 0 {
		return nil, errs.Newf(errs.NotFound, "no image for %s in it", platformName(o.Platform))
	}
	return out, nil
}

// addName enters a name found beside an image, if it is one.
func (r *record) addName(name, digest string) {
	ref, err := registry.Parse(name)
	if err != nil {
		return
	}
	if ref.Digest == "" {
		if tag := ref.String(); !slices.Contains(r.Tags, tag) {
			r.Tags = append(r.Tags, tag)
		}
	}
	if digest != "" {
		r.addDigest(ref.Name()+"@"+digest, false)
	}
}

// savedImage is one element of docker save's manifest.json.
type savedImage struct {
	Config   string   `json:"Config"`
	RepoTags []string `json:"RepoTags"`
	Layers   []string `json:"Layers"`
}

// readSaved reads manifest.json; nil: there is none.
func readSaved(b bundle) ([]savedImage, error) {
	raw, err := readMember(b, "manifest.json", registry.MaxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []savedImage
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, errs.Newf(errs.Invalid, "read manifest.json: %w", err)
	}
	return out, nil
}

// addSaved enters the names that manifest.json has for the image of a manifest.
func addSaved(rec *record, manifest []byte, saved []savedImage) {
	doc, err := parseDocument(manifest, "")
	if err != nil || doc.Config == nil {
		return
	}
	for _, m := range saved {
		if m.Config == blobName(string(doc.Config.Digest)) {
			for _, t := range m.RepoTags {
				rec.addName(t, "")
			}
		}
	}
}

// importSaved imports an image of a docker-archive. It has no manifest, so one is made: its layers are uncompressed, and then their
// digests are the diff IDs.
func (s *Store) importSaved(ctx context.Context, b bundle, m savedImage, o ImportOptions) (Image, error) {
	raw, err := readMember(b, m.Config, maxConfig)
	if err != nil {
		return Image{}, fmt.Errorf("image configuration: %w", err)
	}
	config, err := parseConfig(raw)
	if err == nil {
		err = runsHere(config, o.Platform)
	}
	if err != nil {
		return Image{}, err
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return Image{}, errs.Newf(errs.Invalid, "manifest.json has %d layers, the configuration %d", len(m.Layers), len(config.RootFS.DiffIDs))
	}
	sum := sha256.Sum256(raw)
	rec := &record{ID: "sha256:" + hex.EncodeToString(sum[:]), Pulled: time.Now().Unix()}
	src := savedSource{b, map[string]string{}}
	for i, id := range config.RootFS.DiffIDs {
		src.names[string(id)] = m.Layers[i]
		rec.DiffIDs = append(rec.DiffIDs, string(id))
		rec.Blobs = append(rec.Blobs, registry.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: string(id)})
	}
	for _, t := range m.RepoTags {
		rec.addName(t, "")
	}
	if len(rec.Tags) == 0 {
		rec.addName(o.Name, "")
	}
	return s.assemble(ctx, src, rec, config, map[string][]byte{rec.ID: raw})
}

// savedSource gets layers from a docker-archive, by their diff IDs.
type savedSource struct {
	b     bundle
	names map[string]string
}

func (savedSource) manifest(context.Context, registry.Descriptor) ([]byte, error) {
	return nil, errs.Newf(errs.NotFound, "a docker-archive has no manifests")
}

// blob gives a layer unchecked: whatever it is packed with, its diff ID is checked.
func (d savedSource) blob(_ context.Context, want registry.Descriptor) (blobReader, error) {
	r, _, err := d.b.open(d.names[want.Digest])
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{r, r}, nil
}
