// SPDX-License-Identifier: Apache-2.0

// Package event is an ordered stream of events to any number of consumers, as GetContainerEvents needs it.
//
// Every consumer sees every event that is published while it is subscribed, all in the same order, with strictly increasing
// times. Publishing never waits: a consumer has a queue, and one whose queue is full is told so (errs.Exhausted) and dropped,
// since a gap that nobody knows of is worse than a new listing. Nothing is kept for consumers to come.
//
// What an event says is its publisher's business. Neighbours: server fills in the messages and serves consumers.
package event

import (
	"context"
	"sync"
	"time"

	"crishim.dev/internal/errs"
)

// DefaultQueue is how many events may wait for a consumer: some seconds of a node that starts all its pods at once.
const DefaultQueue = 4096

// Options of a Stream of T.
type Options[T any] struct {
	// Queue is the length of each consumer's queue; 0 means DefaultQueue.
	Queue int
	// Stamp writes the event's time, in nanoseconds since 1970, into it. It is called under the stream's lock, must do no more than
	// that, and may be nil.
	Stamp func(event T, at int64)
}

// Stream hands out events. Safe for concurrent use.
type Stream[T any] struct {
	o Options[T]

	// mu guards what follows, and the order of events.
	mu        sync.Mutex
	last      int64
	consumers map[*consumer[T]]struct{}
	closed    bool
}

// consumer's queue is closed by the stream, under its lock, after err was set.
type consumer[T any] struct {
	queue chan T
	err   error
}

// New makes a stream without consumers.
func New[T any](o Options[T]) *Stream[T] {
	if o.Queue <= 0 {
		o.Queue = DefaultQueue
	}
	return &Stream[T]{o: o, consumers: map[*consumer[T]]struct{}{}}
}

// Publish gives the event to every consumer's queue. The event must not be changed afterwards.
func (s *Stream[T]) Publish(event T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// The wall clock may stand still or go backwards.
	s.last = max(time.Now().UnixNano(), s.last+1)
	if s.o.Stamp != nil {
		s.o.Stamp(event, s.last)
	}
	for c := range s.consumers {
		select {
		case c.queue <- event:
		default:
			s.dropLocked(c, errs.Newf(errs.Exhausted, "follow events: more than %d waited to be read and were dropped; list again", s.o.Queue))
		}
	}
}

// dropLocked ends a consumer: it reads what is in its queue, then err.
func (s *Stream[T]) dropLocked(c *consumer[T], err error) {
	if _, ok := s.consumers[c]; ok {
		delete(s.consumers, c)
		c.err = err
		close(c.queue)
	}
}

// Subscribe calls send for each event published from now on, in order, until ctx is done (nil), send fails (its error), the
// consumer was too slow (errs.Exhausted) or the stream is closed (errs.Unavailable). send is never called concurrently.
func (s *Stream[T]) Subscribe(ctx context.Context, send func(T) error) error {
	c := &consumer[T]{queue: make(chan T, s.o.Queue)}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errClosed()
	}
	s.consumers[c] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.dropLocked(c, nil)
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, ok := <-c.queue:
			if !ok {
				return c.err
			}
			if err := send(event); err != nil {
				return err
			}
		}
	}
}

// Consumers is how many are subscribed; with none, a publisher may save itself the work of filling in an event.
func (s *Stream[T]) Consumers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.consumers)
}

// Close ends all subscriptions once they have what is in their queues; later ones fail.
func (s *Stream[T]) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.consumers {
		s.dropLocked(c, errClosed())
	}
}

func errClosed() error { return errs.Newf(errs.Unavailable, "follow events: shutting down") }
