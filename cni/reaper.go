// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// job is what is left of a DEL: links to delete, and what is to be released, in order, once they are gone.
type job struct {
	pod     string
	links   []string
	release []func() error
}

func (j *job) add(links []string, release func() error) {
	j.links = append(j.links, links...)
	j.release = append(j.release, release)
}

// grace is what the kernel gets to delete a pod's interfaces by itself when the namespace ends, which is usually right after Detach.
// Deleting them here as well would hold the kernel's lock for another 10 ms or more, and the next pod would wait for that.
const grace = 250 * time.Millisecond

// reaper sees that interfaces of detached pods go, and then gives their addresses back. It runs only while there is something to do.
type reaper struct {
	deleteLinks func(names []string) error
	log         *slog.Logger

	mu      sync.Mutex // guards what is below
	jobs    []*job
	done    int           // jobs that are through
	idle    chan struct{} // closed when nothing is left; nil while idle
	hurry   chan struct{} // holds an element when somebody waits
	closing bool
}

func (r *reaper) enqueue(j *job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.jobs = append(r.jobs, j)
	if r.idle == nil {
		r.idle, r.hurry = make(chan struct{}), make(chan struct{}, 1)
		go r.run(r.hurry)
	}
}

// run ends when the queue is empty, or, when closing, after one attempt: the next start finds the rest by its records. wait and close wait
// for it.
func (r *reaper) run(hurry chan struct{}) {
	delay := grace
	for {
		select {
		case <-hurry:
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
		if len(r.jobs) == 0 || r.closing {
			close(r.idle)
			r.idle = nil
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		if len(left) == 0 {
			delay = grace
		} else {
			delay = min(2*delay, 10*time.Second)
		}
	}
}

// do gives the jobs that have to be tried again.
func (r *reaper) do(batch []*job) []*job {
	var links []string
	for _, j := range batch {
		links = append(links, j.links...)
	}
	if err := r.deleteLinks(links); err != nil {
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

// wait hurries things up until nothing is left.
func (r *reaper) wait(ctx context.Context) error {
	r.mu.Lock()
	idle := r.idle
	if idle != nil {
		select {
		case r.hurry <- struct{}{}:
		default:
		}
	}
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
	r.closing = true
	r.mu.Unlock()
	_ = r.wait(context.Background())
}
