// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"os"
	"testing"
	"time"
)

func TestMeasure(t *testing.T) {
	m := v1(t)
	g := create(t, m, name(t, m), &Resources{CPUQuota: 20000, CPUPeriod: 100000, Memory: 64 * mib, MemorySwap: 64 * mib, Pids: 20})
	start := time.Now()
	run(t, g, `x=$(head -c 12m /dev/zero | tr '\0' x); while :; do :; done`)
	var s Stats
	until(t, "memory, CPU time and throttling", func() bool {
		d, err := g.Detail()
		if err != nil {
			t.Fatal(err)
		}
		s = d.Stats
		return s.Tasks == 1 && s.Memory.RSS > 12*mib && s.CPU > 20e6 && d.ThrottledPeriods > 0 && d.Throttled > 0 && d.Periods >= d.ThrottledPeriods &&
			d.User > 0 && d.MaxUsage >= s.Memory.RSS && d.TasksLimit == 20
	})
	if s.Memory.Limit != 64*mib || s.Memory.Usage < s.Memory.WorkingSet || s.Memory.WorkingSet < s.Memory.RSS || s.Memory.PageFaults == 0 {
		t.Errorf("memory: %+v", s.Memory)
	}
	if s.Swap != nil && (s.Swap.Usage != 0 || s.Swap.Limit != 0) {
		t.Errorf("swap: %+v", *s.Swap)
	}
	if s.Time.Before(start) || s.CPU > uint64(time.Since(start)) {
		t.Errorf("time %v, CPU %d", s.Time, s.CPU)
	}
	if _, err := os.Stat("/proc/pressure/cpu"); err == nil && m.by[coreFiles] != nil {
		if p := s.Pressure; p.CPU == nil || p.Memory == nil || p.IO == nil {
			t.Errorf("pressure: %+v", p)
		}
	}
}

func TestMeasureUnlimited(t *testing.T) {
	m := v1(t)
	s, err := create(t, m, name(t, m), nil).Stats()
	if err != nil || s.Memory.Limit != noLimit || s.Swap != nil && s.Swap.Limit != noLimit {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestMeasureV2 reads a group that has no controllers, as on a host that hands none down.
func TestMeasureV2(t *testing.T) {
	m := hosts(t)["unified"]
	if m == nil {
		m = hosts(t)["host"]
	}
	g := create(t, m, name(t, m), nil)
	run(t, g, "while :; do :; done")
	until(t, "CPU time", func() bool {
		d, err := g.Detail()
		if err != nil {
			t.Fatal(err)
		}
		return d.CPU > 0 && d.User > 0
	})
}
