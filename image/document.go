// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim.dev/image/registry"
	"crishim.dev/internal/errs"
)

const (
	// maxConfig bounds an image's configuration.
	maxConfig = 8 << 20
	// maxNesting is how many indexes may stand between a reference and a manifest.
	maxNesting = 4
	// maxManifests bounds the entries of an index.
	maxManifests = 4096
)

// document is a manifest or an index, whichever it turns out to be.
type document struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	ArtifactType  string          `json:"artifactType"`
	Config        *v1.Descriptor  `json:"config"`
	Layers        []v1.Descriptor `json:"layers"`
	Manifests     []v1.Descriptor `json:"manifests"`
	FSLayers      json.RawMessage `json:"fsLayers"` // schema 1
}

// parseDocument reads a manifest or an index. mediaType is what the registry or the parent document says of it.
func parseDocument(b []byte, mediaType string) (*document, error) {
	d := &document{}
	if err := json.Unmarshal(b, d); err != nil {
		return nil, errs.Newf(errs.Invalid, "read manifest: %w", err)
	}
	switch {
	case d.SchemaVersion == 1 || len(d.FSLayers) > 0:
		return nil, errs.Newf(errs.Unsupported, "read manifest: Docker schema 1 is not supported; push the image again with a current tool")
	case d.SchemaVersion != 2:
		return nil, errs.Newf(errs.Invalid, "read manifest: schemaVersion is %d, not 2", d.SchemaVersion)
	case len(d.Manifests) > 0 && (d.Config != nil || len(d.Layers) > 0):
		// Two readers could see two different images in it (CVE-2021-41190).
		return nil, errs.Newf(errs.Invalid, "read manifest: it is ambiguous: both an index and a manifest")
	case d.MediaType != "" && isManifestType(mediaType) && d.MediaType != mediaType:
		return nil, errs.Newf(errs.Invalid, "read manifest: it is ambiguous: it says %q and was sent as %q", d.MediaType, mediaType)
	case len(d.Manifests) > maxManifests:
		return nil, errs.Newf(errs.Invalid, "read manifest: an index of %d manifests", len(d.Manifests))
	}
	t := d.MediaType
	if t == "" {
		t = mediaType
	}
	if isIndexType(t) && (d.Config != nil || len(d.Layers) > 0) || isImageType(t) && len(d.Manifests) > 0 {
		return nil, errs.Newf(errs.Invalid, "read manifest: it is ambiguous: its media type %q does not fit its content", t)
	}
	return d, nil
}

func isIndexType(t string) bool {
	return t == v1.MediaTypeImageIndex || t == "application/vnd.docker.distribution.manifest.list.v2+json"
}

func isImageType(t string) bool {
	return t == v1.MediaTypeImageManifest || t == "application/vnd.docker.distribution.manifest.v2+json"
}

func isManifestType(t string) bool { return isIndexType(t) || isImageType(t) }

// image checks that a manifest is one of a container image that can run here.
func (d *document) image(maxLayers int) error {
	if d.Config == nil {
		return errs.Newf(errs.Invalid, "read manifest: it has no configuration")
	}
	switch d.Config.MediaType {
	case v1.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json", "":
	default:
		what := d.ArtifactType
		if what == "" {
			what = d.Config.MediaType
		}
		return errs.Newf(errs.Invalid, "read manifest: this is no container image but an artifact of type %q", what)
	}
	if d.Config.Size < 0 || d.Config.Size > maxConfig {
		return errs.Newf(errs.Invalid, "read manifest: a configuration of %d bytes", d.Config.Size)
	}
	if len(d.Layers) > maxLayers {
		return errs.Newf(errs.Invalid, "read manifest: %d layers; at most %d are allowed", len(d.Layers), maxLayers)
	}
	for _, l := range d.Layers {
		if !isLayerType(l.MediaType) {
			return errs.Newf(errs.Invalid, "read manifest: this is no container image: it has a layer of type %q", l.MediaType)
		}
	}
	for i, l := range append([]v1.Descriptor{*d.Config}, d.Layers...) {
		if !registry.ValidDigest(string(l.Digest)) || l.Size < 0 {
			return errs.Newf(errs.Invalid, "read manifest: descriptor %d has no valid digest and size", i)
		}
		if strings.Contains(l.MediaType, "+encrypted") {
			return errs.Newf(errs.Unsupported, "read manifest: layer %s is encrypted", l.Digest)
		}
	}
	return nil
}

// isLayerType says that a media type is one of a layer, however it is packed; that, its first bytes say better. Buildkit's
// attestations, for one, call themselves images but have layers of other types.
func isLayerType(t string) bool {
	return t == "" || strings.HasPrefix(t, "application/vnd.oci.image.layer.") || strings.HasPrefix(t, "application/vnd.docker.image.rootfs.")
}

func descriptor(d v1.Descriptor) registry.Descriptor {
	return registry.Descriptor{MediaType: d.MediaType, Digest: string(d.Digest), Size: d.Size}
}

// fetcher gets the documents of an image, each checked against its digest.
type fetcher interface {
	// manifest fetches a manifest or index by its descriptor.
	manifest(ctx context.Context, d registry.Descriptor) ([]byte, error)
	// blob reads a configuration or layer: all d.Size bytes, checked against d.Digest when the end is reached.
	blob(ctx context.Context, d registry.Descriptor) (blobReader, error)
}

// choose follows indexes to the manifest for the platform. It collects the documents it read by digest.
func choose(ctx context.Context, f fetcher, want v1.Platform, top registry.Descriptor, b []byte, docs map[string][]byte) (*document, registry.Descriptor, error) {
	at := top
	for range maxNesting + 1 {
		d, err := parseDocument(b, at.MediaType)
		if err != nil {
			return nil, at, err
		}
		docs[at.Digest] = b
		if len(d.Manifests) == 0 && !isIndexType(d.MediaType) && (d.MediaType != "" || !isIndexType(at.MediaType)) {
			return d, at, nil
		}
		next, err := pick(d.Manifests, want)
		if err != nil {
			return nil, at, err
		}
		if b, err = f.manifest(ctx, next); err != nil {
			return nil, at, fmt.Errorf("fetch manifest %s: %w", next.Digest, err)
		}
		at = next
	}
	return nil, at, errs.Newf(errs.Invalid, "read manifest: indexes nested more than %d deep", maxNesting)
}

// pick chooses from an index: the best match for the platform; the first of equals.
func pick(all []v1.Descriptor, want v1.Platform) (registry.Descriptor, error) {
	best, score := -1, 0
	var have []string
	for i, m := range all {
		if m.Annotations["vnd.docker.reference.type"] != "" { // attestations that BuildKit adds
			continue
		}
		s := 0
		switch {
		case isIndexType(m.MediaType) && m.Platform == nil:
			s = 1 // it may hold one that matches
		case m.Platform == nil:
			s = 1
		default:
			s = match(*m.Platform, want)
			have = append(have, platformName(*m.Platform))
		}
		if s > score && registry.ValidDigest(string(m.Digest)) && m.Size >= 0 && m.Size <= registry.MaxManifest {
			best, score = i, s
		}
	}
	if best < 0 {
		return registry.Descriptor{}, errs.Newf(errs.NotFound, "choose manifest: none for %s; there are %s", platformName(want), strings.Join(have, ", "))
	}
	return descriptor(all[best]), nil
}

// match scores a platform: 0 does not run here, more is better.
func match(have, want v1.Platform) int {
	arch, variant := normalArch(have.Architecture, have.Variant)
	wantArch, wantVariant := normalArch(want.Architecture, want.Variant)
	if have.OS != want.OS {
		return 0
	}
	if arch != wantArch {
		if arch == "386" && wantArch == "amd64" {
			return 5 // runs, when there is nothing better
		}
		return 0
	}
	score := 10
	switch {
	case variant == wantVariant:
		score += 100
	case variant == "":
		score += 50
	case wantVariant == "" || variant > wantVariant: // amd64/v3 where v1 is wanted; arm64/v9 where v8 is
		return 0
	default:
		score += int(variant[len(variant)-1] - '0') // an older variant runs, the newest is the best
	}
	if want.OSVersion != "" && have.OSVersion == want.OSVersion {
		score += 200
	}
	return score
}

// normalArch gives architectures their common names and drops the variant that is meant without one.
func normalArch(arch, variant string) (string, string) {
	arch, variant = strings.ToLower(arch), strings.ToLower(variant)
	switch arch {
	case "x86_64", "x86-64":
		arch = "amd64"
	case "aarch64":
		arch = "arm64"
	case "armhf":
		arch, variant = "arm", "v7"
	case "armel":
		arch, variant = "arm", "v6"
	}
	if arch == "amd64" && variant == "v1" || arch == "arm64" && (variant == "v8" || variant == "8") {
		variant = ""
	}
	if arch == "arm" && variant == "" {
		variant = "v7"
	}
	return arch, variant
}

func platformName(p v1.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// parseConfig reads an image's configuration.
func parseConfig(b []byte) (*v1.Image, error) {
	if len(b) == 0 {
		return nil, errs.Newf(errs.NotFound, "find image configuration")
	}
	c := &v1.Image{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, errs.Newf(errs.Invalid, "read image configuration: %w", err)
	}
	for _, d := range c.RootFS.DiffIDs {
		if !registry.ValidDigest(string(d)) {
			return nil, errs.Newf(errs.Invalid, "read image configuration: malformed diff ID %q", d)
		}
	}
	return c, nil
}

// runsHere says whether a configuration is for this platform.
func runsHere(c *v1.Image, want v1.Platform) error {
	if c.OS != "" && c.OS != want.OS || c.Architecture != "" && match(c.Platform, v1.Platform{OS: c.OS, Architecture: want.Architecture, Variant: want.Variant}) == 0 {
		return errs.Newf(errs.Invalid, "the image is for %s, this node is %s", platformName(c.Platform), platformName(want))
	}
	return nil
}
