// SPDX-License-Identifier: Apache-2.0

// Package flight lets a repeated request join the one in flight.
//
// An operation runs apart from its callers. A caller whose deadline passes leaves it running: whoever asks again under the same
// key joins it and gets its result. When all callers have gone and the last one cancelled (it no longer wants the result), the operation is
// cancelled too, and a later caller waits until it has cleaned up and then starts anew.
package flight

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
)

// Group is a set of operations by key. The zero value is ready. Safe for concurrent use.
type Group[K comparable, V any] struct {
	mu sync.Mutex
	// calls has an entry for every operation that runs. Guarded by mu.
	calls map[K]*call[V]
}

type call[V any] struct {
	done    chan struct{}
	cancel  context.CancelFunc
	callers int  // guarded by Group.mu
	gone    bool // cancelled: nobody may join; guarded by Group.mu
	v       V    // written before done closes
	err     error
}

// Do runs fn under the key, or joins the run that is under way, and waits for its result or the caller's end.
// fn's context keeps the first caller's values and ends only when nobody wants the result.
func (g *Group[K, V]) Do(ctx context.Context, key K, fn func(context.Context) (V, error)) (V, error) {
	for {
		c := g.join(ctx, key, fn)
		v, err, again := g.wait(ctx, c)
		if !again {
			return v, err
		}
	}
}

func (g *Group[K, V]) join(ctx context.Context, key K, fn func(context.Context) (V, error)) *call[V] {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.calls[key]; c != nil {
		c.callers++
		return c
	}
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &call[V]{done: make(chan struct{}), cancel: cancel, callers: 1}
	if g.calls == nil {
		g.calls = map[K]*call[V]{}
	}
	g.calls[key] = c
	go func() { // ends with fn; its callers wait for done
		defer cancel()
		c.v, c.err = guard(runCtx, fn)
		g.mu.Lock()
		if g.calls[key] == c {
			delete(g.calls, key)
		}
		g.mu.Unlock()
		close(c.done)
	}()
	return c
}

// Alone says whether at most one caller wants the operation under way with the key, which it is for the operation to ask. If so, nobody joins
// it any more: whoever comes next runs an operation of its own.
func (g *Group[K, V]) Alone(key K) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.calls[key]; c != nil && c.callers > 1 {
		return false
	}
	delete(g.calls, key)
	return true
}

// Panic is the error of an operation that panicked: a bug of ours, which ends that operation and not the process.
type Panic struct {
	Value any
	// Stack is for the log, never for a caller.
	Stack []byte
}

func (p *Panic) Error() string { return fmt.Sprintf("internal error: %v", p.Value) }

func guard[V any](ctx context.Context, fn func(context.Context) (V, error)) (v V, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &Panic{Value: r, Stack: debug.Stack()}
		}
	}()
	return fn(ctx)
}

// wait reports again when the operation was cancelled by its other callers and has ended: the caller must start anew.
func (g *Group[K, V]) wait(ctx context.Context, c *call[V]) (v V, err error, again bool) {
	select {
	case <-c.done:
		g.mu.Lock()
		defer g.mu.Unlock()
		if c.gone && c.err != nil && ctx.Err() == nil {
			return v, nil, true
		}
		return c.v, c.err, false
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	c.callers--
	if c.callers == 0 && errors.Is(ctx.Err(), context.Canceled) {
		c.gone = true
		c.cancel()
	}
	return v, context.Cause(ctx), false
}
