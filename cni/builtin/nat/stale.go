// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Stale drops connection tracking entries that would keep sending a host port's traffic to where it went before: to the pod that had the
// port, or to the host itself. For UDP they live as long as the client sends. It reads the whole table, so it works in the background,
// for all ports at once that have gathered. Safe for concurrent use.
type Stale struct {
	// Warn is called when that fails.
	Warn func(error)

	mu      sync.Mutex // guards what is below
	ports   []Port
	going   bool
	workers sync.WaitGroup
}

// Drop has the entries of these ports dropped, and returns at once.
func (s *Stale) Drop(ports []Port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range ports {
		if p.Proto == unix.IPPROTO_UDP {
			s.ports = append(s.ports, p)
		}
	}
	if len(s.ports) > 0 && !s.going {
		s.going = true
		s.workers.Go(s.work)
	}
}

// Wait returns when nothing is left to drop.
func (s *Stale) Wait() { s.workers.Wait() }

func (s *Stale) work() {
	for {
		s.mu.Lock()
		batch := s.ports
		s.ports = nil
		if len(batch) == 0 {
			s.going = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		if err := dropFlows(batch); err != nil {
			s.Warn(err)
		}
	}
}

func dropFlows(ports []Port) error {
	f := &flows{to: map[uint16][]Port{}, own: map[netip.Addr]bool{}}
	for _, p := range ports {
		f.to[p.HostPort] = append(f.to[p.HostPort], p)
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				f.own[ip.Unmap()] = true
			}
		}
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f); err != nil {
			return fmt.Errorf("drop tracked connections of host ports: %w", err)
		}
	}
	return nil
}

// flows matches tracked connections to a published port of the host that are not answered by the pod it is published for.
type flows struct {
	to  map[uint16][]Port
	own map[netip.Addr]bool
}

// MatchConntrackFlow is netlink.CustomConntrackFilter.
func (f *flows) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	dst, ok := netip.AddrFromSlice(c.Forward.DstIP)
	if !ok || c.Forward.Protocol != unix.IPPROTO_UDP || !f.own[dst.Unmap()] {
		return false
	}
	from, _ := netip.AddrFromSlice(c.Reverse.SrcIP)
	for _, p := range f.to[c.Forward.DstPort] {
		if p.Addr.Is4() == dst.Unmap().Is4() && (!p.HostIP.IsValid() || p.HostIP == dst.Unmap()) && from.Unmap() != p.Addr {
			return true
		}
	}
	return false
}
