// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Pauses between attempts at a DEL that fails: the plugin's cause may be gone in a second, or when its server is back.
const (
	firstPause = time.Second
	lastPause  = 2 * time.Minute
)

// atOnce bounds the attempts that run at the same time: after a reboot there may be hundreds of pods to detach.
const atOnce = 4

// retrier repeats the DELs that failed, each with growing pauses, until they succeed. What it repeats is on record, so nothing is lost when
// it is closed: the next start finds it again.
type retrier struct {
	// detach makes one attempt. A pod that is attached no more succeeds.
	detach func(ctx context.Context, id string) error
	first  time.Duration
	log    *slog.Logger

	ctx   context.Context //nolint:containedctx // of the workers, which belong to this object
	stop  context.CancelFunc
	slots chan struct{}
	all   sync.WaitGroup

	mu      sync.Mutex // guards pending
	pending map[string]bool
}

func newRetrier(detach func(context.Context, string) error, log *slog.Logger) *retrier {
	r := &retrier{detach: detach, first: firstPause, log: log, slots: make(chan struct{}, atOnce), pending: map[string]bool{}}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

// later has a pod detached in the background, for the first time after the pause. One that is waiting already stays as it is.
func (r *retrier) later(id string, pause time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending[id] || r.ctx.Err() != nil {
		return
	}
	r.pending[id] = true
	r.all.Go(func() { r.work(id, pause) })
}

func (r *retrier) work(id string, pause time.Duration) {
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.pending, id)
	}()
	for {
		select {
		case <-time.After(pause):
		case <-r.ctx.Done():
			return
		}
		select {
		case r.slots <- struct{}{}:
		case <-r.ctx.Done():
			return
		}
		err := r.detach(r.ctx, id)
		<-r.slots
		if err == nil {
			r.log.Info("pod is detached from its network", "pod", id)
			return
		}
		if r.ctx.Err() != nil {
			return
		}
		pause = min(max(2*pause, r.first), lastPause)
		r.log.Warn("pod is still attached to its network", "pod", id, "error", err, "again", pause)
	}
}

// close gives up what is waiting and ends what is running.
func (r *retrier) close() {
	r.mu.Lock()
	r.stop()
	r.mu.Unlock()
	r.all.Wait()
}
