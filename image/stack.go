// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/snapshot"
)

// stack is the layers of one image being made, several at a time. Images that have a layer in common, in different pulls at the same
// moment, make it once.
type stack struct {
	store  *Store
	source fetcher
	rec    *record
	// ready[i] closes when keys[i] is set and complete.
	ready   []chan struct{}
	keys    []snapshot.Key
	chains  []snapshot.Key
	release func()
	// given closes when the pull gives up; a layer that others wait for too may still be in the making then.
	given chan struct{}
}

func newStack(s *Store, f fetcher, rec *record) *stack {
	k := &stack{store: s, source: f, rec: rec, keys: make([]snapshot.Key, len(rec.DiffIDs)), given: make(chan struct{})}
	var hold []snapshot.Key
	for i, id := range rec.DiffIDs {
		k.ready = append(k.ready, make(chan struct{}))
		k.chains = append(k.chains, snapshot.ChainKey(rec.DiffIDs[:i+1]))
		hold = append(hold, snapshot.DiffKey(id), k.chains[i])
	}
	k.release = s.snap.Hold(hold...)
	return k
}

// make makes all layers. The first that fails ends the others.
func (k *stack) make(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for i := range k.keys { // the lowest first: others may wait for it
		wg.Go(func() {
			if err := k.layer(ctx, i); err != nil {
				cancel(fmt.Errorf("%s: %w", layerName(i, len(k.keys), k.rec.Blobs[i].Digest), err))
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		close(k.given)
		return full(context.Cause(ctx))
	}
	return nil
}

// full marks what happened because the disk is full.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return errs.As(errs.Exhausted, err)
	}
	return err
}

// take takes one of so many tokens; the taker gives it back.
func take(ctx context.Context, tokens chan struct{}) error {
	select {
	case tokens <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// offer takes a token if there is one.
func offer(tokens chan struct{}) bool {
	select {
	case tokens <- struct{}{}:
		return true
	default:
		return false
	}
}

// layer makes layer i, or finds it, or waits for who makes it.
func (k *stack) layer(ctx context.Context, i int) error {
	s, diffID := k.store, k.rec.DiffIDs[i]
	done := func(key snapshot.Key) error {
		k.keys[i] = key
		close(k.ready[i])
		return nil
	}
	name, others := diffID, 0
	for {
		for _, key := range []snapshot.Key{k.chains[i], snapshot.DiffKey(diffID)} {
			if s.snap.Has(key) {
				return done(key)
			}
		}
		own := false
		key, err := s.layers.Do(ctx, name, func(ctx context.Context) (snapshot.Key, error) {
			own = true
			return k.build(ctx, i, name)
		})
		switch {
		case err == nil && (key == snapshot.DiffKey(diffID) || key == k.chains[i]):
			return done(key)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errBegun):
			if err := k.wait(ctx, i); err != nil {
				return err
			}
			name = string(k.chains[i])
		case err == nil: // right on another pull's layers only
			name = string(k.chains[i])
		case own:
			return err
		default: // another pull's failure, perhaps of its credentials: try with ours
			if others++; others > 3 {
				return err
			}
		}
	}
}

// errBegun ends the making of a layer that would have to wait for those below with all that it holds. It is made when they are there.
var errBegun = errors.New("the layers below are not there yet")

// build makes layer i, which the flight of that name is for, in one of the places for layers at work. It may outlive the pull that asked for
// it, for others that did too.
//
// A layer that turns out to need those below waits with its connection and buffers, so that it goes on at once; but only as many do as
// there are places, and a layer that needs much memory never does: an image of hundreds that all wait must not take the memory of hundreds.
// For the same reason, layers are tried with little memory first. Nor does one wait that another pull waits for: the layers below may be others
// there, and wait for this pull.
func (k *stack) build(ctx context.Context, i int, name string) (snapshot.Key, error) {
	key, err := k.attempt(ctx, i, name, window)
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		key, err = k.attempt(ctx, i, name, maxWindow)
	}
	return key, err
}

// attempt makes layer i with a zstd window of at most most bytes.
func (k *stack) attempt(ctx context.Context, i int, name string, most uint64) (snapshot.Key, error) {
	s := k.store
	if most > window {
		if err := take(ctx, s.wide); err != nil {
			return "", err
		}
		defer func() { <-s.wide }()
	}
	if err := take(ctx, s.slots); err != nil {
		return "", err
	}
	seated := true
	defer func() {
		if seated {
			<-s.slots
		}
	}()
	below := func(ctx context.Context) (*os.File, error) {
		if !k.complete(i) {
			if most > window || !s.layers.Alone(name) || !offer(s.waiting) {
				return nil, errBegun
			}
			defer func() { <-s.waiting }()
			// The place is given up meanwhile, so that layers never wait for each other in a ring.
			<-s.slots
			seated = false
			if err := k.wait(ctx, i); err != nil {
				return nil, err
			}
			if err := take(ctx, s.slots); err != nil {
				return nil, err
			}
			seated = true
		}
		return s.snap.View(ctx, k.keys[:i])
	}
	if i == 0 {
		below = nil
	}
	return s.make(ctx, job{blob: k.rec.Blobs[i], diffID: k.rec.DiffIDs[i], chain: k.chains[i], source: k.source, window: most, below: below})
}

// complete says that the layers under layer i are there.
func (k *stack) complete(i int) bool {
	for _, ready := range k.ready[:i] {
		select {
		case <-ready:
		default:
			return false
		}
	}
	return true
}

// wait waits for the layers under layer i.
func (k *stack) wait(ctx context.Context, i int) error {
	for j := range i {
		select {
		case <-k.ready[j]:
		case <-k.given:
			return errs.Newf(errs.Unavailable, "wait for the layers below: their pull was given up")
		case <-ctx.Done():
			return fmt.Errorf("wait for the layers below: %w", context.Cause(ctx))
		}
	}
	return nil
}
