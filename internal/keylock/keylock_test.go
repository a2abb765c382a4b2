// SPDX-License-Identifier: Apache-2.0

package keylock

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func TestOneHolderAtATime(t *testing.T) {
	var l Locks
	var wg sync.WaitGroup
	n := 0
	for range 50 {
		wg.Go(func() {
			unlock, err := l.Lock(t.Context(), "k")
			if err != nil {
				t.Error(err)
				return
			}
			n++
			unlock()
		})
	}
	wg.Wait()
	if n != 50 || len(l.held) != 0 {
		t.Fatalf("n %d, entries left %d", n, len(l.held))
	}
}

func TestWaiterLeavesWithItsContext(t *testing.T) {
	var l Locks
	unlock, err := l.Lock(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Lock(ctx, "k"); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	other, err := l.Lock(t.Context(), "other")
	if err != nil {
		t.Fatal(err)
	}
	other()
	unlock()
	if len(l.held) != 0 {
		t.Fatalf("entries left: %d", len(l.held))
	}
}
