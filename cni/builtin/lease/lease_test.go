// SPDX-License-Identifier: Apache-2.0

package lease

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"crishim.dev/internal/errs"
)

func store(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func set(t testing.TB, text string) Set {
	t.Helper()
	var s Set
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	if err := s.Complete(); err != nil {
		t.Fatal(err)
	}
	return s
}

func owner(name string) Owner { return Owner{name, "eth0"} }

func get(t testing.TB, s *Store, name string, from Set, want string) {
	t.Helper()
	p, _, err := s.Acquire(owner(name), from, 0, netip.Addr{})
	if err != nil || p.Addr().String() != want {
		t.Fatalf("%s got %v, %v; want %s", name, p, err, want)
	}
}

func TestRoundRobin(t *testing.T) {
	dir := t.TempDir()
	s := store(t, dir)
	r := set(t, `[{"subnet":"10.0.0.0/29"}]`) // .1 is the gateway's, .7 broadcast
	get(t, s, "a", r, "10.0.0.2")
	get(t, s, "a", r, "10.0.0.2") // the same again
	get(t, s, "b", r, "10.0.0.3")
	if err := errors.Join(s.Release(owner("a")), s.Release(owner("a")), s.Release(owner("nobody"))); err != nil {
		t.Fatal(err)
	}
	get(t, s, "c", r, "10.0.0.4") // a released address is not the next
	again := store(t, dir)        // nor after a restart
	get(t, again, "d", r, "10.0.0.5")
	get(t, s, "e", r, "10.0.0.6") // the first process sees what the second did
	get(t, s, "f", r, "10.0.0.2")
	_, _, err := s.Acquire(owner("g"), r, 0, netip.Addr{})
	if !errors.Is(err, errs.Exhausted) {
		t.Fatalf("full: %v", err)
	}
	if err := again.Release(owner("d")); err != nil {
		t.Fatal(err)
	}
	get(t, s, "g", r, "10.0.0.5")
}

func TestRequested(t *testing.T) {
	s := store(t, t.TempDir())
	r := set(t, `[{"subnet":"10.0.0.0/24"}]`)
	want := netip.MustParseAddr("10.0.0.77")
	if p, _, err := s.Acquire(owner("a"), r, 0, want); err != nil || p.Addr() != want || p.Bits() != 24 {
		t.Fatal(p, err)
	}
	for addr, kind := range map[string]error{"10.0.0.77": errs.Exhausted, "10.0.0.1": errs.Invalid, "10.0.1.5": errs.Invalid, "fd00::1": errs.Invalid} {
		if _, _, err := s.Acquire(owner("b"), r, 0, netip.MustParseAddr(addr)); !errors.Is(err, kind) {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

func TestSetsAndFamilies(t *testing.T) {
	s := store(t, t.TempDir())
	v4 := set(t, `[{"subnet":"10.0.0.0/30"},{"subnet":"10.0.9.0/24","rangeStart":"10.0.9.200","rangeEnd":"10.0.9.201","gateway":"10.0.9.200"}]`)
	v6 := set(t, `[{"subnet":"fd00::/64"}]`)
	get(t, s, "a", v4, "10.0.0.2")
	get(t, s, "b", v4, "10.0.9.201")
	if _, _, err := s.Acquire(owner("c"), v4, 0, netip.Addr{}); !errors.Is(err, errs.Exhausted) {
		t.Error(err)
	}
	p, r, err := s.Acquire(owner("a"), v6, 1, netip.Addr{})
	if err != nil || p.String() != "fd00::2/64" || r.Gateway.String() != "fd00::1" {
		t.Error(p, r, err)
	}
	held, err := s.Held(owner("a"))
	if err != nil || len(held) != 2 {
		t.Error(held, err)
	}
}

// What upstream's host-local wrote counts, and can be released; what a crash of its left empty does not.
func TestUpstreamFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"10.0.0.2": "abc\r\neth0", "10.0.0.3": "", "10.0.0.4": "old-form", "last_reserved_ip.0": "10.0.0.2", "notes.txt": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := store(t, dir)
	r := set(t, `[{"subnet":"10.0.0.0/29"}]`)
	all, err := s.All()
	if err != nil || len(all) != 2 || !all[0].Foreign || all[0].Owner != owner("abc") {
		t.Fatal(all, err)
	}
	get(t, s, "a", r, "10.0.0.3")
	get(t, s, "b", r, "10.0.0.5")
	if err := s.Release(owner("abc")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "10.0.0.2")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	// One that upstream makes meanwhile, without telling.
	if err := os.WriteFile(filepath.Join(dir, "10.0.0.6"), []byte("xyz\r\neth0"), 0o600); err != nil {
		t.Fatal(err)
	}
	get(t, s, "c", r, "10.0.0.2")
}

// Two processes with eight workers each: as many addresses as there are, none twice.
func TestContention(t *testing.T) {
	dir := t.TempDir()
	r := set(t, `[{"subnet":"10.0.0.0/24"}]`)
	var mu sync.Mutex
	seen := map[netip.Addr]string{}
	var all sync.WaitGroup
	for process := range 2 {
		s := store(t, dir)
		for worker := range 8 {
			all.Go(func() {
				for i := range 50 {
					name := string(rune('a'+process)) + string(rune('a'+worker)) + string(rune('0'+i))
					p, _, err := s.Acquire(owner(name), r, 0, netip.Addr{})
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					if other := seen[p.Addr()]; other != "" {
						t.Errorf("%s and %s have %s", other, name, p.Addr())
					}
					seen[p.Addr()] = name
					mu.Unlock()
					mu.Lock()
					delete(seen, p.Addr())
					mu.Unlock()
					if err := s.Release(owner(name)); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	all.Wait()
	if left, err := store(t, dir).All(); err != nil || len(left) != 0 {
		t.Error(left, err)
	}
}

func TestBadRanges(t *testing.T) {
	for _, text := range []string{
		`[]`, `[{}]`, `[{"subnet":"10.0.0.1/24"}]`, `[{"subnet":"10.0.0.0/31"}]`, `[{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.1"}]`,
		`[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.3"}]`, `[{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"}]`,
		`[{"subnet":"10.0.0.0/16"},{"subnet":"10.0.5.0/24"}]`, `[{"subnet":"::ffff:10.0.0.0/120"}]`,
	} {
		var s Set
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			continue
		}
		if err := s.Complete(); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Every address that a set yields is inside it, is no gateway, and comes once.
func FuzzSet(f *testing.F) {
	f.Add(`[{"subnet":"10.0.0.0/29"}]`, "10.0.0.6")
	f.Add(`[{"subnet":"10.0.0.0/30"},{"subnet":"10.1.0.0/30","gateway":"10.1.0.2"}]`, "10.1.0.2")
	f.Add(`[{"subnet":"255.255.255.0/24","rangeStart":"255.255.255.255","rangeEnd":"255.255.255.255"}]`, "::")
	f.Fuzz(func(t *testing.T, text, last string) {
		var s Set
		if json.Unmarshal([]byte(text), &s) != nil || s.Complete() != nil {
			return
		}
		from, _ := netip.ParseAddr(last)
		seen := map[netip.Addr]bool{}
		for a, r := range s.after(from) {
			if seen[a] || a == r.Gateway || !s.Contains(a) {
				t.Fatalf("%s of %s (seen %t)", a, s, seen[a])
			}
			if seen[a] = true; len(seen) > 300 {
				break
			}
		}
	})
}

func BenchmarkAcquire(b *testing.B) {
	s := store(b, b.TempDir())
	r := set(b, `[{"subnet":"10.0.0.0/16"}]`)
	for i := range 500 {
		if _, _, err := s.Acquire(owner(string(rune(1000+i))), r, 0, netip.Addr{}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, _, err := s.Acquire(owner("x"), r, 0, netip.Addr{}); err != nil {
			b.Fatal(err)
		}
		if err := s.Release(owner("x")); err != nil {
			b.Fatal(err)
		}
	}
}
