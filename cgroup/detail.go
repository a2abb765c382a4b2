// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Detail is all that is measured: Stats and what only metrics show. Units as in Stats.
type Detail struct {
	Stats
	User, System uint64
	// Periods counts enforcement intervals of the CPU quota, ThrottledPeriods those in which the group was held back, for Throttled
	// nanoseconds in all.
	Periods, ThrottledPeriods, Throttled uint64
	// Kernel is memory of the kernel on the group's behalf; MaxUsage the highest Usage so far (0: unknown); Failures how often the
	// limit was hit.
	Kernel, MaxUsage, Failures uint64
	OOMKills                   uint64
	// TasksLimit is math.MaxUint64 if there is none.
	TasksLimit uint64
	IO         []IO
	Hugepages  []Hugepages
}

// IO is what the group did on one block device, in bytes and operations.
type IO struct {
	Major, Minor          uint32
	ReadBytes, WriteBytes uint64
	ReadCount, WriteCount uint64
}

// Hugepages is the use of one page size ("2MB"), in bytes. Version 2 has no Max.
type Hugepages struct {
	Size       string
	Usage, Max uint64
}

// Detail measures the group in full.
func (g *Group) Detail() (Detail, error) {
	r := &reading{g: g}
	s, err := r.stats()
	if err != nil {
		return Detail{}, err
	}
	d := Detail{Stats: s}
	if g.m.version == 2 {
		r.detailV2(&d)
	} else {
		r.detailV1(&d)
	}
	d.TasksLimit, _ = r.number("pids", "pids.max")
	r.hugepages(&d)
	var oomErr error
	d.OOMKills, oomErr = g.OOMKills()
	return d, errors.Join(r.end(), oomErr)
}

func (r *reading) detailV1(d *Detail) {
	d.User, _ = r.number("cpuacct", "cpuacct.usage_user")
	d.System, _ = r.number("cpuacct", "cpuacct.usage_sys")
	keyed(r.file("cpu", "cpu.stat"), func(name string, v uint64) {
		switch name {
		case "nr_periods":
			d.Periods = v
		case "nr_throttled":
			d.ThrottledPeriods = v
		case "throttled_time":
			d.Throttled = v
		}
	})
	d.Kernel, _ = r.number("memory", "memory.kmem.usage_in_bytes")
	d.MaxUsage, _ = r.number("memory", "memory.max_usage_in_bytes")
	d.Failures, _ = r.number("memory", "memory.failcnt")
	ios := ioTable{}
	ios.add(r.file("blkio", "blkio.throttle.io_service_bytes_recursive"), func(io *IO) (*uint64, *uint64) { return &io.ReadBytes, &io.WriteBytes })
	ios.add(r.file("blkio", "blkio.throttle.io_serviced_recursive"), func(io *IO) (*uint64, *uint64) { return &io.ReadCount, &io.WriteCount })
	d.IO = ios.list
}

func (r *reading) detailV2(d *Detail) {
	c := r.cpuStat()
	d.User, d.System = c["user_usec"]*1000, c["system_usec"]*1000
	d.Periods, d.ThrottledPeriods, d.Throttled = c["nr_periods"], c["nr_throttled"], c["throttled_usec"]*1000
	keyed(r.file("memory", "memory.stat"), func(name string, v uint64) {
		if name == "kernel" {
			d.Kernel = v
		}
	})
	keyed(r.file("memory", "memory.events"), func(name string, v uint64) {
		if name == "max" {
			d.Failures = v
		}
	})
	d.MaxUsage, _ = r.number("memory", "memory.peak")
	d.IO = parseIOStat(r.file("io", "io.stat"))
}

// ioTable gathers the lines of version 1 files ("8:0 Read 4096") by device.
type ioTable struct{ list []IO }

func (t *ioTable) add(b []byte, fields func(*IO) (read, write *uint64)) {
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) != 3 {
			continue // "Total 0"
		}
		major, minor, ok := parseDevice(f[0])
		v, err := strconv.ParseUint(f[2], 10, 64)
		if !ok || err != nil {
			continue
		}
		read, write := fields(t.device(major, minor))
		switch f[1] {
		case "Read":
			*read += v
		case "Write":
			*write += v
		}
	}
}

func (t *ioTable) device(major, minor uint32) *IO {
	for i := range t.list {
		if t.list[i].Major == major && t.list[i].Minor == minor {
			return &t.list[i]
		}
	}
	t.list = append(t.list, IO{Major: major, Minor: minor})
	return &t.list[len(t.list)-1]
}

// parseIOStat reads version 2's "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0".
func parseIOStat(b []byte) []IO {
	var list []IO
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) < 2 {
			continue
		}
		major, minor, ok := parseDevice(f[0])
		if !ok {
			continue
		}
		io := IO{Major: major, Minor: minor}
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			n, _ := strconv.ParseUint(v, 10, 64)
			switch k {
			case "rbytes":
				io.ReadBytes = n
			case "wbytes":
				io.WriteBytes = n
			case "rios":
				io.ReadCount = n
			case "wios":
				io.WriteCount = n
			}
		}
		list = append(list, io)
	}
	return list
}

func parseDevice(s string) (major, minor uint32, ok bool) {
	a, b, found := strings.Cut(s, ":")
	x, err1 := strconv.ParseUint(a, 10, 32)
	y, err2 := strconv.ParseUint(b, 10, 32)
	return uint32(x), uint32(y), found && err1 == nil && err2 == nil
}

func (r *reading) hugepages(d *Detail) {
	if !r.g.m.Has("hugetlb") {
		return
	}
	entries, err := os.ReadDir("/sys/kernel/mm/hugepages")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.err = errors.Join(r.err, err)
	}
	for _, e := range entries {
		h := Hugepages{Size: pageSize(e.Name())}
		usage, max := "usage_in_bytes", "max_usage_in_bytes"
		if r.g.m.version == 2 {
			usage, max = "current", ""
		}
		var ok bool
		if h.Usage, ok = r.number("hugetlb", "hugetlb."+h.Size+"."+usage); !ok {
			continue
		}
		if max != "" {
			h.Max, _ = r.number("hugetlb", "hugetlb."+h.Size+"."+max)
		}
		d.Hugepages = append(d.Hugepages, h)
	}
}

// pageSize turns hugepages-2048kB into 2MB, as control files are named.
func pageSize(dir string) string {
	n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(dir, "hugepages-"), "kB"))
	if err != nil {
		return dir
	}
	for _, unit := range []string{"KB", "MB"} {
		if n < 1024 {
			return strconv.Itoa(n) + unit
		}
		n /= 1024
	}
	return strconv.Itoa(n) + "GB"
}
