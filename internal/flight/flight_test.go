// SPDX-License-Identifier: Apache-2.0

package flight

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[string, int]
		var runs atomic.Int32
		fn := func(context.Context) (int, error) {
			time.Sleep(time.Second)
			return int(runs.Add(1)), nil
		}
		for range 10 {
			go func() {
				if v, err := g.Do(t.Context(), "k", fn); v != 1 || err != nil {
					t.Errorf("%d %v", v, err)
				}
			}()
		}
		time.Sleep(2 * time.Second)
		if v, err := g.Do(t.Context(), "k", fn); v != 2 || err != nil {
			t.Errorf("later call: %d %v", v, err)
		}
		if len(g.calls) != 0 {
			t.Errorf("%d entries left", len(g.calls))
		}
	})
}

func TestDeadlineLeavesItRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[string, int]
		fn := func(ctx context.Context) (int, error) {
			select {
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-time.After(3 * time.Second):
				return 7, nil
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := g.Do(ctx, "k", fn); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		start := time.Now()
		if v, err := g.Do(t.Context(), "k", fn); v != 7 || err != nil || time.Since(start) != 2*time.Second {
			t.Fatalf("%d %v after %v", v, err, time.Since(start))
		}
	})
}

func TestCancelEndsItAndARetryStartsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[string, int]
		n := 0
		fn := func(ctx context.Context) (int, error) {
			n++
			select {
			case <-ctx.Done():
				time.Sleep(time.Second) // clean-up
				return 0, ctx.Err()
			case <-time.After(3 * time.Second):
				return n, nil
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { time.Sleep(time.Second); cancel() }()
		if _, err := g.Do(ctx, "k", fn); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if v, err := g.Do(t.Context(), "k", fn); v != 2 || err != nil {
			t.Fatalf("%d %v", v, err)
		}
	})
}

func TestPanicIsAnError(t *testing.T) {
	var g Group[string, int]
	_, err := g.Do(t.Context(), "k", func(context.Context) (int, error) { panic("boom") })
	var p *Panic
	if !errors.As(err, &p) || p.Value != "boom" || len(p.Stack) == 0 {
		t.Fatalf("got %v", err)
	}
}

// An operation that learns that nobody has joined it is left alone from then on: whoever comes next runs its own.
func TestAlone(t *testing.T) {
	var g Group[string, int]
	inside, joined, end := make(chan struct{}), make(chan struct{}), make(chan struct{})
	results := make(chan bool, 1)
	first := func(context.Context) (int, error) {
		close(inside)
		<-joined
		results <- g.Alone("k")
		<-end
		return 1, nil
	}
	got := make(chan int, 2)
	do := func(fn func(context.Context) (int, error)) {
		v, _ := g.Do(t.Context(), "k", fn)
		got <- v
	}
	go do(first)
	<-inside
	close(joined)
	if !<-results {
		t.Fatal("one caller, and not alone")
	}
	do(func(context.Context) (int, error) { return 2, nil })
	if v := <-got; v != 2 {
		t.Errorf("who came later got %d", v)
	}
	close(end)
	if v := <-got; v != 1 {
		t.Errorf("the first got %d", v)
	}
	// The key is free again.
	if v, err := g.Do(t.Context(), "k", func(context.Context) (int, error) { return 3, nil }); v != 3 || err != nil {
		t.Errorf("after both: %d, %v", v, err)
	}
}

// With another caller it is not alone, and that one gets its result.
func TestNotAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[string, int]
		joined, got := make(chan struct{}), make(chan int, 2)
		for range 2 {
			go func() {
				v, _ := g.Do(t.Context(), "k", func(context.Context) (int, error) {
					<-joined
					if g.Alone("k") {
						return 0, nil
					}
					return 1, nil
				})
				got <- v
			}()
		}
		synctest.Wait()
		close(joined)
		if a, b := <-got, <-got; a != 1 || b != 1 {
			t.Errorf("got %d and %d", a, b)
		}
	})
}
