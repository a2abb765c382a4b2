// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"sync"

	"golang.org/x/sys/unix"
)

// source is something that waits for a descriptor. ready is called by the poller's goroutine, which must not be held up.
type source interface{ ready(events uint32) }

// poller waits for descriptors with one epoll instance: an idle stream costs an entry in a map, no goroutine and no buffer.
// Safe for concurrent use, except for run.
type poller struct {
	ep int

	// mu guards sources and gen.
	mu      sync.Mutex
	sources map[int32]watched
	gen     int32
}

// watched carries a generation, since an event may be in hand when its descriptor is closed and the number used again.
type watched struct {
	src source
	gen int32
}

func newPoller() (*poller, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, at("make epoll instance", err)
	}
	return &poller{ep: ep, sources: map[int32]watched{}}, nil
}

// oneShot is for sources that call arm again when they are done with an event.
const oneShot = unix.EPOLLONESHOT

func (p *poller) add(fd int, events uint32, s source) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gen++
	p.sources[int32(fd)] = watched{s, p.gen}
	return unix.EpollCtl(p.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd), Pad: p.gen})
}

// arm asks for the next event of a descriptor.
func (p *poller) arm(fd int, events uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w, ok := p.sources[int32(fd)]; ok {
		unix.EpollCtl(p.ep, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd), Pad: w.gen}) //nolint:errcheck // it was added
	}
}

// del must be called before the descriptor is closed: a duplicate elsewhere would keep it in the epoll set.
func (p *poller) del(fd int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.sources[int32(fd)]; ok {
		delete(p.sources, int32(fd))
		unix.EpollCtl(p.ep, unix.EPOLL_CTL_DEL, fd, nil) //nolint:errcheck // it was added
	}
}

// run delivers events for ever. idle is called once when nothing has happened for a second after something has.
func (p *poller) run(idle func()) error {
	var events [64]unix.EpollEvent
	timeout := -1
	for {
		n, err := unix.EpollWait(p.ep, events[:], timeout)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return at("wait for events", err)
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
				w.src.ready(e.Events)
			}
		}
	}
}
