// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"sync"

	"golang.org/x/sys/unix"
)

// Source is something that waits for a descriptor. Ready is called by the poller's goroutine, which must not be held up.
type Source interface{ Ready(events uint32) }

// Poller waits for descriptors with one epoll instance: an idle stream costs an entry in a map, no goroutine and no buffer.
// Safe for concurrent use, except for Run.
type Poller struct {
	ep int

	// mu guards sources and gen.
	mu      sync.Mutex
	sources map[int32]watched
	gen     int32
}

// watched carries a generation, since an event may be in hand when its descriptor is closed and the number used again.
type watched struct {
	src Source
	gen int32
}

// NewPoller makes a poller.
func NewPoller() (*Poller, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, At("make epoll instance", err)
	}
	return &Poller{ep: ep, sources: map[int32]watched{}}, nil
}

// OneShot is for sources that call Arm again when they are done with an event.
const OneShot = unix.EPOLLONESHOT

// Add starts watching a descriptor for events.
func (p *Poller) Add(fd int, events uint32, s Source) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gen++
	p.sources[int32(fd)] = watched{s, p.gen}
	return unix.EpollCtl(p.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd), Pad: p.gen})
}

// Arm asks for the next event of a descriptor.
func (p *Poller) Arm(fd int, events uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w, ok := p.sources[int32(fd)]; ok {
		unix.EpollCtl(p.ep, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd), Pad: w.gen}) //nolint:errcheck // it was added
	}
}

// Del must be called before the descriptor is closed: a duplicate elsewhere would keep it in the epoll set.
func (p *Poller) Del(fd int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.sources[int32(fd)]; ok {
		delete(p.sources, int32(fd))
		unix.EpollCtl(p.ep, unix.EPOLL_CTL_DEL, fd, nil) //nolint:errcheck // it was added
	}
}

// Run delivers events for ever. idle is called once when nothing has happened for a second after something has.
func (p *Poller) Run(idle func()) error {
	var events [64]unix.EpollEvent
	timeout := -1
	for {
		n, err := unix.EpollWait(p.ep, events[:], timeout)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return At("wait for events", err)
		}
		if n == 0 {
			idle()
			timeout = -1
			continue
		}
		timeout = 1000
		for _, e := range events[:n] {
			p.mu.Lock()
			w, ok := p.sources[e.Fd]
			p.mu.Unlock()
			if ok && w.gen == e.Pad {
				w.src.Ready(e.Events)
			}
		}
	}
}
