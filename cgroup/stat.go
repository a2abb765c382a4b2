// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strconv"
	"time"
)

// noLimit is what "max" reads as.
const noLimit = math.MaxUint64

// Stats is one reading of a group, its descendants included: what CRI's statistics need, and cheap. Sizes are in bytes, durations in nanoseconds. Files that the
// kernel doesn't have leave zeros, or nil where the difference matters.
type Stats struct {
	// Time is when the CPU counter was read; CPU is the time used.
	Time   time.Time
	CPU    uint64
	Memory Memory
	// Swap is nil where swap is not accounted.
	Swap *Swap
	// Tasks counts threads, not processes.
	Tasks uint64
	// Pressure has nil entries where the kernel gives none (CONFIG_PSI; version 1 only when a cgroup2 mount is beside it).
	Pressure Pressures
}

// Memory is what the memory controller counts.
type Memory struct {
	Usage uint64
	// Limit is the group's own, math.MaxUint64 if none.
	Limit uint64
	// WorkingSet is Usage less the file pages that could go at once (inactive), which is what the kubelet evicts by.
	WorkingSet uint64
	// RSS is anonymous memory, with swap cache and huge pages.
	RSS, Cache, MappedFile      uint64
	ActiveFile, InactiveFile    uint64
	PageFaults, MajorPageFaults uint64
}

// Swap is what is swapped out; Limit is math.MaxUint64 if none.
type Swap struct{ Usage, Limit uint64 }

// Pressures are pressure stall information by resource.
type Pressures struct{ CPU, Memory, IO *Pressure }

// Pressure is a *.pressure file (Documentation/accounting/psi.rst). Full is nil where there is no such line.
type Pressure struct{ Some, Full *Stall }

// Stall says how long tasks stalled: averages in percent, the total in nanoseconds.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}

// read reads a control file of the controller's hierarchy; fs.ErrNotExist if the host lacks the controller.
func (g *Group) read(controller, file string) ([]byte, error) {
	return g.readInto(nil, controller, file)
}

func (g *Group) readInto(buf []byte, controller, file string) ([]byte, error) {
	h := g.m.by[controller]
	if h == nil {
		return nil, &fs.PathError{Op: "open", Path: g.path + "/" + file, Err: fs.ErrNotExist}
	}
	return h.readInto(buf, g.path, file)
}

// number reads a control file with one number, or "max".
func (g *Group) number(controller, file string) (uint64, error) {
	var a [64]byte
	b, err := g.readInto(a[:0], controller, file)
	if err != nil {
		return 0, err
	}
	return parseNumber(bytes.TrimSpace(b))
}

func parseNumber(b []byte) (uint64, error) {
	if string(b) == "max" || string(b) == "-1" {
		return noLimit, nil
	}
	return strconv.ParseUint(string(b), 10, 64)
}

// keyed calls f for each "name value" line.
func keyed(b []byte, f func(name string, v uint64)) {
	for line := range bytes.Lines(b) {
		name, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if v, err := strconv.ParseUint(string(value), 10, 64); ok && err == nil {
			f(string(name), v)
		}
	}
}

// reading collects the files of one Stats. Absent files leave zeros; any other error is kept and ends it.
type reading struct {
	g   *Group
	buf []byte
	err error
}

// number gives the value of a file and whether it is there.
func (r *reading) number(controller, file string) (uint64, bool) {
	b := r.file(controller, file)
	if b == nil {
		return 0, false
	}
	v, err := parseNumber(bytes.TrimSpace(b))
	if err != nil {
		r.err = errors.Join(r.err, fmt.Errorf("parse %s: %w", file, err))
	}
	return v, err == nil
}

// file gives the content of a file until the next call, nil if absent.
func (r *reading) file(controller, file string) []byte {
	if r.buf == nil {
		r.buf = make([]byte, 8192)
	}
	b, err := r.g.readInto(r.buf, controller, file)
	if err != nil {
		// EOPNOTSUPP: pressure with psi=0.
		if gone(err) != nil && !errors.Is(err, errors.ErrUnsupported) {
			r.err = errors.Join(r.err, err)
		}
		return nil
	}
	r.buf = b[:cap(b)]
	return b
}

// Stats measures the group.
func (g *Group) Stats() (Stats, error) {
	r := &reading{g: g}
	s, err := r.stats()
	if err != nil {
		return Stats{}, err
	}
	return s, r.end()
}

// end is the error that the reading met.
func (r *reading) end() error {
	if r.err != nil {
		return fmt.Errorf("measure cgroup %s: %w", r.g.path, r.err)
	}
	return nil
}

func (r *reading) stats() (Stats, error) {
	if _, err := r.g.m.Open(r.g.path); err != nil {
		return Stats{}, err
	}
	s := Stats{Time: time.Now()}
	if r.g.m.version == 2 {
		s.CPU = r.cpuStat()["usage_usec"] * 1000
		r.memoryV2(&s)
	} else {
		s.CPU, _ = r.number("cpuacct", "cpuacct.usage")
		r.memoryV1(&s)
	}
	s.Tasks, _ = r.number("pids", "pids.current")
	s.Memory.WorkingSet = s.Memory.Usage - min(s.Memory.Usage, s.Memory.InactiveFile)
	s.Pressure = Pressures{CPU: r.pressure("cpu"), Memory: r.pressure("memory"), IO: r.pressure("io")}
	return s, nil
}

// cpuStat reads what every version 2 group has, with the cpu controller or without; microseconds.
func (r *reading) cpuStat() map[string]uint64 {
	m := map[string]uint64{}
	keyed(r.core("cpu.stat"), func(name string, v uint64) { m[name] = v })
	return m
}

// memoryV1 takes the total_ lines, which include the groups below.
func (r *reading) memoryV1(s *Stats) {
	m := &s.Memory
	m.Usage, _ = r.number("memory", "memory.usage_in_bytes")
	if m.Limit, _ = r.number("memory", "memory.limit_in_bytes"); m.Limit >= unlimitedV1 {
		m.Limit = noLimit
	}
	var swap uint64
	keyed(r.file("memory", "memory.stat"), func(name string, v uint64) {
		if p := m.field(name, "total_rss", "total_cache", "total_mapped_file", "total_active_file", "total_inactive_file", "total_pgfault", "total_pgmajfault"); p != nil {
			*p = v
		} else if name == "total_swap" {
			swap = v
		}
	})
	if both, ok := r.number("memory", memsw); ok {
		s.Swap = &Swap{Usage: swap, Limit: noLimit}
		if both < unlimitedV1 {
			s.Swap.Limit = both - min(both, m.Limit)
		}
	}
}

// unlimitedV1 is what version 1 shows as "no limit": the largest multiple of the page size (4 to 64 KiB) below 2^63.
const unlimitedV1 = math.MaxInt64 &^ (1<<16 - 1)

func (r *reading) memoryV2(s *Stats) {
	m := &s.Memory
	m.Usage, _ = r.number("memory", "memory.current")
	m.Limit, _ = r.number("memory", "memory.max")
	keyed(r.file("memory", "memory.stat"), func(name string, v uint64) {
		if p := m.field(name, "anon", "file", "file_mapped", "active_file", "inactive_file", "pgfault", "pgmajfault"); p != nil {
			*p = v
		}
	})
	if v, ok := r.number("memory", "memory.swap.current"); ok {
		s.Swap = &Swap{Usage: v}
		s.Swap.Limit, _ = r.number("memory", "memory.swap.max")
	}
}

// field finds where a line of memory.stat goes, by the version's names.
func (m *Memory) field(name string, names ...string) *uint64 {
	for i, p := range []*uint64{&m.RSS, &m.Cache, &m.MappedFile, &m.ActiveFile, &m.InactiveFile, &m.PageFaults, &m.MajorPageFaults} {
		if names[i] == name {
			return p
		}
	}
	return nil
}

// core reads a file that version 2 groups have without any controller.
func (r *reading) core(file string) []byte { return r.file(coreFiles, file) }

// pressure reads a pressure file; nil where the kernel has none.
func (r *reading) pressure(resource string) *Pressure {
	return parsePressure(r.core(resource + ".pressure"))
}

func parsePressure(b []byte) *Pressure {
	var p Pressure
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 5 {
			continue
		}
		s := &Stall{}
		for _, kv := range f[1:] {
			k, v, _ := bytes.Cut(kv, []byte("="))
			switch string(k) {
			case "avg10":
				s.Avg10, _ = strconv.ParseFloat(string(v), 64)
			case "avg60":
				s.Avg60, _ = strconv.ParseFloat(string(v), 64)
			case "avg300":
				s.Avg300, _ = strconv.ParseFloat(string(v), 64)
			case "total":
				us, _ := strconv.ParseUint(string(v), 10, 64)
				s.Total = us * 1000
			}
		}
		switch string(f[0]) {
		case "some":
			p.Some = s
		case "full":
			p.Full = s
		}
	}
	if p.Some == nil && p.Full == nil {
		return nil
	}
	return &p
}

// OOMKills counts processes that the OOM killer ended in the group and below, whichever limit was hit. A group that is gone or
// a host without the memory controller: 0.
func (g *Group) OOMKills() (uint64, error) {
	h, file := g.m.by["memory"], "memory.oom_control"
	if g.m.version == 2 {
		file = "memory.events"
	}
	if h == nil {
		return 0, nil
	}
	var n uint64
	err := h.walk(g.path, func(p string) error {
		if g.m.version == 2 && p != g.path {
			return nil // memory.events includes what is below; memory.oom_control does not
		}
		b, err := h.read(p, file)
		keyed(b, func(name string, v uint64) {
			if name == "oom_kill" {
				n += v
			}
		})
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("count OOM kills of cgroup %s: %w", g.path, err)
	}
	return n, nil
}
