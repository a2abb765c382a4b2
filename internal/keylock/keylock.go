// SPDX-License-Identifier: Apache-2.0

// Package keylock is a mutex per key: operations on one pod or container wait for each other, those on others don't.
package keylock

import (
	"context"
	"fmt"
	"sync"
)

// Locks is a set of locks by key. The zero value is ready. Safe for concurrent use.
type Locks struct {
	mu sync.Mutex
	// held has an entry for every key that somebody holds or waits for. Guarded by mu.
	held map[string]*entry
}

type entry struct {
	token chan struct{} // holds one element while the lock is free
	users int           // holder and waiters; guarded by Locks.mu
}

// Lock waits for the key's lock or the context's end. The unlock it returns must be called once.
func (l *Locks) Lock(ctx context.Context, key string) (unlock func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*entry{}
	}
	e := l.held[key]
	if e == nil {
		e = &entry{token: make(chan struct{}, 1)}
		e.token <- struct{}{}
		l.held[key] = e
	}
	e.users++
	l.mu.Unlock()
	select {
	case <-e.token:
		return func() {
			e.token <- struct{}{}
			l.leave(key, e)
		}, nil
	case <-ctx.Done():
		l.leave(key, e)
		return nil, fmt.Errorf("wait for another operation on %s: %w", key, context.Cause(ctx))
	}
}

func (l *Locks) leave(key string, e *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.users--; e.users == 0 {
		delete(l.held, key)
	}
}
