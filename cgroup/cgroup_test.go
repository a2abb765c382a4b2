// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// hosts are the real hierarchies that this machine offers to tests.
func hosts(t *testing.T) map[string]*Manager {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("making cgroups needs root")
	}
	ms := map[string]*Manager{}
	add := func(name string, o Options) *Manager {
		m, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		ms[name] = m
		return m
	}
	m := add("host", Options{Driver: Cgroupfs})
	if m.Version() == 1 && m.by[coreFiles] != nil {
		// The hybrid cgroup2 mount alone, without its controllers: handing them down would change the root's settings.
		m := add("unified", Options{Driver: Cgroupfs, Root: m.by[coreFiles].dir})
		m.by = map[string]*hierarchy{coreFiles: m.all[0]}
	}
	return ms
}

// v1 is the host's Manager, or the test is skipped.
func v1(t *testing.T) *Manager {
	m := hosts(t)["host"]
	if m.Version() != 1 {
		t.Skip("this host has cgroup v2 only")
	}
	return m
}

var counter atomic.Int64

// name gives a path that no other test and no other run has, and checks at the end that nothing is left of it.
func name(t testing.TB, m *Manager) string {
	p := fmt.Sprintf("/shimtest-%d-%d", os.Getpid(), counter.Add(1))
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		g := &Group{m: m, path: p}
		for _, h := range m.all {
			if h.exists(p) {
				t.Errorf("%s%s is left behind", h.dir, p)
			}
		}
		if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
			t.Error(err)
		}
	})
	return p
}

// create makes a group that is killed and removed at the end.
func create(t testing.TB, m *Manager, path string, r *Resources) *Group {
	t.Helper()
	g, err := m.Create(t.Context(), path, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, g) })
	return g
}

func end(t testing.TB, g *Group) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
	defer cancel()
	if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
		t.Error(err)
	}
}

// run starts a shell script in the group, as launch does: with CLONE_INTO_CGROUP and through the files.
func run(t testing.TB, g *Group, script string) *exec.Cmd {
	t.Helper()
	joins, dir, err := g.Files()
	if err != nil {
		t.Fatal(err)
	}
	return runIn(t, joins, dir, script)
}

// runIn is run with what Files gave, which it closes.
func runIn(t testing.TB, joins []*os.File, dir *os.File, script string) *exec.Cmd {
	t.Helper()
	var join strings.Builder
	for i, f := range joins {
		defer f.Close()
		fmt.Fprintf(&join, "echo 0 >&%d; ", 3+i)
	}
	// dash knows only one-digit descriptors.
	cmd := exec.Command("bash", "-c", join.String()+script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.ExtraFiles = joins
	if dir != nil {
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// until waits for a condition.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func populated(g *Group, n int) func() bool {
	return func() bool { pids, err := g.PIDs(); return err == nil && len(pids) >= n }
}

func TestLife(t *testing.T) {
	for host, m := range hosts(t) {
		t.Run(host, func(t *testing.T) {
			g := create(t, m, name(t, m)+"/pod/container", nil)
			t.Cleanup(func() { prune(t, m, g) })
			if _, err := m.Create(t.Context(), g.Path(), nil); err != nil {
				t.Errorf("second Create: %v", err)
			}
			cmd := run(t, g, "exec sleep 1000")
			until(t, "execve, after all joins", func() bool {
				b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
				return string(b) == "sleep\n"
			})
			pids, err := g.PIDs()
			if err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
				t.Fatalf("PIDs: %v, %v; want %d", pids, err, cmd.Process.Pid)
			}
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pids[0]))
			if n := strings.Count(string(b), g.Path()+"\n"); n != len(m.all) {
				t.Errorf("the process is in the group in %d hierarchies, not in %d:\n%s", n, len(m.all), b)
			}
			short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if err := g.Remove(short); err == nil || !strings.Contains(err.Error(), fmt.Sprint(pids)) {
				t.Errorf("Remove of a group with a process: %v", err)
			}
			if err := g.Kill(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := g.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			missing(t, m, g)
		})
	}
}

// missing checks what the methods say of a group that does not exist.
func missing(t *testing.T, m *Manager, g *Group) {
	t.Helper()
	ctx := t.Context()
	if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
		t.Errorf("Kill and Remove of a missing group: %v", err)
	}
	_, statsErr := g.Stats()
	_, _, filesErr := g.Files()
	_, openErr := m.Open(g.Path())
	for what, err := range map[string]error{"Stats": statsErr, "Files": filesErr, "Open": openErr} {
		if !errors.Is(err, errs.NotFound) {
			t.Errorf("%s of a missing group: %v", what, err)
		}
	}
	if n, err := g.OOMKills(); n != 0 || err != nil {
		t.Errorf("OOMKills of a missing group: %d, %v", n, err)
	}
	if pids, err := g.PIDs(); len(pids) != 0 || err != nil {
		t.Errorf("PIDs of a missing group: %v, %v", pids, err)
	}
}

// prune removes what Create made above g.
func prune(t *testing.T, m *Manager, g *Group) {
	t.Helper()
	pod := &Group{m: m, path: g.Path()[:strings.LastIndexByte(g.Path(), '/')]}
	if err := pod.Prune(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}

func TestFreezeStopsAndKillThaws(t *testing.T) {
	for host, m := range hosts(t) {
		t.Run(host, func(t *testing.T) {
			g := create(t, m, name(t, m), nil)
			cmd := run(t, g, "while :; do :; done")
			until(t, "the process to run in the group", func() bool { s, err := g.Stats(); return err == nil && s.CPU > 0 })
			if err := g.Freeze(t.Context()); err != nil {
				t.Fatal(err)
			}
			before, err := g.Stats()
			if err != nil {
				t.Fatal(err)
			}
			ran := cpuTime(t, cmd.Process.Pid)
			for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); {
			}
			after, _ := g.Stats()
			if after.CPU != before.CPU || cpuTime(t, cmd.Process.Pid) != ran {
				t.Errorf("a frozen process used the CPU: %d → %d ns", before.CPU, after.CPU)
			}
			if err := g.Thaw(t.Context()); err != nil {
				t.Fatal(err)
			}
			until(t, "the thawed process to run", func() bool { s, _ := g.Stats(); return s.CPU > after.CPU })
			if err := g.Freeze(t.Context()); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := g.Kill(ctx); err != nil {
				t.Errorf("kill frozen: %v", err)
			}
		})
	}
}

func cpuTime(t *testing.T, pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')'):]))
	return f[12] + " " + f[13]
}

func TestKillForkStorm(t *testing.T) {
	for host, m := range hosts(t) {
		t.Run(host, func(t *testing.T) {
			r, script := &Resources{Pids: 60}, "f() { f & f; }; f 2>/dev/null"
			if !m.Has("pids") {
				r, script = nil, "for i in 1 2 3 4 5 6; do (while :; do true & wait; done) & done; wait"
			}
			g := create(t, m, name(t, m), r)
			run(t, g, "exec 2>/dev/null; "+script)
			until(t, "a storm", populated(g, 6))
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := g.Kill(ctx); err != nil {
				t.Fatal(err)
			}
			if pids, err := g.PIDs(); len(pids) != 0 || err != nil {
				t.Errorf("left: %v, %v", pids, err)
			}
		})
	}
}

func TestKillAndRemoveReachGroupsBelow(t *testing.T) {
	for host, m := range hosts(t) {
		t.Run(host, func(t *testing.T) {
			g := create(t, m, name(t, m), nil)
			inner := below(t, g, "/a/b/c")
			run(t, inner, "sleep 1000 & sleep 1000 & wait")
			run(t, g, "exec sleep 1000")
			until(t, "four processes", populated(g, 4))
			if m.Version() == 1 {
				// A privileged container may also leave one hierarchy and stay in the others.
				pids, _ := inner.PIDs()
				if err := m.by["freezer"].write("", "cgroup.procs", fmt.Sprint(pids[0])); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(g.Kill(t.Context()), g.Remove(t.Context())); err != nil {
				t.Fatal(err)
			}
			missing(t, m, g)
		})
	}
}

// below makes a group below g as a container would: nothing is handed down to it, or g could not have processes on version 2.
func below(t *testing.T, g *Group, path string) *Group {
	t.Helper()
	if g.m.Version() == 1 {
		return create(t, g.m, g.Path()+path, nil)
	}
	if err := os.MkdirAll(g.m.all[0].dir+g.Path()+path, 0o755); err != nil {
		t.Fatal(err)
	}
	return &Group{m: g.m, path: g.Path() + path}
}

func TestKillEndsWithItsContext(t *testing.T) {
	m := hosts(t)["host"]
	g := create(t, m, name(t, m), nil)
	run(t, g, "exec sleep 1000")
	until(t, "the process", populated(g, 1))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// It may have been faster than anybody's look at the context.
	if err := g.Kill(ctx); !errors.Is(err, context.Canceled) && (err != nil || !populated(g, 0)()) {
		t.Errorf("Kill with a cancelled context: %v", err)
	}
}

func TestCreateFailsWhole(t *testing.T) {
	m := hosts(t)["host"]
	p := name(t, m)
	_, err := m.Create(t.Context(), p, &Resources{CPUs: "4000"})
	if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "cpuset_cpus") {
		t.Errorf("unknown CPU: %v", err)
	}
	_, err = m.Create(t.Context(), p, &Resources{CPUQuota: 50000, CPUPeriod: 100000, Mems: "63"})
	if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "cpuset_mems") {
		t.Errorf("unknown memory node: %v", err)
	}
}

func TestPods(t *testing.T) {
	for host, m := range hosts(t) {
		t.Run(host, func(t *testing.T) {
			ctx, top := t.Context(), name(t, m)
			ours, err := m.Pod(top+"/ours/pod1", "s1")
			if err != nil {
				t.Fatal(err)
			}
			g, made, err := m.CreatePod(ctx, ours, nil)
			if err != nil || !made {
				t.Fatalf("CreatePod: made %v, %v", made, err)
			}
			if _, made, err = m.CreatePod(ctx, ours, nil); err != nil || !made {
				t.Errorf("CreatePod again: made %v, %v", made, err)
			}
			// Somebody else's, made before ours and beside it.
			for _, h := range m.all {
				if err := errors.Join(h.mkdir(top+"/theirs"), h.mkdir(top+"/theirs/pod2")); err != nil {
					t.Fatal(err)
				}
				if m.Version() == 1 && h == m.by["cpuset"] {
					_ = h.initCpuset(top+"/theirs/pod2", true, "", "")
				}
			}
			theirs, made, err := m.CreatePod(ctx, top+"/theirs/pod2", &Resources{})
			if err != nil || made {
				t.Fatalf("CreatePod of an existing group: made %v, %v", made, err)
			}
			c := create(t, m, m.Container(theirs.Path(), "c"), nil)
			if err := errors.Join(c.Remove(ctx), theirs.Prune(ctx), g.Prune(ctx), g.Prune(ctx)); err != nil {
				t.Fatal(err)
			}
			for _, h := range m.all {
				if !h.exists(theirs.Path()) {
					t.Errorf("%s: Prune removed a group that we did not make", h.name())
				}
				if h.exists(top+"/ours") || !h.exists(top) {
					t.Errorf("%s: /ours should be gone and its parent, which is not empty, be there", h.name())
				}
				if err := errors.Join(h.rmdir(top+"/theirs/pod2"), h.rmdir(top+"/theirs"), h.rmdir(top)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestPlace(t *testing.T) {
	for host, m := range hosts(t) {
		t.Run(host, func(t *testing.T) {
			g := create(t, m, name(t, m), nil)
			cmd := exec.Command("sleep", "1000")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Wait() }()
			defer func() { _ = cmd.Process.Kill() }()
			if err := g.Place(t.Context(), cmd.Process.Pid); err != nil {
				t.Fatal(err)
			}
			if pids, err := g.PIDs(); err != nil || len(pids) != 1 {
				t.Errorf("PIDs: %v, %v", pids, err)
			}
		})
	}
}

// TestDeviceFilterV2 tries the filter on real device nodes, in the hybrid cgroup2 mount.
func TestDeviceFilterV2(t *testing.T) {
	m := hosts(t)["unified"]
	if m == nil {
		m = hosts(t)["host"]
	}
	g := create(t, m, name(t, m), nil)
	try := func(rules []Device, script string) error {
		t.Helper()
		if err := (limits{g, &Resources{Devices: &Devices{All: rules == nil, Allow: rules}}}).setDevicesV2(); err != nil {
			t.Fatal(err)
		}
		return run(t, g, "exec 2>/dev/null; "+script).Wait()
	}
	// 1:4 (/dev/port) is in no standard list; 1:1 (/dev/mem) might not be readable even without a filter, so 1:11 (kmsg).
	read, both, write := "exec 3</dev/kmsg", "exec 3<>/dev/kmsg", "exec 3>>/dev/kmsg"
	kmsg := func(access string) []Device { return []Device{{'c', 1, 11, access}} }
	for _, c := range []struct {
		rules  []Device
		script string
		ok     bool
	}{
		{nil, read, true}, {nil, both, true},
		{[]Device{}, read, false}, {[]Device{}, "exec 3<>/dev/null", true}, {[]Device{}, "head -c1 /dev/urandom >/dev/zero", true},
		{kmsg("r"), read, true}, {kmsg("r"), write, false}, {kmsg("r"), both, false},
		{kmsg("rw"), both, true}, {kmsg("w"), write, true}, {kmsg("w"), read, false},
		{[]Device{{'c', 1, -1, "r"}}, read, true}, {[]Device{{'b', 1, 11, "rwm"}}, read, false}, {nil, both, true},
	} {
		if err := try(c.rules, c.script); (err == nil) != c.ok {
			t.Errorf("with %v, %q: %v", c.rules, c.script, err)
		}
	}
	dir, _ := m.all[0].open(g.Path(), "", unix.O_RDONLY|unix.O_DIRECTORY)
	defer dir.Close()
	if ids, err := deviceFilters(dir); len(ids) != 0 || err != nil {
		t.Errorf("filters left attached: %v, %v", ids, err)
	}
}
