// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"sync"
	"time"
)

// minWindow is the shortest time over which a rate says something: the kernel accounts CPU time in ticks of up to 10 ms. Two
// listings in quick succession get the same rate.
const minWindow = 100 * time.Millisecond

// keep is how long a reading is worth keeping when nobody asks for its object.
const keep = 10 * time.Minute

// rates computes CPU use in nanocores between one reading asked for and the next. The zero value is ready.
type rates struct {
	// mu guards what follows.
	mu    sync.Mutex
	last  map[string]reading
	swept time.Time
}

type reading struct {
	at    time.Time
	usage uint64
	rate  uint64
	rated bool
}

// next takes a reading and gives the rate since the one before; none for the first one.
func (r *rates) next(id string, at time.Time, usage uint64) (rate uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = map[string]reading{}
	}
	r.sweepLocked(at)
	before, known := r.last[id]
	window := at.Sub(before.at)
	switch {
	case !known || usage < before.usage: // a group made anew
		r.last[id] = reading{at: at, usage: usage}
		return 0, false
	case window < minWindow:
		return before.rate, before.rated
	}
	rate = uint64(float64(usage-before.usage) / window.Seconds())
	r.last[id] = reading{at: at, usage: usage, rate: rate, rated: true}
	return rate, true
}

// sweepLocked drops what nobody asks for any more, so that no one has to tell of removals.
func (r *rates) sweepLocked(now time.Time) {
	if now.Sub(r.swept) < keep {
		return
	}
	r.swept = now
	for id, v := range r.last {
		if now.Sub(v.at) > keep {
			delete(r.last, id)
		}
	}
}
