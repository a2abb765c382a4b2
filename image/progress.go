// SPDX-License-Identifier: Apache-2.0

package image

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"crishim.dev/image/registry"
)

// Progress is how far a pull under way is.
type Progress struct {
	// Reference is the image's full name.
	Reference string
	Since     time.Time
	// Layers has the image's layers, bottom first; none while its manifest is being looked for.
	Layers []LayerProgress
}

// LayerProgress is how far a layer of a pull is.
type LayerProgress struct {
	Digest string
	// Size and Fetched are bytes as they are sent.
	Size, Fetched int64
	// Done says that it is unpacked and complete.
	Done bool
}

// Sum adds up the layers: how many are done, and how many bytes of all are. What was on disk before counts as fetched.
func (p Progress) Sum() (done int, fetched, size int64) {
	for _, l := range p.Layers {
		size += l.Size
		if l.Done {
			done++
			l.Fetched = l.Size
		}
		fetched += l.Fetched
	}
	return done, fetched, size
}

// progress knows the pulls under way. The zero value is ready. Safe for concurrent use.
type progress struct {
	mu      sync.Mutex
	running map[*pulling]struct{} // guarded by mu
	// fetched counts the bytes of the blobs being fetched, for all pulls that wait for them. Guarded by mu.
	fetched map[string]*atomic.Int64
}

// pulling is one pull under way.
type pulling struct {
	table *progress
	ref   string
	since time.Time
	stack *stack // nil: its manifest is being looked for; guarded by table.mu
}

type pullingKey struct{}

// begin enters a pull. Its steps get the context; end takes it out again.
func (t *progress) begin(ctx context.Context, ref registry.Reference) (_ context.Context, p *pulling, end func()) {
	p = &pulling{table: t, ref: ref.String(), since: time.Now()}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running == nil {
		t.running, t.fetched = map[*pulling]struct{}{}, map[string]*atomic.Int64{}
	}
	t.running[p] = struct{}{}
	return context.WithValue(ctx, pullingKey{}, p), p, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.running, p)
	}
}

// layersOf says which layers the context's pull, if it has one, makes.
func layersOf(ctx context.Context, k *stack) {
	if p, ok := ctx.Value(pullingKey{}).(*pulling); ok {
		p.table.mu.Lock()
		defer p.table.mu.Unlock()
		p.stack = k
	}
}

// fetching enters a blob, whose bytes are counted in the counter until end.
func (t *progress) fetching(digest string) (n *atomic.Int64, end func()) {
	n = &atomic.Int64{}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fetched == nil {
		t.fetched = map[string]*atomic.Int64{}
	}
	t.fetched[digest] = n
	return n, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.fetched[digest] == n {
			delete(t.fetched, digest)
		}
	}
}

// list gives the pulls under way, the oldest first.
func (t *progress) list() []Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]Progress, 0, len(t.running))
	for p := range t.running {
		out = append(out, p.progressLocked())
	}
	slices.SortFunc(out, func(a, b Progress) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Reference, b.Reference))
	})
	return out
}

func (p *pulling) progressLocked() Progress {
	out := Progress{Reference: p.ref, Since: p.since}
	if p.stack == nil {
		return out
	}
	for i, b := range p.stack.rec.Blobs {
		l := LayerProgress{Digest: b.Digest, Size: b.Size}
		select {
		case <-p.stack.ready[i]:
			l.Done, l.Fetched = true, b.Size
		default:
			if n := p.table.fetched[b.Digest]; n != nil {
				l.Fetched = n.Load()
			}
		}
		out.Layers = append(out.Layers, l)
	}
	return out
}

// report logs now and then how far a pull is, until ctx ends.
func (p *pulling) report(ctx context.Context, log *slog.Logger, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p.table.mu.Lock()
		now := p.progressLocked()
		p.table.mu.Unlock()
		done, fetched, size := now.Sum()
		log.InfoContext(ctx, "Pulling image.", "image", p.ref, "done", done, "layers", len(now.Layers), "fetched", fetched, "bytes", size,
			"for", time.Since(p.since).Round(time.Second))
	}
}

// counted counts what is read of a blob.
type counted struct {
	blobReader
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.blobReader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// Pulls lists the pulls under way, the oldest first. It waits for nothing.
func (s *Store) Pulls() []Progress { return s.progress.list() }
