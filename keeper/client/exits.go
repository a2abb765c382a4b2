// SPDX-License-Identifier: Apache-2.0

package client

import (
	"sync"

	"crishim.dev/proto"
)

// exitQueue holds exits until somebody takes them, without bound: the reader of the socket must never wait for the daemon's
// other work, and an exit is a hundred bytes.
type exitQueue struct {
	out  chan proto.Exited
	wake chan struct{}
	done chan struct{}

	// mu guards queue.
	mu    sync.Mutex
	queue []proto.Exited
}

func newExitQueue() *exitQueue {
	q := &exitQueue{out: make(chan proto.Exited), wake: make(chan struct{}, 1), done: make(chan struct{})}
	go q.run()
	return q
}

func (q *exitQueue) push(e proto.Exited) {
	q.mu.Lock()
	q.queue = append(q.queue, e)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *exitQueue) close() { close(q.done) }

// run ends, and closes out, after close.
func (q *exitQueue) run() {
	defer close(q.out)
	for {
		q.mu.Lock()
		batch := q.queue
		q.queue = nil
		q.mu.Unlock()
		for _, e := range batch {
			select {
			case q.out <- e:
			case <-q.done:
				return
			}
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-q.wake:
		case <-q.done:
			return
		}
	}
}
