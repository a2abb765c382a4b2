// SPDX-License-Identifier: Apache-2.0

package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"crishim.dev/image/registry"
	"crishim.dev/internal/errs"
	"crishim.dev/snapshot"
)

// catalog is the records of the images: in images.db, and in memory for whoever asks. Safe for concurrent use.
type catalog struct {
	dir  string
	pins []string
	snap *snapshot.Store
	log  *slog.Logger
	db   *bolt.DB

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

// openCatalog opens the database and drops images whose layers are gone.
func openCatalog(dir string, pins []string, snap *snapshot.Store, log *slog.Logger) (*catalog, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	c := &catalog{dir: dir, pins: pins, snap: snap, log: log, images: map[string]*entry{}}
	if err := c.setAsideDamaged(); err != nil {
		return nil, err
	}
	if err := c.openDB(); err != nil {
		return nil, err
	}
	if err := c.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open image store: %w", err), c.db.Close())
	}
	return c, nil
}

func (c *catalog) dbPath() string { return filepath.Join(c.dir, "images.db") }

func (c *catalog) openDB() (err error) {
	c.db, err = bolt.Open(c.dbPath(), 0o600, &bolt.Options{Timeout: time.Second, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return fmt.Errorf("open %s: %w", c.dbPath(), err)
	}
	err = c.db.Update(func(tx *bolt.Tx) error {
		for _, b := range [][]byte{bucketImages, bucketBlobs} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return errors.Join(fmt.Errorf("open %s: %w", c.dbPath(), err), c.db.Close())
	}
	c.keepReserve()
	return nil
}

func (c *catalog) load() error {
	var broken []string
	err := c.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketImages).ForEach(func(k, v []byte) error {
			e, err := c.decode(tx, string(k), v)
			if err != nil {
				c.log.Warn("Dropping an image that is not complete; it will be pulled again when needed.", "image", string(k), "err", err)
				broken = append(broken, string(k))
				return nil
			}
			c.images[string(k)] = e
			return nil
		})
	})
	if err != nil || len(broken) == 0 {
		return err
	}
	return c.update(func(tx *bolt.Tx) error {
		for _, k := range broken {
			if err := tx.Bucket(bucketImages).Delete([]byte(k)); err != nil {
				return err
			}
		}
		return nil
	})
}

// decode makes an entry of a record, if it is whole and all its layers are there.
func (c *catalog) decode(tx *bolt.Tx, id string, v []byte) (*entry, error) {
	rec := &record{}
	if err := json.Unmarshal(v, rec); err != nil {
		return nil, fmt.Errorf("read image record: %w", err)
	}
	if rec.ID != id {
		return nil, errs.Newf(errs.Invalid, "read image record: it says %q", rec.ID)
	}
	if err := checkConfig(tx, id); err != nil {
		return nil, err
	}
	config, err := parseConfig(tx.Bucket(bucketBlobs).Get([]byte(id)))
	if err != nil {
		return nil, err
	}
	return c.entry(rec, config)
}

// entry derives what List and Resolve show.
func (c *catalog) entry(rec *record, config *v1.Image) (*entry, error) {
	e := &entry{rec: rec, image: Image{
		ID: rec.ID, RepoTags: rec.Tags, Layers: rec.Layers,
		Config: config.Config, Architecture: config.Architecture, OS: config.OS, Size: 1, // never 0: kubelet takes that for unknown
	}}
	for _, d := range rec.Digests {
		e.image.RepoDigests = append(e.image.RepoDigests, d.Ref)
	}
	for _, k := range unique(rec.Layers) {
		l, ok := c.snap.Layer(k)
		if !ok {
			return nil, errs.Newf(errs.NotFound, "find layer %s", k)
		}
		e.image.Size += l.Bytes
	}
	e.image.Pinned = c.pinned(e.image)
	return e, nil
}

func (c *catalog) pinned(i Image) bool {
	for _, p := range c.pins {
		if r, err := registry.Parse(p); err == nil && (slices.Contains(i.RepoTags, r.String()) || slices.Contains(i.RepoDigests, r.String())) {
			return true
		}
		if p == i.ID {
			return true
		}
	}
	return false
}

// list lists the images, sorted by id.
func (c *catalog) list() []Image {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make([]Image, 0, len(c.images))
	for _, id := range slices.Sorted(maps.Keys(c.images)) {
		out = append(out, c.images[id].image)
	}
	return out
}

// minPrefix is how much of an id tells it from a name.
const minPrefix = 5

func (c *catalog) find(ref string) (*entry, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	hex := strings.TrimPrefix(ref, "sha256:")
	if e := c.images["sha256:"+hex]; e != nil {
		return e, nil
	}
	r, err := registry.Parse(ref)
	if err == nil {
		for _, e := range c.images {
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
	for id, e := range c.images {
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
func (c *catalog) put(rec *record, config *v1.Image, blobs map[string][]byte) (Image, error) {
	c.write.Lock()
	defer c.write.Unlock()
	c.mu.RLock()
	changed := map[string]*entry{}
	if old := c.images[rec.ID]; old != nil {
		rec = merge(old.rec, rec)
	}
	others := make([]*entry, 0, len(c.images))
	for id, e := range c.images {
		if id != rec.ID {
			others = append(others, e)
		}
	}
	c.mu.RUnlock()
	for _, e := range others {
		if next := c.without(e, rec.Tags); next != nil {
			changed[next.rec.ID] = next
		}
	}
	e, err := c.entry(rec, config)
	if err != nil {
		return Image{}, err
	}
	changed[rec.ID] = e
	err = c.update(func(tx *bolt.Tx) error {
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
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.Copy(c.images, changed)
	return e.image, nil
}

// without gives e with some tags taken away; nil when it has none of them.
func (c *catalog) without(e *entry, tags []string) *entry {
	keep := slices.DeleteFunc(slices.Clone(e.rec.Tags), func(t string) bool { return slices.Contains(tags, t) })
	if len(keep) == len(e.rec.Tags) {
		return nil
	}
	rec := e.rec.clone()
	rec.Tags = keep
	return c.renamed(e, rec)
}

// renamed gives e with the names of rec.
func (c *catalog) renamed(e *entry, rec *record) *entry {
	next := &entry{rec: rec, image: e.image}
	next.image.RepoTags, next.image.RepoDigests = rec.Tags, nil
	for _, d := range rec.Digests {
		next.image.RepoDigests = append(next.image.RepoDigests, d.Ref)
	}
	next.image.Pinned = c.pinned(next.image)
	return next
}

// change changes an image's names.
func (c *catalog) change(id string, f func(*record)) (Image, error) {
	c.write.Lock()
	defer c.write.Unlock()
	c.mu.RLock()
	old := c.images[id]
	c.mu.RUnlock()
	if old == nil {
		return Image{}, errs.Newf(errs.NotFound, "find image %s: removed meanwhile", id)
	}
	rec := old.rec.clone()
	f(rec)
	next := c.renamed(old, rec)
	if err := c.update(func(tx *bolt.Tx) error { return putRecord(tx, rec) }); err != nil {
		return Image{}, fmt.Errorf("write image record: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.images[id] = next
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
func (c *catalog) update(f func(*bolt.Tx) error) error {
	err := c.db.Update(f)
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	if e := os.Remove(c.reservePath()); e != nil {
		return errors.Join(err, e)
	}
	err = c.db.Update(f)
	c.keepReserve()
	return err
}

func (c *catalog) reservePath() string { return filepath.Join(c.dir, "reserve") }

// reserveSize is what one change of the database may need in new pages.
const reserveSize = 1 << 20

// keepReserve sets disk space aside. Without any left, it is tried again after the next change.
func (c *catalog) keepReserve() {
	f, err := os.OpenFile(c.reservePath(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if unix.Fallocate(int(f.Fd()), 0, 0, reserveSize) != nil {
		_ = os.Remove(c.reservePath())
	}
}

// drop deletes a record and the documents that no other image has.
func (c *catalog) drop(id string) error {
	c.write.Lock()
	defer c.write.Unlock()
	err := c.update(func(tx *bolt.Tx) error {
		if err := tx.Bucket(bucketImages).Delete([]byte(id)); err != nil {
			return err
		}
		return c.dropBlobs(tx, id)
	})
	if err != nil {
		return fmt.Errorf("write image record: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.images, id)
	return nil
}

func (c *catalog) dropBlobs(tx *bolt.Tx, id string) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	e := c.images[id]
	if e == nil {
		return nil
	}
	var all []error
	for _, digest := range []string{id, e.rec.Manifest, e.rec.Index} {
		used := false
		for other, o := range c.images {
			used = used || other != id && (o.rec.Manifest == digest || o.rec.Index == digest)
		}
		if !used && digest != "" {
			all = append(all, tx.Bucket(bucketBlobs).Delete([]byte(digest)))
		}
	}
	return errors.Join(all...)
}
