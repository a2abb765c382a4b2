// SPDX-License-Identifier: Apache-2.0

// Package overlay joins the pod subnets of several nodes over VXLAN (RFC 7348).
//
// Each node has one tunnel device and a subnet of its own. For every peer there is a route to its subnet through the device, and two
// fixed entries say where that leads: the neighbour entry of the peer's device, whose hardware address is derived from the peer's node
// address, and the forwarding entry from that to the node. Nothing is learned and nothing is flooded, so a node that is gone costs nothing
// and one that comes back needs nothing. Who the peers are is data: a list, or a file that is watched.
package overlay

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"

	"crishim.dev/internal/errs"
)

// Peer is a node and the pods' subnets behind it.
type Peer struct {
	Node    netip.Addr     `json:"node"`
	Subnets []netip.Prefix `json:"subnets"`
}

// Spec describes an overlay as one node takes part in it.
type Spec struct {
	Device string
	VNI    int
	Port   int
	// Node is this node's address; zero: that of the peer that has an address of this host.
	Node netip.Addr
	// Subnets are this node's; none: those of its own entry among the peers.
	Subnets []netip.Prefix
	// MTU of the device; 0: that of the interface with the node's address, less what the tunnel needs.
	MTU   int
	Peers []Peer
	// File is a JSON list of more peers, read again when it changes. Every node may have the same: its own entry is left out.
	File string
}

// Self is what came out of a Spec for this node.
type Self struct {
	Node    netip.Addr
	Subnets []netip.Prefix
	MTU     int
}

// maxFile bounds the file of peers.
const maxFile = 4 << 20

// Set is the overlays of this host, one for each device. Safe for concurrent use.
type Set struct {
	log *slog.Logger

	mu      sync.Mutex // guards what is below, and the devices
	running map[string]*running
}

type running struct {
	spec  Spec
	self  Self
	watch *watch // nil without a file
}

// New makes an empty set.
func New(log *slog.Logger) *Set { return &Set{log: log, running: map[string]*running{}} }

// Close ends the watching; devices and routes stay.
func (s *Set) Close() {
	s.mu.Lock()
	all := s.running
	s.running = map[string]*running{}
	s.mu.Unlock()
	for _, r := range all {
		r.watch.close()
	}
}

// Ensure makes the overlay what the Spec says, and keeps it so when the file changes. For one that is there already it only looks whether
// the device is.
func (s *Set) Ensure(spec Spec) (Self, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.running[spec.Device]
	if r != nil && reflect.DeepEqual(r.spec, spec) {
		if l, err := netlink.LinkByName(spec.Device); err == nil && l.Attrs().Flags&net.FlagUp != 0 {
			return r.self, nil
		}
	}
	// Watched first, then read: a change in between is not missed.
	fresh := &running{spec: spec}
	if r != nil && r.watch.of(spec.File) {
		fresh.watch = r.watch
	} else if spec.File != "" {
		w, err := watchFile(spec.File, func() { s.changed(spec.Device) })
		if err != nil {
			return Self{}, err
		}
		fresh.watch = w
	}
	self, err := s.applyLocked(spec)
	if err != nil {
		if r == nil || fresh.watch != r.watch {
			go fresh.watch.close() // its goroutine may be waiting for the lock that is held here
		}
		return self, err
	}
	if r != nil && fresh.watch != r.watch {
		go r.watch.close()
	}
	fresh.self = self
	s.running[spec.Device] = fresh
	return self, nil
}

// changed applies a file that has changed. One that can't be read or makes no sense changes nothing.
func (s *Set) changed(device string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.running[device]
	if r == nil {
		return
	}
	self, err := s.applyLocked(r.spec)
	if err != nil {
		s.log.Warn("overlay network keeps its former peers", "device", device, "error", err)
		return
	}
	r.self = self
	s.log.Info("overlay network follows its file of peers", "device", device)
}

func (s *Set) applyLocked(spec Spec) (Self, error) {
	peers, err := spec.peers()
	if err != nil {
		return Self{}, err
	}
	self, others, err := spec.split(peers)
	if err != nil {
		return Self{}, err
	}
	link, err := ensureDevice(spec, self)
	if err != nil {
		return Self{}, err
	}
	return self, setPeers(link, spec.VNI, others)
}

// peers reads the list and the file, and checks them.
func (spec Spec) peers() ([]Peer, error) {
	peers := slices.Clone(spec.Peers)
	if spec.File != "" {
		f, err := os.Open(spec.File)
		if err != nil {
			return nil, fmt.Errorf("read overlay peers: %w", err)
		}
		defer f.Close()
		more, err := parsePeers(f)
		if err != nil {
			return nil, fmt.Errorf("read overlay peers %s: %w", spec.File, err)
		}
		peers = append(peers, more...)
	}
	var all []netip.Prefix
	for i, p := range peers {
		if !p.Node.IsValid() || p.Node.IsUnspecified() || p.Node.IsMulticast() || len(p.Subnets) == 0 {
			return nil, errs.Newf(errs.Invalid, "overlay peer %d: needs a node address and subnets", i+1)
		}
		for _, n := range p.Subnets {
			if !n.IsValid() || n.Masked() != n || n.Bits() == 0 {
				return nil, errs.Newf(errs.Invalid, "overlay peer %s: subnet %s is no network", p.Node, n)
			}
			if slices.ContainsFunc(all, n.Overlaps) {
				return nil, errs.Newf(errs.Invalid, "overlay peer %s: subnet %s overlaps with another's", p.Node, n)
			}
			all = append(all, n)
		}
	}
	return peers, nil
}

// parsePeers reads a JSON list of peers.
func parsePeers(r io.Reader) ([]Peer, error) {
	d := json.NewDecoder(io.LimitReader(r, maxFile))
	d.DisallowUnknownFields()
	var peers []Peer
	if err := d.Decode(&peers); err != nil {
		return nil, errs.Newf(errs.Invalid, "parse: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errs.Newf(errs.Invalid, "parse: more than one list")
	}
	return peers, nil
}

// split finds this node among the peers.
func (spec Spec) split(peers []Peer) (Self, []Peer, error) {
	self := Self{Node: spec.Node, Subnets: spec.Subnets, MTU: spec.MTU}
	own, err := localAddrs()
	if err != nil {
		return self, nil, err
	}
	var others []Peer
	for _, p := range peers {
		if p.Node != self.Node && (self.Node.IsValid() || own[p.Node] == nil) {
			others = append(others, p)
			continue
		}
		self.Node = p.Node
		if len(self.Subnets) == 0 {
			self.Subnets = p.Subnets
		}
	}
	switch {
	case !self.Node.IsValid():
		return self, nil, errs.Newf(errs.Precondition, "overlay %s: no peer has an address of this host, and no node address is configured", spec.Device)
	case own[self.Node] == nil:
		return self, nil, errs.Newf(errs.Precondition, "overlay %s: this host has no address %s", spec.Device, self.Node)
	case len(self.Subnets) == 0:
		return self, nil, errs.Newf(errs.Precondition, "overlay %s: no subnet for this node", spec.Device)
	}
	for _, p := range others {
		for _, n := range p.Subnets {
			if slices.ContainsFunc(self.Subnets, n.Overlaps) {
				return self, nil, errs.Newf(errs.Invalid, "overlay peer %s: subnet %s overlaps with this node's", p.Node, n)
			}
		}
	}
	if self.MTU == 0 {
		self.MTU = own[self.Node].MTU - overhead(self.Node)
	}
	return self, others, nil
}

// overhead is what the tunnel adds to a packet: the inner Ethernet header, VXLAN, UDP, and the outer IP header.
func overhead(node netip.Addr) int {
	if node.Is4() {
		return 14 + 8 + 8 + 20
	}
	return 14 + 8 + 8 + 40
}

func localAddrs() (map[netip.Addr]*netlink.LinkAttrs, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	own := map[netip.Addr]*netlink.LinkAttrs{}
	for _, l := range links {
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok {
				own[ip.Unmap()] = l.Attrs()
			}
		}
	}
	return own, nil
}

// deviceMAC derives the address of a node's tunnel device, so that peers know it without being told.
func deviceMAC(vni int, node netip.Addr) net.HardwareAddr {
	sum := sha256.Sum256(fmt.Appendf(nil, "vxlan %d %s", vni, node))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}
