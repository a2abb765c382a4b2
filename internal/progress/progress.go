// SPDX-License-Identifier: Apache-2.0

// Package progress knows which operations are under way, and at which stage: what `shim why` prints of a call that hangs.
//
// An operation enters its manager's Table and travels in the context. The steps that it is made of, however deep, say their names
// by Stage; one that is part of no operation says it to nobody. It costs a lock that is held for a few instructions.
package progress

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Operation is one under way, as seen at one moment.
type Operation struct {
	// Sandbox and Container are ids; Container is empty for an operation on the pod itself.
	Sandbox, Container string
	// Name is the operation ("start"), Stage what it is doing ("mount root file system").
	Name, Stage string
	// Since is when the stage began.
	Since time.Time
}

// Table holds the operations under way. The zero value is ready. Safe for concurrent use.
type Table struct {
	mu sync.Mutex
	// running has what was begun and has not ended. Guarded by mu, the operations too.
	running map[*entry]struct{}
}

type entry struct {
	table *Table
	op    Operation
}

type key struct{}

// Begin enters an operation at the stage "begin". Its steps get the context; end takes it out again.
func (t *Table) Begin(ctx context.Context, op Operation) (_ context.Context, end func()) {
	op.Stage, op.Since = "begin", time.Now()
	e := &entry{table: t, op: op}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running == nil {
		t.running = map[*entry]struct{}{}
	}
	t.running[e] = struct{}{}
	return context.WithValue(ctx, key{}, e), func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.running, e)
	}
}

// Stage says what the context's operation, if it has one, does from now on.
func Stage(ctx context.Context, stage string) {
	e, ok := ctx.Value(key{}).(*entry)
	if !ok {
		return
	}
	now := time.Now()
	e.table.mu.Lock()
	defer e.table.mu.Unlock()
	e.op.Stage, e.op.Since = stage, now
}

// List gives the operations under way, the one that has been at its stage for longest first. It waits for nothing.
func (t *Table) List() []Operation {
	t.mu.Lock()
	out := make([]Operation, 0, len(t.running))
	for e := range t.running {
		out = append(out, e.op)
	}
	t.mu.Unlock()
	slices.SortFunc(out, func(a, b Operation) int { return a.Since.Compare(b.Since) })
	return out
}
