// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"sync"
	"time"
)

// pace keeps what several readers get together under a rate: each byte has its time on one common line. Safe for concurrent use.
type pace struct {
	rate int64 // bytes a second; 0: as fast as they come

	mu   sync.Mutex
	next time.Time // when the next byte is due; guarded by mu
}

func newPace(rate int64) *pace { return &pace{rate: rate} }

// wait returns when n more bytes may have come.
func (p *pace) wait(ctx context.Context, n int) error {
	if p.rate <= 0 {
		return nil
	}
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now // what was not used is lost: no burst after a pause
	}
	p.next = p.next.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	due := p.next
	p.mu.Unlock()
	return sleep(ctx, time.Until(due))
}

// sleep waits for d, or for the context's end.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
