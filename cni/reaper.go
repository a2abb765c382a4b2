// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// job is what is left of a DEL: links that are down and retired, and what is to be released, in
// order, once they are gone.
type job struct {
	pod     string
	links   []string
	release []func() error
}

func (j *job) add(links []string, release func() error) {
	j.links = append(j.links, links...)
	j.release = append(j.release, release)
}

// reaper deletes retired interfaces in the background, as many at once as have gathered: one deletion waits for the kernel as long as
// a hundred (synchronize_net). It runs only while there is something to do.
type reaper struct {
	deleteAll func() error
	log       *slog.Logger

	mu      sync.Mutex // guards what is below
	jobs    []*job
	done    int           // jobs that are through
	idle    chan struct{} // closed when nothing is left; nil while idle
	closing chan struct{}
}

func (r *reaper) enqueue(j *job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.jobs = append(r.jobs, j)
	if r.idle == nil {
		r.idle = make(chan struct{})
		if r.closing == nil {
			r.closing = make(chan struct{})
		}
		go r.run(r.closing)
	}
}

// run ends when the queue is empty; close and wait wait for it.
func (r *reaper) run(closing chan struct{}) {
	delay := time.Duration(0)
	for {
		select {
		case <-closing:
			delay = -1 // one more attempt, then give up: the next start finds the rest by its records
		case <-time.After(delay):
		}
		r.mu.Lock()
		batch := r.jobs
		r.jobs = nil
		r.mu.Unlock()
		left := r.do(batch)
		r.mu.Lock()
		r.done += len(batch) - len(left)
		r.jobs = append(left, r.jobs...)
		if len(r.jobs) == 0 || delay < 0 {
			close(r.idle)
			r.idle = nil
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		delay = 0
		if len(left) > 0 {
			delay = min(max(2*delay, 100*time.Millisecond), 10*time.Second)
		}
	}
}

// do gives the jobs that have to be tried again.
func (r *reaper) do(batch []*job) []*job {
	if err := r.deleteAll(); err != nil {
		r.log.Warn("interfaces of detached pods are still there; their addresses stay in use", "error", err)
		return batch
	}
	var left []*job
	for _, j := range batch {
		for len(j.release) > 0 {
			if err := j.release[0](); err != nil {
				r.log.Warn("the address of a detached pod is still in use", "pod", j.pod, "error", err)
				left = append(left, j)
				break
			}
			j.release = j.release[1:]
		}
	}
	return left
}

func (r *reaper) wait(ctx context.Context) error {
	r.mu.Lock()
	idle := r.idle
	r.mu.Unlock()
	if idle == nil {
		return nil
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// progress gives the number of jobs through so far, and whether there are more.
func (r *reaper) progress() (done int, busy bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.done, r.idle != nil
}

func (r *reaper) close() {
	r.mu.Lock()
	if r.closing != nil {
		close(r.closing)
		r.closing = nil
	}
	r.mu.Unlock()
	_ = r.wait(context.Background())
}
