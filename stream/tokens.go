// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"crypto/rand"
	"sync"
	"time"

	"crishim.dev/internal/errs"
)

const (
	// tokenLife is how long a token waits for its client.
	tokenLife = time.Minute
	// maxTokens bounds what clients that never come can hold.
	maxTokens = 1000
)

// tokens keeps requests under names that nobody can guess. Safe for concurrent use.
type tokens struct {
	now func() time.Time

	mu sync.Mutex
	// waiting is guarded by mu.
	waiting map[string]ticket
}

type ticket struct {
	request any
	expires time.Time
}

func newTokens(now func() time.Time) *tokens {
	return &tokens{now: now, waiting: map[string]ticket{}}
}

// put keeps request and returns its token: 128 random bits in base32. Exhausted when maxTokens are waiting.
func (t *tokens) put(request any) (string, error) {
	token := rand.Text()
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if len(t.waiting) >= maxTokens {
		for k, w := range t.waiting {
			if now.After(w.expires) {
				delete(t.waiting, k)
			}
		}
	}
	if len(t.waiting) >= maxTokens {
		return "", errs.Newf(errs.Exhausted, "keep streaming request: %d requests are waiting for their clients", maxTokens)
	}
	t.waiting[token] = ticket{request, now.Add(tokenLife)}
	return token, nil
}

// take gives the token's request, once. Nil when there is none, or none any more.
func (t *tokens) take(token string) any {
	t.mu.Lock()
	defer t.mu.Unlock()
	w, ok := t.waiting[token]
	delete(t.waiting, token)
	if !ok || t.now().After(w.expires) {
		return nil
	}
	return w.request
}
