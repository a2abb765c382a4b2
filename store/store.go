// SPDX-License-Identifier: Apache-2.0

// Package store keeps the records of one kind of object (pods, containers): one small checksummed file each.
//
// The truth is on tmpfs, so writing it never waits for a disk; it is gone after a reboot, with everything that it describes.
// The same records are copied behind to disk, coalesced and never awaited, with the id of the boot they were made in: after a
// reboot they come back as Stale, and kubelet learns what ran before.
//
//	file      "shim1 " crc32c(boot, "\n", payload) in 8 hex digits " " boot id "\n" payload
//
// The store does not look into payloads. Images are kept elsewhere (package image).
package store

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"crishim.dev/internal/errs"
	"crishim.dev/internal/fsx"
)

// Options say where a Store keeps its files.
type Options struct {
	// Dir is the directory on tmpfs that holds the truth.
	Dir string
	// Behind is the directory on disk for the copies; empty keeps none.
	Behind string
	// Boot is this boot's id (/proc/sys/kernel/random/boot_id).
	Boot string
	Log  *slog.Logger
}

// Entry is one record as Load found it.
type Entry struct {
	ID   string
	Data []byte
	// Stale says that the record was made before the last reboot: nothing that it describes exists any more.
	Stale bool
}

// Store holds the records of one kind. Safe for concurrent use; calls for one id must be ordered by the caller.
type Store struct {
	dir, boot string
	behind    *behind // nil without copies
	log       *slog.Logger
}

// Open makes the directories, 0700, and starts the copying.
func Open(o Options) (*Store, error) {
	s := &Store{dir: o.Dir, boot: o.Boot, log: o.Log}
	for _, d := range []string{o.Dir, o.Behind} {
		if d == "" {
			continue
		}
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	if o.Behind != "" {
		s.behind = startBehind(o.Behind, o.Log)
	}
	return s, nil
}

// Close waits until the copies on disk are up to date.
func (s *Store) Close() {
	if s.behind != nil {
		s.behind.close()
	}
}

// Put writes or replaces a record. When it returns the record survives the death of this process.
func (s *Store) Put(id string, data []byte) error {
	b := s.encode(data)
	if err := fsx.WriteFileAtomic(filepath.Join(s.dir, id), b, 0o600, false); err != nil {
		return fmt.Errorf("store %s: %w", id, err)
	}
	if s.behind != nil {
		s.behind.put(id, b)
	}
	return nil
}

// Delete drops a record. An unknown id succeeds.
func (s *Store) Delete(id string) error {
	if err := os.Remove(filepath.Join(s.dir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("store: delete %s: %w", id, err)
	}
	if s.behind != nil {
		s.behind.put(id, nil)
	}
	return nil
}

// Load reads all records. A damaged one is logged, set aside as ".damaged-ID" and left out. Stale ones become part of the
// truth of this boot again (they stay stale for ever: their payload keeps the old boot's id).
func (s *Store) Load() ([]Entry, error) {
	live, err := s.readDir(s.dir)
	if err != nil {
		return nil, err
	}
	if s.behind == nil {
		return entries(live, s.boot), nil
	}
	old, err := s.readDir(s.behind.dir)
	if err != nil {
		return nil, err
	}
	for id, r := range old {
		_, here := live[id]
		switch {
		case here:
		case r.boot == s.boot: // deleted in this boot, but the copying was killed before it got there
			s.behind.put(id, nil)
		default:
			if err := fsx.WriteFileAtomic(filepath.Join(s.dir, id), r.raw, 0o600, false); err != nil {
				return nil, fmt.Errorf("store: bring back %s: %w", id, err)
			}
			live[id] = r
		}
	}
	for id, r := range live {
		if o, ok := old[id]; !ok || !bytes.Equal(o.raw, r.raw) {
			s.behind.put(id, r.raw)
		}
	}
	return entries(live, s.boot), nil
}

func entries(live map[string]record, boot string) []Entry {
	out := make([]Entry, 0, len(live))
	for id, r := range live {
		out = append(out, Entry{ID: id, Data: r.data, Stale: r.boot != boot})
	}
	return out
}

type record struct {
	boot      string
	data, raw []byte
}

func (s *Store) readDir(dir string) (map[string]record, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read store: %w", err)
	}
	out := make(map[string]record, len(list))
	for _, e := range list {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") {
			if strings.HasPrefix(e.Name(), ".new-") { // a write that was killed before its rename
				_ = os.Remove(path)
			}
			continue
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read store: %w", err)
		}
		r, err := decode(raw)
		if err != nil {
			s.log.Error("record is damaged and set aside", "file", path, "error", err)
			if err := os.Rename(path, filepath.Join(dir, ".damaged-"+e.Name())); err != nil {
				return nil, fmt.Errorf("read store: set aside: %w", err)
			}
			continue
		}
		out[e.Name()] = r
	}
	return out, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (s *Store) encode(data []byte) []byte {
	body := append([]byte(s.boot+"\n"), data...)
	return append(fmt.Appendf(nil, "shim1 %08x ", crc32.Checksum(body, castagnoli)), body...)
}

func decode(raw []byte) (record, error) {
	const head = len("shim1 00000000 ")
	if len(raw) < head || !bytes.HasPrefix(raw, []byte("shim1 ")) {
		return record{}, errs.Newf(errs.Invalid, "no header in %d bytes", len(raw))
	}
	body := raw[head:]
	if sum := fmt.Sprintf("%08x ", crc32.Checksum(body, castagnoli)); sum != string(raw[6:head]) {
		return record{}, errs.Newf(errs.Invalid, "checksum is %s, header says %s", sum, raw[6:head])
	}
	boot, data, ok := bytes.Cut(body, []byte("\n"))
	if !ok {
		return record{}, errs.Newf(errs.Invalid, "no boot id")
	}
	return record{boot: string(boot), data: data, raw: raw}, nil
}
