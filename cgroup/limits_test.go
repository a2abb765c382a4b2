// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"crishim.dev/internal/errs"
)

const mib = 1 << 20

// limitCase says what a sequence of Resources leaves in the control files, or which field is refused in the last step.
type limitCase struct {
	name  string
	apply []Resources
	want  map[string]string
	// real has what the kernel shows where that is not what was written.
	real    map[string]string
	refused string
	kind    error
}

func limitCases(version int) []limitCase {
	both := []limitCase{
		{name: "shares below", apply: []Resources{{CPUShares: 1}}, refused: "cpu_shares", kind: errs.Invalid},
		{name: "shares above", apply: []Resources{{CPUShares: 262145}}, refused: "cpu_shares", kind: errs.Invalid},
		{name: "short period", apply: []Resources{{CPUPeriod: 999}}, refused: "cpu_period", kind: errs.Invalid},
		{name: "tiny quota", apply: []Resources{{CPUQuota: 5}}, refused: "cpu_quota", kind: errs.Invalid},
		{name: "negative memory", apply: []Resources{{Memory: -2}}, refused: "memory_limit_in_bytes", kind: errs.Invalid},
		{name: "swap below memory", apply: []Resources{{Memory: 2 * mib, MemorySwap: mib}}, refused: "memory_swap_limit_in_bytes", kind: errs.Invalid},
		{name: "swap of unlimited memory", apply: []Resources{{Memory: -1, MemorySwap: mib}}, refused: "memory_swap_limit_in_bytes", kind: errs.Invalid},
		{name: "list", apply: []Resources{{CPUs: "0-"}}, refused: "cpuset_cpus", kind: errs.Invalid},
		{name: "backwards list", apply: []Resources{{Mems: "3-1"}}, refused: "cpuset_mems", kind: errs.Invalid},
		{name: "list with a line", apply: []Resources{{CPUs: "0\n1"}}, refused: "cpuset_cpus", kind: errs.Invalid},
		{name: "page size", apply: []Resources{{Hugepages: map[string]uint64{"2MB/../x": 1}}}, refused: "hugepage_limits", kind: errs.Invalid},
		{name: "unified path", apply: []Resources{{Unified: map[string]string{"../memory.max": "1"}}}, refused: "unified", kind: errs.Invalid},
		{name: "unified kill", apply: []Resources{{Unified: map[string]string{"cgroup.kill": "1"}}}, refused: "unified", kind: errs.Invalid},
		{name: "device", apply: []Resources{{Devices: &Devices{Allow: []Device{{'c', 1, 3, "rwx"}}}}}, refused: "devices", kind: errs.Invalid},
		{name: "device type", apply: []Resources{{Devices: &Devices{Allow: []Device{{'a', 1, 3, "r"}}}}}, refused: "devices", kind: errs.Invalid},
	}
	return append(both, map[int][]limitCase{1: limitCasesV1(), 2: limitCasesV2()}[version]...)
}

func limitCasesV1() []limitCase {
	memory := func(limit, swap string) map[string]string {
		return map[string]string{"memory/memory.limit_in_bytes": limit, "memory/" + memsw: swap}
	}
	const none = "9223372036854771712"
	return []limitCase{
		{name: "cpu", apply: []Resources{{CPUShares: 512, CPUQuota: 50000, CPUPeriod: 200000}},
			want: map[string]string{"cpu/cpu.shares": "512", "cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "200000"}},
		{name: "cpu untouched", apply: []Resources{{CPUShares: 512, CPUQuota: 50000}, {Memory: mib}},
			want: map[string]string{"cpu/cpu.shares": "512", "cpu/cpu.cfs_quota_us": "50000"}},
		{name: "quota off", apply: []Resources{{CPUQuota: 50000}, {CPUQuota: -1}}, want: map[string]string{"cpu/cpu.cfs_quota_us": "-1"}},
		{name: "cpuset", apply: []Resources{{CPUs: "0", Mems: "0"}}, want: map[string]string{"cpuset/cpuset.cpus": "0", "cpuset/cpuset.mems": "0"}},
		{name: "memory and swap", apply: []Resources{{Memory: 8 * mib, MemorySwap: 16 * mib}}, want: memory("8388608", "16777216")},
		{name: "no swap", apply: []Resources{{Memory: 8 * mib, MemorySwap: 8 * mib}}, want: memory("8388608", "8388608")},
		{name: "memory alone", apply: []Resources{{Memory: 8 * mib}}, want: memory("8388608", none)},
		{name: "raise both", apply: []Resources{{Memory: 8 * mib, MemorySwap: 8 * mib}, {Memory: 32 * mib, MemorySwap: 32 * mib}}, want: memory("33554432", "33554432")},
		{name: "lower both", apply: []Resources{{Memory: 32 * mib, MemorySwap: 32 * mib}, {Memory: 8 * mib, MemorySwap: 8 * mib}}, want: memory("8388608", "8388608")},
		{name: "lower memory, raise swap", apply: []Resources{{Memory: 32 * mib, MemorySwap: 32 * mib}, {Memory: 8 * mib, MemorySwap: 64 * mib}}, want: memory("8388608", "67108864")},
		{name: "unlimited", apply: []Resources{{Memory: 8 * mib, MemorySwap: 8 * mib}, {Memory: -1}}, want: memory(none, none)},
		{name: "memory above swap", apply: []Resources{{Memory: 8 * mib, MemorySwap: 8 * mib}, {Memory: 16 * mib}}, refused: "memory_limit_in_bytes", kind: errs.Invalid},
		{name: "pids", apply: []Resources{{Pids: 10}}, want: map[string]string{"pids/pids.max": "10"}},
		{name: "pids off", apply: []Resources{{Pids: 10}, {Pids: -1}}, want: map[string]string{"pids/pids.max": "max"}},
		{name: "unified", apply: []Resources{{Unified: map[string]string{"memory.max": "1"}}}, refused: "unified", kind: errs.Invalid},
		{name: "devices", apply: []Resources{{Devices: &Devices{Allow: []Device{{'b', 8, -1, "r"}}}}},
			want: map[string]string{"devices/devices.list": "c *:* m\nb *:* m\nc 1:3 rwm\nc 1:5 rwm\nc 1:7 rwm\nc 1:8 rwm\nc 1:9 rwm\nc 5:0 rwm\nc 5:2 rwm\nc 136:* rwm\nb 8:* r"}},
		{name: "devices twice", apply: []Resources{{Devices: &Devices{}}, {Devices: &Devices{All: true}}}, want: map[string]string{"devices/devices.list": "a *:* rwm"}},
	}
}

// TestLimits sets limits in the hierarchies of this host.
func TestLimits(t *testing.T) {
	m := hosts(t)["host"]
	for _, c := range limitCases(m.Version()) {
		maps.Copy(c.want, c.real)
		t.Run(c.name, func(t *testing.T) {
			p := name(t, m)
			g, err := m.Create(t.Context(), p, &c.apply[0])
			if err == nil {
				t.Cleanup(func() { end(t, g) })
			}
			for i := 1; i < len(c.apply) && err == nil; i++ {
				err = g.Update(t.Context(), &c.apply[i])
			}
			c.check(t, err, func(file string) string {
				if m.Version() == 2 {
					file = "/" + file
				}
				b, _ := os.ReadFile(filepath.Join("/sys/fs/cgroup", strings.Replace(file, "/", p+"/", 1)))
				return string(b)
			})
		})
	}
}

func (c *limitCase) check(t *testing.T, err error, read func(string) string) {
	t.Helper()
	if c.refused != "" {
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.refused) {
			t.Errorf("got %v, want a refusal (%v) that names %s", err, c.kind, c.refused)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range slices.Sorted(maps.Keys(c.want)) {
		if got := strings.TrimSpace(read(file)); got != c.want[file] {
			t.Errorf("%s: %q, want %q", file, got, c.want[file])
		}
	}
}

func limitCasesV2() []limitCase {
	memory := func(limit, swap string) map[string]string {
		return map[string]string{"memory.max": limit, "memory.swap.max": swap}
	}
	return []limitCase{
		{name: "cpu", apply: []Resources{{CPUShares: 1024, CPUQuota: 50000, CPUPeriod: 200000}}, want: map[string]string{"cpu.weight": "100", "cpu.max": "50000 200000"}},
		{name: "quota alone", apply: []Resources{{CPUQuota: 50000}}, want: map[string]string{"cpu.max": "50000"}, real: map[string]string{"cpu.max": "50000 100000"}},
		{name: "period keeps the quota", apply: []Resources{{CPUQuota: 50000, CPUPeriod: 100000}, {CPUPeriod: 20000}}, want: map[string]string{"cpu.max": "50000 20000"}},
		{name: "quota off", apply: []Resources{{CPUQuota: -1, CPUPeriod: 100000}}, want: map[string]string{"cpu.max": "max 100000"}},
		{name: "cpuset", apply: []Resources{{CPUs: "0-1", Mems: "0"}}, want: map[string]string{"cpuset.cpus": "0-1", "cpuset.mems": "0"}},
		{name: "memory and swap", apply: []Resources{{Memory: 8 * mib, MemorySwap: 24 * mib}}, want: memory("8388608", "16777216")},
		{name: "no swap", apply: []Resources{{Memory: 8 * mib, MemorySwap: 8 * mib}}, want: memory("8388608", "0")},
		{name: "memory alone", apply: []Resources{{Memory: 8 * mib}}, want: memory("8388608", ""), real: memory("8388608", "max")},
		{name: "swap later", apply: []Resources{{Memory: 8 * mib}, {MemorySwap: 24 * mib}}, want: memory("8388608", "16777216")},
		{name: "swap without memory", apply: []Resources{{MemorySwap: 24 * mib}}, refused: "memory_swap_limit_in_bytes", kind: errs.Invalid},
		{name: "unlimited", apply: []Resources{{Memory: -1}}, want: memory("max", "max")},
		{name: "pids", apply: []Resources{{Pids: 10}, {Pids: -1}}, want: map[string]string{"pids.max": "max"}},
		{name: "hugepages", apply: []Resources{{Hugepages: map[string]uint64{"2MB": 4 * mib}}}, want: map[string]string{"hugetlb.2MB.max": "4194304", "hugetlb.2MB.rsvd.max": "4194304"}},
		{name: "hugepage size", apply: []Resources{{Hugepages: map[string]uint64{"3MB": 1}}}, refused: "hugepage_limits", kind: errs.Unsupported},
		{name: "unified", apply: []Resources{{Unified: map[string]string{"memory.high": "8192", "memory.oom.group": "1"}}}, want: map[string]string{"memory.high": "8192", "memory.oom.group": "1"}},
		{name: "unified wins", apply: []Resources{{Memory: 8 * mib, Unified: map[string]string{"memory.max": "4096"}}}, want: map[string]string{"memory.max": "4096"}},
		{name: "unified unknown", apply: []Resources{{Unified: map[string]string{"memory.nonsense": "1"}}}, refused: "memory.nonsense", kind: errs.Invalid},
		{name: "unified controller", apply: []Resources{{Unified: map[string]string{"dmem.max": "1"}}}, refused: "dmem", kind: errs.Unsupported},
	}
}

// fakeV2 is a tree of plain files with one group and the control files given, and its Manager.
func fakeV2(t *testing.T, controllers string, log *slog.Logger, files ...string) (m *Manager, group string) {
	t.Helper()
	root := t.TempDir()
	group = "/kubepods/pod1/c1"
	for dir := group; ; dir = filepath.Dir(dir) {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			t.Fatal(err)
		}
		all := []string{"cgroup.subtree_control"}
		if dir == group {
			all = append(all, files...)
		}
		for _, f := range all {
			if err := os.WriteFile(filepath.Join(root, dir, f), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if dir == "/" {
			break
		}
	}
	if err := os.WriteFile(root+"/cgroup.controllers", []byte(controllers+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	h, err := openHierarchy(root, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	if m, err = newManager(Options{Driver: Cgroupfs, Log: log}, 2, []*hierarchy{h}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m, group
}

// TestLimitsV2 shows what is written, also on a host without version 2.
func TestLimitsV2(t *testing.T) {
	for _, c := range limitCases(2) {
		t.Run(c.name, func(t *testing.T) {
			m, p := fakeV2(t, "cpuset cpu io memory hugetlb pids", nil, "cpu.weight", "cpu.max", "cpuset.cpus", "cpuset.mems", "memory.max",
				"memory.high", "memory.oom.group", "memory.swap.max", "pids.max", "hugetlb.2MB.max", "hugetlb.2MB.rsvd.max")
			g, err := m.Create(t.Context(), p, &c.apply[0])
			for i := 1; i < len(c.apply) && err == nil; i++ {
				err = g.Update(t.Context(), &c.apply[i])
			}
			c.check(t, err, func(file string) string {
				b, _ := os.ReadFile(m.all[0].dir + p + "/" + file)
				return string(b)
			})
		})
	}
}

func TestDelegation(t *testing.T) {
	m, p := fakeV2(t, "cpu memory pids perf_event", nil, "pids.max")
	control := func(dir string) string {
		b, err := os.ReadFile(m.all[0].dir + dir + "/cgroup.subtree_control")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if _, err := m.Create(t.Context(), p, &Resources{Pids: 3}); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", "/kubepods", "/kubepods/pod1"} {
		if got := control(dir); got != "+cpu +memory +pids" {
			t.Errorf("%s/cgroup.subtree_control: %q", dir, got)
		}
	}
	if got := control(p); got != "" {
		t.Errorf("the group itself hands down %q", got)
	}
	// The parent has all: nothing above is looked at.
	for dir, text := range map[string]string{"": "", "/kubepods": "", "/kubepods/pod1": "pids cpu memory"} {
		if err := os.WriteFile(m.all[0].dir+dir+"/cgroup.subtree_control", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Create(t.Context(), p, nil); err != nil {
		t.Fatal(err)
	}
	if got := control(""); got != "" {
		t.Errorf("the root was given %q for nothing", got)
	}
}

func TestDegradedHosts(t *testing.T) {
	var log strings.Builder
	// No hugetlb controller, no swap accounting, no cpu controller.
	m, p := fakeV2(t, "memory", slog.New(slog.NewTextHandler(&log, nil)), "memory.max")
	r := &Resources{Memory: mib, MemorySwap: 2 * mib, Hugepages: map[string]uint64{"2MB": 0}}
	for range 2 {
		if _, err := m.Create(t.Context(), p, r); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 2 {
		t.Errorf("want one warning about swap and one about huge pages, got:\n%s", &log)
	}
	if _, err := m.Create(t.Context(), p, &Resources{CPUShares: 2}); !errors.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "cpu_shares") {
		t.Errorf("shares without the controller: %v", err)
	}
}

func TestWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{2: 1, 10: 4, 100: 17, 512: 59, 1024: 100, 2048: 174, 262144: 10000} {
		if got := weight(shares); got != want {
			t.Errorf("weight(%d) = %d, want %d", shares, got, want)
		}
	}
}

func TestOOMKills(t *testing.T) {
	m := hosts(t)["host"]
	g := create(t, m, name(t, m), &Resources{Memory: 16 * mib, MemorySwap: 16 * mib})
	if n, err := g.OOMKills(); n != 0 || err != nil {
		t.Fatalf("before: %d, %v", n, err)
	}
	// In a group below, as a container of its own groups would have it.
	inner := below(t, g, "/inner")
	_ = run(t, inner, `x=$(head -c 64m /dev/zero | tr "\0" x)`).Wait()
	if n, err := g.OOMKills(); n == 0 || err != nil {
		t.Errorf("after: %d, %v", n, err)
	}
}

func TestLowerMemoryBelowUsage(t *testing.T) {
	m := hosts(t)["host"]
	g := create(t, m, name(t, m), nil)
	run(t, g, `x=$(head -c 30m /dev/zero | tr '\0' x); echo ready; exec 2>/dev/null; while :; do sleep 1000; done`)
	until(t, "30 MiB", func() bool { s, err := g.Stats(); return err == nil && s.Memory.RSS > 30*mib })
	err := g.Update(t.Context(), &Resources{Memory: mib, MemorySwap: mib})
	if !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "memory_limit_in_bytes") || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a limit below what is in use: %v", err)
	}
	if n, err := g.OOMKills(); n != 0 || err != nil {
		t.Errorf("%d processes were killed, %v", n, err)
	}
	if err := g.Update(t.Context(), &Resources{Memory: 256 * mib, MemorySwap: 256 * mib}); err != nil {
		t.Errorf("a limit above what is in use: %v", err)
	}
}

// BenchmarkLife is what a container costs: Create with the usual limits, Files, Remove.
func BenchmarkLife(b *testing.B) {
	m, err := New(Options{Driver: Cgroupfs})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { m.Close() })
	pod, _, err := m.CreatePod(b.Context(), name(b, m), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer pod.Prune(b.Context())
	r := &Resources{CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, Memory: 64 * mib, MemorySwap: 64 * mib, Devices: &Devices{}}
	b.Run("Create", func(b *testing.B) {
		for b.Loop() {
			g, err := m.Create(b.Context(), pod.Path()+"/c", r)
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := g.Remove(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("CreateFilesRemove", func(b *testing.B) {
		for b.Loop() {
			g, err := m.Create(b.Context(), pod.Path()+"/c", r)
			if err != nil {
				b.Fatal(err)
			}
			procs, dir, err := g.Files()
			if err != nil {
				b.Fatal(err)
			}
			for _, f := range append(procs, dir) {
				if f != nil {
					f.Close()
				}
			}
			if err := g.Remove(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	g, err := m.Create(b.Context(), pod.Path()+"/c", r)
	if err != nil {
		b.Fatal(err)
	}
	defer g.Remove(b.Context())
	b.Run("Stats", func(b *testing.B) {
		for b.Loop() {
			if _, err := g.Stats(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("KillEmpty", func(b *testing.B) {
		for b.Loop() {
			if err := g.Kill(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
