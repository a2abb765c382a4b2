// SPDX-License-Identifier: Apache-2.0

package seccomp

import (
	"slices"
	"strings"
	"sync"
)

// maxCached is how many filters a Cache keeps; a node has a handful of profiles and capability sets.
const maxCached = 64

// Cache compiles each profile once for each set of capabilities. It is safe for concurrent use.
type Cache struct {
	target Target
	// mu guards filters.
	mu      sync.Mutex
	filters map[string]*Filter
}

// NewCache makes filters for a host; target.Caps is ignored.
func NewCache(target Target) *Cache {
	return &Cache{target: target, filters: map[string]*Filter{}}
}

// Filter is p compiled for a container with the capabilities caps ("CAP_…"). Errors are those of Compile.
func (c *Cache) Filter(p *Profile, caps []string) (*Filter, error) {
	caps = slices.Sorted(slices.Values(caps))
	key := p.key + " " + strings.Join(caps, " ")
	c.mu.Lock()
	f := c.filters[key]
	c.mu.Unlock()
	if f != nil {
		return f, nil
	}
	t := c.target
	t.Caps = caps
	f, err := p.Compile(t)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.filters) >= maxCached {
		clear(c.filters)
	}
	c.filters[key] = f
	return f, nil
}
