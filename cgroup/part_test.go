// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startIn starts a shell command in the groups that procs belong to.
func startIn(t *testing.T, procs []*os.File, script string) *exec.Cmd {
	t.Helper()
	join := ""
	for i := range procs {
		join += "echo 0 >&" + strconv.Itoa(3+i) + "; "
	}
	cmd := exec.Command("bash", "-c", join+script) // dash has no two-digit descriptors
	cmd.ExtraFiles = procs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range procs {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return cmd
}

func TestPartIsKilledAlone(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("making cgroups needs root")
	}
	m, err := New(Options{Driver: Cgroupfs})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	path := "/shimtest-part-" + strconv.Itoa(os.Getpid())
	g, err := m.Create(t.Context(), path, nil)
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
	if m.Version() == 2 {
		t.Skip("this machine's groups are joined by CLONE_INTO_CGROUP; the launch tests do that")
	}
	procs, _, err := g.Files()
	if err != nil {
		t.Fatal(err)
	}
	first := startIn(t, procs, "exec sleep 600")
	p, err := g.Part("exec-1")
	if err != nil {
		t.Fatal(err)
	}
	if procs, _, err = p.Files(); err != nil {
		t.Fatal(err)
	}
	// A child that leaves the session and loses its parent.
	second := startIn(t, procs, "(setsid sleep 600 & ) ; exec sleep 600")
	for deadline := time.Now().Add(10 * time.Second); ; {
		pids, err := p.sub.PIDs()
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes of the part: %v", pids)
		}
	}
	if b, err := os.ReadFile("/proc/" + strconv.Itoa(second.Process.Pid) + "/cgroup"); err != nil || strings.Count(string(b), "/exec-1\n") != 1 {
		t.Errorf("the part should lie in one hierarchy: %s %v", b, err)
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err == nil || second.ProcessState.Sys().(interface{ Signal() unix.Signal }).Signal() != unix.SIGKILL {
		t.Errorf("the part's process: %v", err)
	}
	if err := first.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the group's own process: %v", err)
	}
	if err := g.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	_ = first.Wait()
	if err := p.Remove(t.Context()); err != nil {
		t.Errorf("removed twice: %v", err)
	}
}
