// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"crishim.dev/image/registry"
	"crishim.dev/internal/errs"
	"crishim.dev/snapshot"
)

// Remove removes an image, or one of its names. By tag or digest that name goes, and the image when it was the last by which it was
// asked for; by id (or the beginning of one) all names and the image go. An unknown image is no error. Layers that nothing needs any
// more follow; those of running containers stay until they are gone.
func (s *Store) Remove(ctx context.Context, ref string) error {
	e, err := s.cat.find(ref)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove image: %w", err)
	}
	if r, err := registry.Parse(ref); err == nil && slices.Contains(append(e.image.RepoTags, e.image.RepoDigests...), r.String()) {
		gone := false
		_, err := s.cat.change(e.image.ID, func(rec *record) {
			rec.Tags = slices.DeleteFunc(rec.Tags, func(t string) bool { return t == r.String() })
			rec.Digests = slices.DeleteFunc(rec.Digests, func(d digest) bool { return d.Ref == r.String() })
			gone = !rec.named()
		})
		if err != nil && !errors.Is(err, errs.NotFound) || !gone {
			return err
		}
	}
	if err := s.cat.drop(e.image.ID); err != nil {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	s.log.InfoContext(ctx, "Removed image.", "image", ref, "id", e.image.ID)
	return s.collectOld(ctx, e.image.Layers)
}

// Collect removes the layers, and beginnings of layers, that no image, no snapshot and no pull needs. It is safe beside pulls: a pull holds its layers until its
// record is written.
func (s *Store) Collect(ctx context.Context) error {
	return errors.Join(s.partials.collect(0), s.collectLayers(ctx, func(snapshot.Layer) bool { return true }))
}

// Release removes those of the layers that nothing needs any more. It is called when a snapshot of them is gone: an image that was
// removed before goes with its last container.
func (s *Store) Release(ctx context.Context, layers []snapshot.Key) error {
	return s.collectOld(ctx, layers)
}

// collectOld is Collect for the layers named and those that have been unused for long: what a failed pull has brought stays a while,
// for its next attempt.
func (s *Store) collectOld(ctx context.Context, named []snapshot.Key) error {
	return s.collectLayers(ctx, func(l snapshot.Layer) bool {
		return slices.Contains(named, l.Key) || time.Since(l.Created) > s.o.KeepUnused
	})
}

func (s *Store) collectLayers(ctx context.Context, which func(snapshot.Layer) bool) error {
	s.collect.Lock()
	defer s.collect.Unlock()
	used := map[snapshot.Key]bool{}
	for _, i := range s.cat.list() {
		for _, k := range i.Layers {
			used[k] = true
		}
	}
	var all []error
	for _, l := range s.snap.Layers() {
		if used[l.Key] || !which(l) {
			continue
		}
		if err := s.snap.RemoveLayer(ctx, l.Key); err != nil && !errors.Is(err, errs.Precondition) {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}
