// SPDX-License-Identifier: Apache-2.0

package event

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"crishim.dev/internal/errs"
)

type note struct{ n, at int64 }

func stream(queue int) *Stream[*note] {
	return New(Options[*note]{Queue: queue, Stamp: func(e *note, at int64) { e.at = at }})
}

func TestOrderAndTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the clock stands still in here
		s := stream(0)
		var got [3][]*note
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for i := range got {
			all.Go(func() {
				if err := s.Subscribe(ctx, func(e *note) error { got[i] = append(got[i], e); return nil }); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if n := s.Consumers(); n != 3 {
			t.Fatalf("%d consumers", n)
		}
		var publishers sync.WaitGroup
		for p := range 4 {
			publishers.Go(func() {
				for i := range 100 {
					s.Publish(&note{n: int64(p*1000 + i)})
				}
			})
		}
		publishers.Wait()
		synctest.Wait()
		cancel()
		all.Wait()
		if s.Consumers() != 0 {
			t.Error("consumers left")
		}
		last := map[int64]int64{}
		for i, e := range got[0] {
			if i > 0 && e.at <= got[0][i-1].at {
				t.Fatalf("event %d: time %d after %d", i, e.at, got[0][i-1].at)
			}
			if p := e.n / 1000; i > 0 && last[p] >= e.n+1 {
				t.Fatalf("event %d of publisher %d after %d", e.n, p, last[p])
			}
			last[e.n/1000] = e.n
			for _, other := range got[1:] {
				if len(other) != 400 || other[i] != e {
					t.Fatalf("consumers differ at event %d", i)
				}
			}
		}
	})
}

func TestSlowConsumerIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stream(10)
		block, result := make(chan struct{}), make(chan error, 1)
		seen := 0
		go func() {
			result <- s.Subscribe(t.Context(), func(e *note) error {
				if e.n != int64(seen) {
					t.Errorf("event %d after a loss", e.n)
				}
				seen++
				<-block
				return nil
			})
		}()
		synctest.Wait()
		fast := 0
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = s.Subscribe(ctx, func(*note) error { fast++; return nil }) }()
		synctest.Wait()
		for i := range 50 {
			s.Publish(&note{n: int64(i)})
			synctest.Wait()
		}
		close(block)
		if err := <-result; !errors.Is(err, errs.Exhausted) {
			t.Errorf("got %v", err)
		}
		if seen != 11 || fast != 50 {
			t.Errorf("the slow one saw %d, the fast one %d", seen, fast)
		}
	})
}

func TestSendFailsAndClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stream(0)
		broken := errors.New("broken pipe")
		result := make(chan error, 2)
		go func() { result <- s.Subscribe(t.Context(), func(*note) error { return broken }) }()
		synctest.Wait()
		s.Publish(&note{})
		if err := <-result; !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
		s.Publish(&note{}) // nobody is there
		go func() { result <- s.Subscribe(t.Context(), func(*note) error { return nil }) }()
		synctest.Wait()
		s.Close()
		if err := <-result; !errors.Is(err, errs.Unavailable) {
			t.Errorf("got %v", err)
		}
		if err := s.Subscribe(t.Context(), nil); !errors.Is(err, errs.Unavailable) {
			t.Errorf("after Close: %v", err)
		}
	})
}
