// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPartIsKilledAlone(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("making cgroups needs root")
	}
	m, err := New(Options{Driver: Cgroupfs})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	g, err := m.Create(t.Context(), "/shimtest-part-"+strconv.Itoa(os.Getpid()), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Kill(t.Context()); err != nil {
			t.Error(err)
		}
		if err := g.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	first := run(t, g, "exec sleep 600")
	p, err := g.Part("exec-1")
	if err != nil {
		t.Fatal(err)
	}
	joins, dir, err := p.Files()
	if err != nil {
		t.Fatal(err)
	}
	// A child that leaves the session and loses its parent.
	second := runIn(t, joins, dir, "(setsid sleep 600 & ) ; exec sleep 600")
	until(t, "two processes in the part", func() bool {
		pids, err := p.sub.PIDs()
		return err == nil && len(pids) == 2
	})
	if b, err := os.ReadFile("/proc/" + strconv.Itoa(second.Process.Pid) + "/cgroup"); err != nil || strings.Count(string(b), "/exec-1\n") != 1 {
		t.Errorf("the part should lie in one hierarchy: %s %v", b, err)
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pids, err := p.sub.PIDs(); err != nil || len(pids) != 0 {
		t.Errorf("left of the part: %v %v", pids, err)
	}
	for range 2 {
		if err := p.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the group's own process: %v", err)
	}
}

func TestPartsLeftoversStay(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("making cgroups needs root")
	}
	m, err := New(Options{Driver: Cgroupfs})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	g, err := m.Create(t.Context(), "/shimtest-left-"+strconv.Itoa(os.Getpid()), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Kill(t.Context()); err != nil {
			t.Error(err)
		}
		if err := g.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	p, err := g.Part("exec-1")
	if err != nil {
		t.Fatal(err)
	}
	joins, dir, err := p.Files()
	if err != nil {
		t.Fatal(err)
	}
	cmd := runIn(t, joins, dir, "exec sleep 600")
	if err := p.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("a process that an exec left behind: %v", err)
	}
	if b, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/cgroup"); err != nil || strings.Contains(string(b), "exec-1") {
		t.Errorf("it should be in the group now: %s %v", b, err)
	}
}

// TestPartOfAGroupThatDelegates is an exec in a container that runs a service manager of its own.
func TestPartOfAGroupThatDelegates(t *testing.T) {
	m := hosts(t)["host"]
	if m.Version() == 1 {
		t.Skip("this host has cgroup v1: nothing is handed down")
	}
	g := create(t, m, name(t, m), nil)
	if err := m.all[0].write(g.Path(), "cgroup.subtree_control", "+pids"); err != nil {
		t.Fatal(err)
	}
	p, err := g.Part("exec-1")
	if err != nil {
		t.Fatal(err)
	}
	joins, dir, err := p.Files()
	if err != nil {
		t.Fatal(err)
	}
	cmd := runIn(t, joins, dir, "exec sleep 600")
	if err := p.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("a process that an exec left behind: %v", err)
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.Remove(t.Context()); err != nil || m.all[0].exists(p.sub.path) {
		t.Errorf("a part without processes: %v, still there %v", err, m.all[0].exists(p.sub.path))
	}
}

// TestPartsRestlessLeftoversStay: processes that only fork and end are never all listed at one moment; they are moved all the same.
func TestPartsRestlessLeftoversStay(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("making cgroups needs root")
	}
	m, err := New(Options{Driver: Cgroupfs})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	g, err := m.Create(t.Context(), "/shimtest-restless-"+strconv.Itoa(os.Getpid()), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Kill(t.Context()); err != nil {
			t.Error(err)
		}
		if err := g.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	for i := range 5 {
		p, err := g.Part("exec-" + strconv.Itoa(i))
		if err != nil {
			t.Fatal(err)
		}
		joins, dir, err := p.Files()
		if err != nil {
			t.Fatal(err)
		}
		cmd := runIn(t, joins, dir, "relay() { relay & }; relay; relay; relay; relay; exec sleep 600")
		until(t, "the first of the relay", func() bool {
			pids, err := p.sub.PIDs()
			return err == nil && len(pids) > 1
		})
		began := time.Now()
		if err := p.Remove(t.Context()); err != nil {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		if err := g.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
	}
}
