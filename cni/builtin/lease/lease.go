// SPDX-License-Identifier: Apache-2.0

// Package lease hands out addresses from ranges, one owner each, and remembers them across restarts of the daemon.
//
// A lease is a symbolic link in the network's directory: its name is the address, its target the owner ("CONTAINER/IFNAME"). Making
// one is a single system call that fails if the address is taken, carries its content from the start, and on tmpfs needs no page
// of memory. Files as the upstream host-local plugin writes them ("CONTAINER\r\nIFNAME") are understood as leases, so that a directory
// of its can be taken over, and both can work in one.
//
// The directory is the truth. Each process holds an index of it in memory; a counter in the lock file, raised by every change under
// flock(2), tells when another process has made the index stale.
package lease

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// Owner is who holds an address: one interface of one container (for a runtime: of a pod).
type Owner struct{ Container, IfName string }

func (o Owner) String() string { return o.Container + "/" + o.IfName }

// Lease is one address in use.
type Lease struct {
	Addr  netip.Addr
	Owner Owner
	// Foreign: acquired for somebody else than the runtime whose store it is, which must not release it on its own account.
	Foreign bool
}

// Store is the leases of one network. Safe for concurrent use, also by several processes.
type Store struct {
	dir     string
	foreign bool
	lock    *os.File

	mu      sync.Mutex // guards what is below; taken before the flock
	change  uint64     // of the lock file when the index was read
	loaded  bool
	owners  map[netip.Addr]Owner
	held    map[Owner][]netip.Addr
	others  map[netip.Addr]bool // foreign leases
	lastOne map[int]netip.Addr  // by range set: where the round robin stands
}

// Open opens the directory of a network's leases, making it when missing. With foreign the leases acquired through this Store are marked so.
func Open(dir string, foreign bool) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open leases: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open leases: %w", err)
	}
	return &Store{dir: dir, foreign: foreign, lock: lock, lastOne: map[int]netip.Addr{}}, nil
}

// Close releases the descriptor; the leases stay.
func (s *Store) Close() error { return s.lock.Close() }

const (
	lockName = "lock" // upstream's name: its plugins take the same flock
	// foreignMark follows the owner in a foreign lease. No name of an interface has a slash.
	foreignMark = "/foreign"
)

// Acquire gives the owner an address of the set: the one it holds there already, else want if that is valid, else the next free one
// after the last handed out. index tells the network's range sets apart. No free address: errs.Exhausted.
func (s *Store) Acquire(o Owner, set Set, index int, want netip.Addr) (netip.Prefix, Range, error) {
	unlock, err := s.begin()
	if err != nil {
		return netip.Prefix{}, Range{}, err
	}
	defer unlock()
	for _, a := range s.held[o] {
		if r, ok := set.find(a); ok && (!want.IsValid() || want == a) {
			return netip.PrefixFrom(a, r.Subnet.Bits()), r, nil
		}
	}
	if want.IsValid() {
		return s.acquireThis(o, set, want)
	}
	// The index may be stale when somebody who does not raise the counter works here too: look again before giving up.
	for fresh := false; ; fresh = true {
		a, r, err := s.acquireNext(o, set, index)
		if err == nil {
			return netip.PrefixFrom(a, r.Subnet.Bits()), r, nil
		}
		if fresh || !errors.Is(err, errs.Exhausted) {
			return netip.Prefix{}, Range{}, err
		}
		if err := s.load(); err != nil {
			return netip.Prefix{}, Range{}, err
		}
	}
}

func (s *Store) acquireThis(o Owner, set Set, want netip.Addr) (netip.Prefix, Range, error) {
	r, ok := set.find(want)
	switch {
	case !ok:
		return netip.Prefix{}, r, errs.Newf(errs.Invalid, "lease address %s: not in %s", want, set)
	case want == r.Gateway:
		return netip.Prefix{}, r, errs.Newf(errs.Invalid, "lease address %s: it is the gateway's", want)
	}
	ok, err := s.claim(want, o)
	if err != nil {
		return netip.Prefix{}, r, err
	}
	if !ok {
		return netip.Prefix{}, r, errs.Newf(errs.Exhausted, "lease address %s: in use by %s", want, s.owners[want])
	}
	return netip.PrefixFrom(want, r.Subnet.Bits()), r, s.save()
}

func (s *Store) acquireNext(o Owner, set Set, index int) (netip.Addr, Range, error) {
	for a, r := range set.after(s.lastOne[index]) {
		if _, used := s.owners[a]; used {
			continue
		}
		ok, err := s.claim(a, o)
		if err != nil {
			return netip.Addr{}, r, err
		}
		if ok {
			s.lastOne[index] = a
			return a, r, s.save()
		}
	}
	return netip.Addr{}, Range{}, errs.Newf(errs.Exhausted, "lease address: all of %s are in use", set)
}

// claim makes the symbolic link; false if the address is taken after all.
func (s *Store) claim(a netip.Addr, o Owner) (bool, error) {
	target := o.String()
	if s.foreign {
		target += foreignMark
	}
	err := os.Symlink(target, filepath.Join(s.dir, a.String()))
	if errors.Is(err, fs.ErrExist) {
		s.note(s.read(a))
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("record lease: %w", err)
	}
	s.note(Lease{a, o, s.foreign})
	return true, nil
}

// Release gives back what the owner holds. Holding nothing is fine.
func (s *Store) Release(o Owner) error {
	unlock, err := s.begin()
	if err != nil {
		return err
	}
	defer unlock()
	return s.release(o)
}

func (s *Store) release(o Owner) error {
	var failed []error
	var kept []netip.Addr
	for _, a := range s.held[o] {
		err := os.Remove(filepath.Join(s.dir, a.String()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed, kept = append(failed, fmt.Errorf("release lease: %w", err)), append(kept, a)
			continue
		}
		delete(s.owners, a)
		delete(s.others, a)
	}
	if len(s.held[o]) == 0 {
		return nil
	}
	if delete(s.held, o); len(kept) > 0 {
		s.held[o] = kept
	}
	return errors.Join(append(failed, s.save())...)
}

// Held lists the addresses of the owner in the order of acquisition, as far as this process saw it.
func (s *Store) Held(o Owner) ([]netip.Addr, error) {
	unlock, err := s.begin()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return slices.Clone(s.held[o]), nil
}

// All lists every lease, by address.
func (s *Store) All() ([]Lease, error) {
	unlock, err := s.begin()
	if err != nil {
		return nil, err
	}
	defer unlock()
	out := make([]Lease, 0, len(s.owners))
	for a, o := range s.owners {
		out = append(out, Lease{a, o, s.others[a]})
	}
	slices.SortFunc(out, func(a, b Lease) int { return a.Addr.Compare(b.Addr) })
	return out, nil
}

// begin takes both locks and makes the index current.
func (s *Store) begin() (unlock func(), err error) {
	s.mu.Lock()
	for {
		err = unix.Flock(int(s.lock.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("lock leases in %s: %w", s.dir, err)
	}
	unlock = func() {
		_ = unix.Flock(int(s.lock.Fd()), unix.LOCK_UN)
		s.mu.Unlock()
	}
	if change, _ := s.counter(); !s.loaded || change != s.change {
		if err := s.load(); err != nil {
			unlock()
			return nil, err
		}
	}
	return unlock, nil
}

// counter reads the lock file: the change counter, then the last address handed out of each range set, one per 17 bytes.
func (s *Store) counter() (uint64, []byte) {
	var b [512]byte
	n, _ := s.lock.ReadAt(b[:], 0)
	if n < 8 {
		return 0, nil // made by upstream, or new
	}
	return binary.BigEndian.Uint64(b[:]), b[8:n]
}

// save raises the counter and writes down the round robin's state. One write of a few bytes into the page cache: not torn by a kill.
func (s *Store) save() error {
	s.change++
	b := binary.BigEndian.AppendUint64(nil, s.change)
	for i := 0; i < len(s.lastOne) && i < 16; i++ {
		a := s.lastOne[i]
		raw := a.As16()
		b = append(b, byte(a.BitLen()))
		b = append(b, raw[:]...)
	}
	if _, err := s.lock.WriteAt(b, 0); err != nil {
		return fmt.Errorf("record lease: %w", err)
	}
	return nil
}

// load reads the directory. The caller holds both locks.
func (s *Store) load() error {
	names, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("read leases: %w", err)
	}
	s.owners, s.held, s.others = map[netip.Addr]Owner{}, map[Owner][]netip.Addr{}, map[netip.Addr]bool{}
	for _, n := range names {
		a, err := netip.ParseAddr(n.Name())
		if err != nil || a.String() != n.Name() {
			continue
		}
		if l := s.read(a); l.Owner.Container != "" {
			s.note(l)
			continue
		}
		// Upstream writes under this lock, in two steps: what is empty now was left by a crash between them.
		if info, err := os.Lstat(filepath.Join(s.dir, n.Name())); err == nil && info.Mode().IsRegular() && info.Size() == 0 {
			_ = os.Remove(filepath.Join(s.dir, n.Name()))
		}
	}
	change, rest := s.counter()
	s.change, s.loaded = change, true
	clear(s.lastOne)
	for i := 0; len(rest) >= 17; i, rest = i+1, rest[17:] {
		a := netip.AddrFrom16([16]byte(rest[1:17]))
		if rest[0] == 32 {
			a = a.Unmap()
		}
		if rest[0] != 0 {
			s.lastOne[i] = a
		}
	}
	return nil
}

// read gives the lease of an address, written in either form; without an owner if there is none. One that upstream wrote is foreign.
func (s *Store) read(a netip.Addr) Lease {
	path := filepath.Join(s.dir, a.String())
	if target, err := os.Readlink(path); err == nil {
		target, foreign := strings.CutSuffix(target, foreignMark)
		c, i, _ := strings.Cut(target, "/")
		return Lease{a, Owner{c, i}, foreign}
	}
	b, err := os.ReadFile(path)
	if err != nil || len(b) > 4096 {
		return Lease{Addr: a}
	}
	c, i, _ := strings.Cut(strings.TrimSpace(string(b)), "\r\n")
	return Lease{a, Owner{strings.TrimSpace(c), strings.TrimSpace(i)}, true}
}

func (s *Store) note(l Lease) {
	if _, known := s.owners[l.Addr]; known {
		return
	}
	s.owners[l.Addr] = l.Owner
	s.held[l.Owner] = append(s.held[l.Owner], l.Addr)
	if l.Foreign {
		s.others[l.Addr] = true
	}
}
