// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

func TestLimitProperties(t *testing.T) {
	for _, c := range []struct {
		r    Resources
		want map[string]any
	}{
		{Resources{}, map[string]any{}},
		{Resources{CPUShares: 1024, CPUQuota: 50000, CPUPeriod: 20000}, map[string]any{"CPUWeight": uint64(100), "CPUQuotaPerSecUSec": uint64(2500000), "CPUQuotaPeriodUSec": uint64(20000)}},
		{Resources{CPUQuota: -1}, map[string]any{"CPUQuotaPerSecUSec": uint64(math.MaxUint64)}},
		{Resources{Memory: 8 * mib, MemorySwap: 24 * mib}, map[string]any{"MemoryMax": uint64(8 * mib), "MemorySwapMax": uint64(16 * mib)}},
		{Resources{Memory: 8 * mib, MemorySwap: 8 * mib}, map[string]any{"MemoryMax": uint64(8 * mib), "MemorySwapMax": uint64(0)}},
		{Resources{Memory: -1}, map[string]any{"MemoryMax": uint64(math.MaxUint64), "MemorySwapMax": uint64(math.MaxUint64)}},
		{Resources{Pids: -1}, map[string]any{"TasksMax": uint64(math.MaxUint64)}},
		{Resources{CPUs: "0-2,9", Mems: "0"}, map[string]any{"AllowedCPUs": []byte{7, 2}, "AllowedMemoryNodes": []byte{1}}},
		{Resources{Unified: map[string]string{"memory.high": "max", "memory.min": "4096", "pids.max": "3"}}, map[string]any{"MemoryHigh": uint64(math.MaxUint64), "MemoryMin": uint64(4096)}},
	} {
		got := map[string]any{}
		for _, p := range limitProperties(&c.r) {
			got[p.Name] = p.Value.Value()
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%+v: %s", c.r, d)
		}
	}
}

func TestSystemdNeedsVersion2(t *testing.T) {
	m, err := New(Options{Driver: Systemd, Units: &Bus{}})
	if err == nil {
		version := m.Version()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if version == 1 {
			t.Error("the systemd driver on cgroup v1: no error")
		}
		return
	}
	if !errors.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "cgroup v2") {
		t.Error(err)
	}
}

// onSystemd is a Manager with a parent of the test's own, or the test is skipped.
func onSystemd(t *testing.T) (*Manager, *Bus) {
	t.Helper()
	if DefaultDriver() != Systemd || os.Getuid() != 0 {
		t.Skip("needs root and systemd as process 1")
	}
	bus, err := Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bus.Close() })
	m, err := New(Options{Driver: Systemd, Units: bus, Parent: fmt.Sprintf("shimtest%d.slice", os.Getpid())})
	if errors.Is(err, errs.Unsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m, bus
}

// TestSystemd takes a pod and a container through their lives, with a reload of systemd and a lost connection on the way.
func TestSystemd(t *testing.T) {
	m, bus := onSystemd(t)
	ctx := t.Context()
	path, err := m.Pod("", "p1")
	if err != nil {
		t.Fatal(err)
	}
	pod, made, err := m.CreatePod(ctx, path, &Resources{Memory: 512 * mib, CPUShares: 512})
	if err != nil || !made {
		t.Fatalf("CreatePod: made %v, %v", made, err)
	}
	defer func() {
		if err := pod.Prune(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
		if m.all[0].exists(path) {
			t.Errorf("%s is left behind", path)
		}
	}()
	g, err := m.Create(ctx, m.Container(path, "c1"), &Resources{Memory: 64 * mib, MemorySwap: 64 * mib, Pids: 50, CPUShares: 2048, CPUs: "0",
		Hugepages: map[string]uint64{"2MB": 0}, Devices: &Devices{}})
	if err != nil {
		t.Fatal(err)
	}
	defer end(t, g)
	if !g.Held() {
		t.Fatal("a scope that holds no process")
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	if err := g.Place(ctx, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid)); err != nil || string(b) != "0::"+g.Path()+"\n" {
		t.Errorf("the process is in %s, %v", b, err)
	}
	files(t, m, path, map[string]string{"memory.max": "536870912", "cpu.weight": "59"})
	want := map[string]string{"memory.max": "67108864", "memory.swap.max": "0", "pids.max": "50", "cpu.weight": "174", "cpuset.cpus": "0", "hugetlb.2MB.max": "0"}
	files(t, m, g.Path(), want)

	bus.conn.Close() // as after a restart of the bus
	if err := g.Update(ctx, &Resources{Memory: 128 * mib, MemorySwap: 128 * mib, CPUQuota: 20000, CPUPeriod: 100000}); err != nil {
		t.Fatal(err)
	}
	if err := bus.call(ctx, func(ctx context.Context, conn *sd.Conn) error { return conn.ReloadContext(ctx) }); err != nil {
		t.Fatal(err)
	}
	want["memory.max"], want["cpu.max"] = "134217728", "20000 100000"
	files(t, m, g.Path(), want)
	dir, err := m.all[0].open(g.Path(), "", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if ids, err := deviceFilters(dir); err != nil || len(ids) != 1 {
		t.Errorf("device filters after the reload: %v, %v", ids, err)
	}
	opened, err := m.Open(g.Path()) // as the next daemon does
	if err != nil {
		t.Fatal(err)
	}
	p, err := opened.Part("exec-1")
	if err != nil {
		t.Fatal(err)
	}
	joins, own, err := p.Files()
	if err != nil {
		t.Fatal(err)
	}
	runIn(t, joins, own, "exec sleep 1000")
	until(t, "an exec", populated(g, 2))
	if err := errors.Join(p.Kill(ctx), p.Remove(ctx), opened.Kill(ctx), opened.Remove(ctx), opened.Remove(ctx)); err != nil {
		t.Error(err)
	}
	if m.all[0].exists(g.Path()) {
		t.Errorf("%s is left behind", g.Path())
	}
}

// files compares control files.
func files(t *testing.T, m *Manager, path string, want map[string]string) {
	t.Helper()
	for file, w := range want {
		if b, err := m.all[0].read(path, file); err != nil || strings.TrimSpace(string(b)) != w {
			t.Errorf("%s: %q, %v; want %q", file, b, err, w)
		}
	}
}
