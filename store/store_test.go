// SPDX-License-Identifier: Apache-2.0

package store

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

func open(t *testing.T, base, boot string) *Store {
	t.Helper()
	s, err := Open(Options{Dir: filepath.Join(base, "run-"+boot), Behind: filepath.Join(base, "disk"), Boot: boot, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func load(t *testing.T, s *Store) map[string]Entry {
	t.Helper()
	l, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]Entry{}
	for _, e := range l {
		out[e.ID] = e
	}
	return out
}

func put(t *testing.T, s *Store, id, data string) {
	t.Helper()
	if err := s.Put(id, []byte(data)); err != nil {
		t.Fatal(err)
	}
}

func TestSameBoot(t *testing.T) {
	base := t.TempDir()
	s := open(t, base, "b1")
	put(t, s, "a", "one\ntwo")
	put(t, s, "a", "three\n")
	put(t, s, "b", "")
	if err := s.Delete("b"); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete("never"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	got := load(t, open(t, base, "b1"))
	if len(got) != 1 || string(got["a"].Data) != "three\n" || got["a"].Stale {
		t.Fatalf("%+v", got)
	}
}

func TestAfterReboot(t *testing.T) {
	base := t.TempDir()
	s := open(t, base, "b1")
	put(t, s, "a", "x")
	s.Close()
	for range 2 { // it stays stale over restarts in the new boot
		s = open(t, base, "b2")
		if got := load(t, s); len(got) != 1 || !got["a"].Stale || string(got["a"].Data) != "x" {
			t.Fatalf("%+v", got)
		}
		s.Close()
	}
	s = open(t, base, "b2")
	load(t, s)
	if err := s.Delete("a"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if got := load(t, open(t, base, "b3")); len(got) != 0 {
		t.Fatalf("deleted, but back: %+v", got)
	}
}

func TestDeletionNotYetCopied(t *testing.T) {
	base := t.TempDir()
	s := open(t, base, "b1")
	put(t, s, "a", "x")
	s.Close()
	if err := os.Remove(filepath.Join(base, "run-b1", "a")); err != nil { // what a kill after the first step of Delete leaves
		t.Fatal(err)
	}
	s = open(t, base, "b1")
	if got := load(t, s); len(got) != 0 {
		t.Fatalf("%+v", got)
	}
	s.Close()
	if l, err := os.ReadDir(filepath.Join(base, "disk")); err != nil || len(l) != 0 {
		t.Fatalf("%v %v", l, err)
	}
}

func TestDamagedRecordsAreSetAside(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"truncated": func(b []byte) []byte { return b[:len(b)-1] },
		"flipped":   func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"header":    func(b []byte) []byte { b[0] = 'x'; return b },
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			s := open(t, base, "b1")
			put(t, s, "a", "payload")
			put(t, s, "good", "payload")
			s.Close()
			for _, dir := range []string{"run-b1", "disk"} {
				path := filepath.Join(base, dir, "a")
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, damage(b), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := load(t, open(t, base, "b1")); len(got) != 1 || string(got["good"].Data) != "payload" {
				t.Fatalf("%+v", got)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	s := &Store{boot: "b"}
	f.Add(s.encode([]byte("payload")))
	f.Add([]byte("shim1 "))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decode(b)
		if err == nil && string((&Store{boot: r.boot}).encode(r.data)) != string(b) {
			t.Fatalf("decoded %q, but it encodes differently", b)
		}
	})
}
