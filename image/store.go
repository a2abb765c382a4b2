// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim.dev/image/registry"
	"crishim.dev/internal/flight"
	"crishim.dev/snapshot"
)

// Options configure a Store.
type Options struct {
	// Dir is where images.db is.
	Dir string
	// Registry says how to reach registries.
	Registry registry.Options
	// PolicyFile says which images may be pulled, and which must be signed (package signature); empty: all. It is read for each pull.
	PolicyFile string
	// Platform is what to choose from images for several; empty fields are this machine's.
	Platform v1.Platform
	// Parallel is how many layers are downloaded and unpacked at a time, over all pulls. 0: 4.
	Parallel int
	// MaxLayers is how many layers an image may have. 0: snapshot.MaxLayers, which is also the most.
	MaxLayers int
	// Pinned are references of images that must not be collected.
	Pinned []string
	// KeepUnused is how long a layer that no image needs stays, for the next attempt of a pull that failed. 0: an hour.
	KeepUnused time.Duration
	// Slow is how long a layer must be expected to take for its beginning to be kept, for a pull that is cut off. 0: 30 s.
	Slow time.Duration
	// LogEvery is how often a pull that takes long is logged. 0: 30 s.
	LogEvery time.Duration
	// MinFree is how many bytes of the file system stay free of images. 0: 64 MiB.
	MinFree uint64
}

// Store is the images of this node. Safe for concurrent use.
type Store struct {
	o        Options
	snap     *snapshot.Store
	log      *slog.Logger
	client   *registry.Client
	cat      *catalog
	pulls    flight.Group[pullKey, Image]
	layers   flight.Group[string, snapshot.Key]
	progress progress
	partials *partials
	slots    chan struct{} // one token per layer at work
	waiting  chan struct{} // one token per layer that waits, begun, for those below
	wide     chan struct{} // one token for the layer whose decompressor may take much memory
	quit     chan struct{} // closes to end sweep
	swept    chan struct{} // closes when sweep has ended
	closing  sync.Once
	// collect is held shared from when a pull takes note of its layers until its record is written, and alone by Collect.
	collect sync.RWMutex
}

// Open opens the store and drops images whose layers are gone.
func Open(o Options, snap *snapshot.Store, log *slog.Logger) (*Store, error) {
	if o.Parallel == 0 {
		o.Parallel = 4
	}
	if o.MaxLayers == 0 {
		o.MaxLayers = snapshot.MaxLayers
	}
	if o.Slow == 0 {
		o.Slow = 30 * time.Second
	}
	if o.LogEvery == 0 {
		o.LogEvery = 30 * time.Second
	}
	if o.KeepUnused == 0 {
		o.KeepUnused = time.Hour
	}
	if o.MinFree == 0 {
		o.MinFree = 64 << 20
	}
	if o.Platform.OS == "" {
		o.Platform.OS = "linux"
	}
	if o.Platform.Architecture == "" {
		o.Platform.Architecture = runtime.GOARCH
	}
	partials, err := openPartials(filepath.Join(o.Dir, "partial"), o.Slow, log)
	if err != nil {
		return nil, err
	}
	cat, err := openCatalog(o.Dir, o.Pinned, snap, log)
	if err != nil {
		return nil, err
	}
	s := &Store{
		o: o, snap: snap, log: log, cat: cat, client: registry.New(o.Registry), slots: make(chan struct{}, o.Parallel),
		waiting: make(chan struct{}, o.Parallel), wide: make(chan struct{}, 1),
		partials: partials, quit: make(chan struct{}), swept: make(chan struct{}),
	}
	go s.sweep()
	return s, nil
}

// Close ends the background work and closes the database. Pulls under way fail. A second Close does nothing.
func (s *Store) Close() (err error) {
	s.closing.Do(func() {
		close(s.quit)
		<-s.swept
		err = s.cat.db.Close()
	})
	return err
}

// sweep removes, now and then, what failed pulls left.
func (s *Store) sweep() {
	defer close(s.swept)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	tick := time.NewTicker(s.o.KeepUnused)
	defer tick.Stop()
	for {
		select {
		case <-s.quit:
			return
		case <-tick.C:
			s.note(ctx, "Cannot remove unused layers.", errors.Join(s.partials.collect(s.o.KeepUnused), s.collectOld(ctx, nil)))
		}
	}
}

// List lists the images, sorted by id.
func (s *Store) List() []Image { return s.cat.list() }

// Resolve finds an image by tag, digest, id, or the unique beginning of an id, each with or without "sha256:" where that makes sense.
func (s *Store) Resolve(ref string) (Image, error) {
	e, err := s.cat.find(ref)
	if err != nil {
		return Image{}, err
	}
	return e.image, nil
}

// note logs what a background task could not do.
func (s *Store) note(ctx context.Context, msg string, err error) {
	if err != nil {
		s.log.WarnContext(ctx, msg, "err", err)
	}
}
