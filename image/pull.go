// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crishim.dev/image/registry"
	"crishim.dev/image/signature"
	"crishim.dev/internal/errs"
)

// pullKey tells pulls apart that must not be merged: those of different credentials.
type pullKey struct {
	ref  string
	auth [sha256.Size]byte
}

func keyOf(ref registry.Reference, auth *Auth) (pullKey, error) {
	k := pullKey{ref: ref.String()}
	if auth == nil {
		return k, nil
	}
	b, err := json.Marshal([]string{auth.Username, auth.Password, auth.Auth, auth.ServerAddress, auth.IdentityToken, auth.RegistryToken})
	k.auth = sha256.Sum256(b)
	return k, err
}

// Pull makes the image ref names present and gives it. A call for the same reference with the same credentials joins the one under
// way. A pull whose callers have all cancelled leaves nothing but complete layers, which Collect removes.
//
// Unknown images are NotFound, refused credentials Denied, a registry that can't be asked Unavailable, an image that the signature
// policy refuses Denied; the latter two are also the errors that the kubelet knows by name (k8s.io/cri-api/pkg/errors). No error
// has credentials in it.
func (s *Store) Pull(ctx context.Context, ref string, auth *Auth) (Image, error) {
	r, err := registry.Parse(ref)
	if err != nil {
		return Image{}, err
	}
	key, err := keyOf(r, auth)
	if err != nil {
		return Image{}, err
	}
	image, err := s.pulls.Do(ctx, key, func(ctx context.Context) (Image, error) { return s.pull(ctx, r, auth) })
	if err == nil {
		return image, nil
	}
	err = fmt.Errorf("pull image %s: %w", r, err)
	if errors.Is(err, errs.Unavailable) {
		err = errs.As(crierrors.ErrRegistryUnavailable, err)
	}
	return Image{}, err
}

func (s *Store) pull(ctx context.Context, ref registry.Reference, auth *Auth) (Image, error) {
	start := time.Now()
	ctx, p, end := s.progress.begin(ctx, ref)
	defer end()
	reporting, done := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { p.report(reporting, s.log, s.o.LogEvery) })
	defer wg.Wait()
	defer done()
	repo, err := s.client.Repository(ref, auth)
	if err != nil {
		return Image{}, err
	}
	defer repo.Close()
	if image, digest, ok := s.unchanged(ctx, repo, ref); ok {
		return image, s.allowed(ctx, repo, ref, digest) // the policy may have changed
	}
	top, b, err := repo.Manifest(ctx, ref.Version())
	if err != nil {
		return Image{}, err
	}
	if err := s.allowed(ctx, repo, ref, top.Digest); err != nil {
		return Image{}, err
	}
	rec := &record{}
	if ref.Tag != "" {
		rec.Tags = []string{ref.String()}
	}
	rec.addDigest(ref.Name()+"@"+top.Digest, ref.Digest != "")
	image, err := s.ingest(ctx, remote{repo, s.partials}, s.o.Platform, top, b, rec)
	if err != nil {
		return Image{}, err
	}
	s.log.InfoContext(ctx, "Pulled image.", "image", ref.String(), "id", image.ID, "layers", len(image.Layers), "bytes", image.Size, "took", time.Since(start).Round(time.Millisecond))
	return image, nil
}

// unchanged spares the rest of the pull when a tag still stands for the image we have. Asking costs no registry's pull limit.
func (s *Store) unchanged(ctx context.Context, repo *registry.Repository, ref registry.Reference) (Image, string, bool) {
	have, err := s.cat.find(ref.String())
	if err != nil {
		return Image{}, "", false
	}
	digest := ref.Digest
	if digest == "" {
		if digest, err = repo.Digest(ctx); err != nil || digest == "" {
			return Image{}, "", false
		}
	} else if _, err := repo.Digest(ctx); err != nil {
		return Image{}, "", false // the registry must say yes to these credentials
	}
	if have.rec.Manifest != digest && have.rec.Index != digest {
		return Image{}, "", false
	}
	if ref.Digest != "" {
		// From now on this name is one that was asked for.
		image, err := s.cat.change(have.image.ID, func(rec *record) { rec.addDigest(ref.String(), true) })
		return image, digest, err == nil
	}
	return have.image, digest, true
}

// allowed asks the signature policy.
func (s *Store) allowed(ctx context.Context, repo *registry.Repository, ref registry.Reference, digest string) error {
	if s.o.PolicyFile == "" {
		return nil
	}
	policy, err := signature.Load(s.o.PolicyFile)
	if err != nil {
		return err
	}
	return policy.Check(ctx, ref.Name(), digest, signatures{remote{repo: repo}})
}

// signatures gets the documents of signatures from a registry.
type signatures struct{ r remote }

// Manifest is signature.Source's.
func (g signatures) Manifest(ctx context.Context, version string) ([]byte, error) {
	_, b, err := g.r.repo.Manifest(ctx, version)
	return b, err
}

// Referrers is signature.Source's.
func (g signatures) Referrers(ctx context.Context, digest, artifactType string) ([]v1.Descriptor, error) {
	b, err := g.r.repo.Referrers(ctx, digest, artifactType)
	if errors.Is(err, errs.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d, err := parseDocument(b, v1.MediaTypeImageIndex)
	if err != nil {
		return nil, err
	}
	// A registry need not filter.
	return slices.DeleteFunc(d.Manifests, func(m v1.Descriptor) bool {
		return m.ArtifactType != artifactType || !registry.ValidDigest(string(m.Digest))
	}), nil
}

// Blob is signature.Source's.
func (g signatures) Blob(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
	return readAll(ctx, g.r, descriptor(d), limit)
}

// Repository is signature.Source's.
func (g signatures) Repository(reference string) string {
	ref, err := registry.Parse(reference)
	if err != nil {
		return ""
	}
	return ref.Name()
}

// remote gets an image's parts from a registry.
type remote struct {
	repo *registry.Repository
	// partials keeps beginnings of blobs; nil: nothing does.
	partials *partials
}

func (r remote) manifest(ctx context.Context, d registry.Descriptor) ([]byte, error) {
	_, b, err := r.repo.Manifest(ctx, d.Digest)
	return b, err
}

func (r remote) blob(ctx context.Context, d registry.Descriptor) (blobReader, error) {
	if r.partials == nil || d.Size <= keepWindow {
		return newChecked(r.repo.Blob(ctx, d, 0), d), nil
	}
	b, err := r.partials.open(ctx, r.repo, d)
	return newChecked(b, d), err
}

// ingest makes an image present from wherever f gets it: the manifest for the platform, its configuration, its layers, its record.
// rec has the names it is to go by.
func (s *Store) ingest(ctx context.Context, f fetcher, want v1.Platform, top registry.Descriptor, b []byte, rec *record) (Image, error) {
	docs := map[string][]byte{}
	d, at, err := choose(ctx, f, want, top, b, docs)
	if err != nil {
		return Image{}, err
	}
	if err := d.image(s.o.MaxLayers); err != nil {
		return Image{}, err
	}
	rec.Manifest = at.Digest
	if top.Digest != at.Digest {
		rec.Index = top.Digest
	}
	raw, err := readAll(ctx, f, descriptor(*d.Config), maxConfig)
	if err != nil {
		return Image{}, fmt.Errorf("image configuration: %w", err)
	}
	rec.ID = string(d.Config.Digest)
	docs[rec.ID] = raw
	config, err := parseConfig(raw)
	if err == nil && rec.Index == "" { // an index knows better: many a configuration names the machine that it was made on
		err = runsHere(config, want)
	}
	if err != nil {
		return Image{}, err
	}
	if len(config.RootFS.DiffIDs) != len(d.Layers) {
		return Image{}, errs.Newf(errs.Invalid, "the manifest has %d layers, the configuration %d", len(d.Layers), len(config.RootFS.DiffIDs))
	}
	for i, l := range d.Layers {
		rec.Blobs = append(rec.Blobs, descriptor(l))
		rec.DiffIDs = append(rec.DiffIDs, string(config.RootFS.DiffIDs[i]))
	}
	rec.Pulled = time.Now().Unix()
	return s.assemble(ctx, f, rec, config, docs)
}

// assemble makes the layers and then the record. Until the record is written the layers are held.
func (s *Store) assemble(ctx context.Context, f fetcher, rec *record, config *v1.Image, docs map[string][]byte) (image Image, err error) {
	stack := newStack(s, f, rec)
	layersOf(ctx, stack)
	defer stack.release()
	if err := stack.make(ctx); err != nil {
		if errors.Is(err, errs.Exhausted) {
			stack.release()
			s.note(ctx, "Cannot remove the layers of a failed pull.", s.Collect(context.WithoutCancel(ctx)))
		}
		return Image{}, err
	}
	rec.Layers = stack.keys
	s.collect.RLock() // Collect must see either the hold or the record
	defer s.collect.RUnlock()
	return s.cat.put(rec, config, docs)
}

// layerName says which layer an error is about.
func layerName(i, n int, digest string) string {
	short := strings.TrimPrefix(digest, "sha256:")
	if len(short) > 12 {
		short = short[:12]
	}
	return fmt.Sprintf("layer %d of %d (sha256:%s)", i+1, n, short)
}
