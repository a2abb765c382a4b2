// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"crishim.dev/image/registry"
	"crishim.dev/internal/errs"
	"crishim.dev/internal/flight"
	"crishim.dev/snapshot"
)

// Options configure a Store.
type Options struct {
	// Dir is where images.db is.
	Dir string
	// Registry says how to reach registries.
	Registry registry.Options
	// Platform is what to choose from images for several; empty fields are this machine's.
	Platform v1.Platform
	// Parallel is how many layers are downloaded and unpacked at a time, over all pulls. 0: 4.
	Parallel int
	// Pinned are references of images that must not be collected.
	Pinned []string
	// KeepUnused is how long a layer that no image needs stays, for the next attempt of a pull that failed. 0: an hour.
	KeepUnused time.Duration
	// MinFree is how many bytes of the file system stay free of images. 0: 64 MiB.
	MinFree uint64
}

// Store is the images of this node. Safe for concurrent use.
type Store struct {
	o       Options
	snap    *snapshot.Store
	log     *slog.Logger
	client  *registry.Client
	db      *bolt.DB
	pulls   flight.Group[pullKey, Image]
	layers  flight.Group[string, snapshot.Key]
	slots   chan struct{} // one token per layer at work
	quit    chan struct{} // closes to end sweep
	swept   chan struct{} // closes when sweep has ended
	closing sync.Once
	// collect is held shared from when a pull takes note of its layers until its record is written, and alone by Collect.
	collect sync.RWMutex

	// write is held while records are changed: each change sees the one before. Taken before mu.
	write sync.Mutex

	mu sync.RWMutex
	// images are by id. Guarded by mu; the entries themselves never change.
	images map[string]*entry
}

// Buckets of images.db.
var (
	bucketImages = []byte("images") // id → record, JSON
	bucketBlobs  = []byte("blobs")  // digest → a manifest or configuration, as it came
)

// Open opens the store and drops images whose layers are gone.
func Open(o Options, snap *snapshot.Store, log *slog.Logger) (*Store, error) {
	if o.Parallel == 0 {
		o.Parallel = 4
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
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s := &Store{
		o: o, snap: snap, log: log, client: registry.New(o.Registry), slots: make(chan struct{}, o.Parallel), images: map[string]*entry{},
		quit: make(chan struct{}), swept: make(chan struct{}),
	}
	if err := s.openDB(); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open image store: %w", err), s.db.Close())
	}
	go s.sweep()
	return s, nil
}

// Close ends the background work and closes the database. Pulls under way fail. A second Close does nothing.
func (s *Store) Close() (err error) {
	s.closing.Do(func() {
		close(s.quit)
		<-s.swept
		err = s.db.Close()
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
			s.note(ctx, "Cannot remove unused layers.", s.collectOld(ctx, nil))
		}
	}
}

func (s *Store) dbPath() string { return filepath.Join(s.o.Dir, "images.db") }

func (s *Store) openDB() (err error) {
	s.db, err = bolt.Open(s.dbPath(), 0o600, &bolt.Options{Timeout: time.Second, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return fmt.Errorf("open %s: %w", s.dbPath(), err)
	}
	err = s.db.Update(func(tx *bolt.Tx) error {
		for _, b := range [][]byte{bucketImages, bucketBlobs} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return errors.Join(fmt.Errorf("open %s: %w", s.dbPath(), err), s.db.Close())
	}
	s.keepReserve()
	return nil
}

func (s *Store) load() error {
	var broken []string
	err := s.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketImages).ForEach(func(k, v []byte) error {
			e, err := s.decode(tx, v)
			if err != nil {
				s.log.Warn("Dropping an image that is not complete; it will be pulled again when needed.", "image", string(k), "err", err)
				broken = append(broken, string(k))
				return nil
			}
			s.images[string(k)] = e
			return nil
		})
	})
	if err != nil || len(broken) == 0 {
		return err
	}
	return s.update(func(tx *bolt.Tx) error {
		for _, k := range broken {
			if err := tx.Bucket(bucketImages).Delete([]byte(k)); err != nil {
				return err
			}
		}
		return nil
	})
}

// decode makes an entry of a record, if all its layers are there.
func (s *Store) decode(tx *bolt.Tx, v []byte) (*entry, error) {
	rec := &record{}
	if err := json.Unmarshal(v, rec); err != nil {
		return nil, fmt.Errorf("read image record: %w", err)
	}
	config, err := parseConfig(tx.Bucket(bucketBlobs).Get([]byte(rec.ID)))
	if err != nil {
		return nil, err
	}
	return s.entry(rec, config)
}

// entry derives what List and Resolve show.
func (s *Store) entry(rec *record, config *v1.Image) (*entry, error) {
	e := &entry{rec: rec, image: Image{
		ID: rec.ID, RepoTags: rec.Tags, Layers: rec.Layers,
		Config: config.Config, Architecture: config.Architecture, OS: config.OS, Size: 1, // never 0: kubelet takes that for unknown
	}}
	for _, d := range rec.Digests {
		e.image.RepoDigests = append(e.image.RepoDigests, d.Ref)
	}
	for _, k := range rec.Layers {
		l, ok := s.snap.Layer(k)
		if !ok {
			return nil, errs.Newf(errs.NotFound, "find layer %s", k)
		}
		e.image.Size += l.Bytes
	}
	e.image.Pinned = s.pinned(e.image)
	return e, nil
}

func (s *Store) pinned(i Image) bool {
	for _, p := range s.o.Pinned {
		if r, err := registry.Parse(p); err == nil && (slices.Contains(i.RepoTags, r.String()) || slices.Contains(i.RepoDigests, r.String())) {
			return true
		}
		if p == i.ID {
			return true
		}
	}
	return false
}

// List lists the images, sorted by id.
func (s *Store) List() []Image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]Image, 0, len(s.images))
	for _, id := range slices.Sorted(maps.Keys(s.images)) {
		out = append(out, s.images[id].image)
	}
	return out
}

// Resolve finds an image by tag, digest, id, or the unique beginning of an id, each with or without "sha256:" where that makes sense.
func (s *Store) Resolve(ref string) (Image, error) {
	e, err := s.find(ref)
	if err != nil {
		return Image{}, err
	}
	return e.image, nil
}

// minPrefix is how much of an id tells it from a name.
const minPrefix = 5

func (s *Store) find(ref string) (*entry, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	hex := strings.TrimPrefix(ref, "sha256:")
	if e := s.images["sha256:"+hex]; e != nil {
		return e, nil
	}
	r, err := registry.Parse(ref)
	if err == nil {
		for _, e := range s.images {
			if slices.Contains(e.image.RepoTags, r.String()) || slices.Contains(e.image.RepoDigests, r.String()) {
				return e, nil
			}
		}
	}
	if strings.Trim(hex, "0123456789abcdef") != "" || len(hex) < minPrefix {
		if err != nil && !strings.HasPrefix(ref, "sha256:") {
			return nil, err
		}
		return nil, errs.Newf(errs.NotFound, "find image %s: not present", ref)
	}
	var found *entry
	for id, e := range s.images {
		if !strings.HasPrefix(id, "sha256:"+hex) {
			continue
		}
		if found != nil {
			return nil, errs.Newf(errs.Invalid, "find image %s: several ids begin so", ref)
		}
		found = e
	}
	if found == nil {
		return nil, errs.Newf(errs.NotFound, "find image %s: not present", ref)
	}
	return found, nil
}

// put writes an image's record, with the documents it came from, and takes its tags from whoever had them.
func (s *Store) put(rec *record, config *v1.Image, blobs map[string][]byte) (Image, error) {
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.RLock()
	changed := map[string]*entry{}
	if old := s.images[rec.ID]; old != nil {
		rec = merge(old.rec, rec)
	}
	others := make([]*entry, 0, len(s.images))
	for id, e := range s.images {
		if id != rec.ID {
			others = append(others, e)
		}
	}
	s.mu.RUnlock()
	for _, e := range others {
		if next := s.without(e, rec.Tags); next != nil {
			changed[next.rec.ID] = next
		}
	}
	e, err := s.entry(rec, config)
	if err != nil {
		return Image{}, err
	}
	changed[rec.ID] = e
	err = s.update(func(tx *bolt.Tx) error {
		for digest, b := range blobs {
			if err := tx.Bucket(bucketBlobs).Put([]byte(digest), b); err != nil {
				return err
			}
		}
		for _, e := range changed {
			if err := putRecord(tx, e.rec); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return Image{}, fmt.Errorf("write image record: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.images, changed)
	return e.image, nil
}

// without gives e with some tags taken away; nil when it has none of them.
func (s *Store) without(e *entry, tags []string) *entry {
	keep := slices.DeleteFunc(slices.Clone(e.rec.Tags), func(t string) bool { return slices.Contains(tags, t) })
	if len(keep) == len(e.rec.Tags) {
		return nil
	}
	rec := e.rec.clone()
	rec.Tags = keep
	return s.renamed(e, rec)
}

// renamed gives e with the names of rec.
func (s *Store) renamed(e *entry, rec *record) *entry {
	next := &entry{rec: rec, image: e.image}
	next.image.RepoTags, next.image.RepoDigests = rec.Tags, nil
	for _, d := range rec.Digests {
		next.image.RepoDigests = append(next.image.RepoDigests, d.Ref)
	}
	next.image.Pinned = s.pinned(next.image)
	return next
}

// change changes an image's names.
func (s *Store) change(id string, f func(*record)) (Image, error) {
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.RLock()
	old := s.images[id]
	s.mu.RUnlock()
	if old == nil {
		return Image{}, errs.Newf(errs.NotFound, "find image %s: removed meanwhile", id)
	}
	rec := old.rec.clone()
	f(rec)
	next := s.renamed(old, rec)
	if err := s.update(func(tx *bolt.Tx) error { return putRecord(tx, rec) }); err != nil {
		return Image{}, fmt.Errorf("write image record: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[id] = next
	return next.image, nil
}

// merge adds an image's names of before to those it was just given.
func merge(old, now *record) *record {
	out := now.clone()
	for _, t := range old.Tags {
		if !slices.Contains(out.Tags, t) {
			out.Tags = append(out.Tags, t)
		}
	}
	slices.Sort(out.Tags)
	for _, d := range old.Digests {
		out.addDigest(d.Ref, d.Own)
	}
	if out.Manifest == "" {
		out.Manifest, out.Index, out.Blobs = old.Manifest, old.Index, old.Blobs
	}
	return out
}

func putRecord(tx *bolt.Tx, rec *record) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return tx.Bucket(bucketImages).Put([]byte(rec.ID), b)
}

// update writes to the database, and once more with the reserve given back when the disk is full: removing images must work then.
func (s *Store) update(f func(*bolt.Tx) error) error {
	err := s.db.Update(f)
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	if e := os.Remove(s.reservePath()); e != nil {
		return errors.Join(err, e)
	}
	err = s.db.Update(f)
	s.keepReserve()
	return err
}

func (s *Store) reservePath() string { return filepath.Join(s.o.Dir, "reserve") }

// reserveSize is what one change of the database may need in new pages.
const reserveSize = 1 << 20

// keepReserve sets disk space aside. Without any left, it is tried again after the next change.
func (s *Store) keepReserve() {
	f, err := os.OpenFile(s.reservePath(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if unix.Fallocate(int(f.Fd()), 0, 0, reserveSize) != nil {
		_ = os.Remove(s.reservePath())
	}
}

// note logs what a background task could not do.
func (s *Store) note(ctx context.Context, msg string, err error) {
	if err != nil {
		s.log.WarnContext(ctx, msg, "err", err)
	}
}
