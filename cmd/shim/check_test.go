// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crishim.dev/container"
	"crishim.dev/internal/errs"
	"crishim.dev/internal/kernel"
	"crishim.dev/sandbox"
	"crishim.dev/server"
)

// The fakes answer listings alone; Check must ask nothing else.
type listedPods struct {
	server.Sandboxes
	all  []sandbox.Sandbox
	gone string
}

func (l listedPods) List() []sandbox.Sandbox { return l.all }

func (l listedPods) Get(id string) (sandbox.Sandbox, error) {
	for _, p := range l.all {
		if string(p.ID) == id && id != l.gone {
			return p, nil
		}
	}
	return sandbox.Sandbox{}, errs.Newf(errs.NotFound, "find pod %s", id)
}

type listedContainers struct {
	server.Containers
	all  []container.Container
	gone string
}

func (l listedContainers) List() []container.Container { return l.all }

func (l listedContainers) Get(id string) (container.Container, error) {
	for _, c := range l.all {
		if string(c.ID) == id && id != l.gone {
			return c, nil
		}
	}
	return container.Container{}, errs.Newf(errs.NotFound, "find container %s", id)
}

type networkStatus struct {
	err   error
	drops []string
}

func (n networkStatus) Status() error { return n.err }

func (n networkStatus) Findings() ([]string, error) { return n.drops, nil }

func TestCheckStoreAgainstKernel(t *testing.T) {
	proc := t.TempDir()
	if err := os.Mkdir(filepath.Join(proc, "100"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(proc, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	running := func(id container.ID, pod sandbox.ID, pid int) container.Container {
		return container.Container{ID: id, Sandbox: pod, State: container.Running, PID: pid}
	}
	c := &checker{proc: proc, network: networkStatus{err: errors.New("no configuration")}}
	c.sandboxes = listedPods{gone: "removed", all: []sandbox.Sandbox{
		{ID: "removed", State: sandbox.Ready, NetNS: file},
		{ID: "good", State: sandbox.Ready, NetNS: "/proc/self/ns/net", InitPID: 100},
		{ID: "unpinned", State: sandbox.Ready, NetNS: file},
		{ID: "noinit", State: sandbox.Ready, InitPID: 200},
		{ID: "stopped", State: sandbox.Stopped, NetNS: file, InitPID: 200},
	}}
	c.containers = listedContainers{gone: "raced", all: []container.Container{
		running("alive", "good", 100), running("dead", "good", 200), running("raced", "good", 200), running("orphan", "unknown", 100),
		{ID: "exited", Sandbox: "good", State: container.Exited},
	}}
	got := map[string]string{}
	for _, f := range c.store() {
		got[f.Subject] = f.Detail
	}
	want := map[string]string{
		"store: pod unpinned": "no pinned namespace", "store: pod noinit": "process 200", "store: container dead": "process 200", "store: container orphan": "not recorded",
	}
	for subject, detail := range want {
		if !strings.Contains(got[subject], detail) {
			t.Errorf("%s: %q; want %q", subject, got[subject], detail)
		}
	}
	if len(got) != len(want) {
		t.Errorf("findings %v", got)
	}
	c.sandboxes, c.containers = listedPods{}, listedContainers{}
	if f := c.store(); len(f) != 1 || f[0].Level != server.OK {
		t.Errorf("nothing recorded: %v", f)
	}
	for _, f := range c.Check(t.Context()) {
		if f.Subject == "network" && (f.Level != server.Note || f.Detail != "no configuration") {
			t.Errorf("network: %+v", f)
		}
	}
}

func TestCheckTellsOfDroppedTraffic(t *testing.T) {
	c := &checker{network: networkStatus{drops: []string{"chain FORWARD drops"}}}
	if f := c.traffic(); len(f) != 1 || f[0].Level != server.Bad || f[0].Detail != "chain FORWARD drops" {
		t.Errorf("findings %+v", f)
	}
	c.network = networkStatus{}
	if f := c.traffic(); len(f) != 1 || f[0].Level != server.OK {
		t.Errorf("nothing is dropped: %+v", f)
	}
}

func TestCheckNamesWhatIsMissing(t *testing.T) {
	c := &checker{proc: t.TempDir()}
	bad := map[string]bool{}
	for _, f := range c.kernel(kernel.Facts{Release: "4.19.0", Major: 4, Minor: 19}) {
		bad[f.Subject] = f.Level == server.Bad
		if f.Level != server.OK && f.Detail == "" {
			t.Errorf("%s: no detail", f.Subject)
		}
	}
	for subject, want := range map[string]bool{
		"kernel: Linux 5.6 or later": true, "kernel: net namespaces": true, "kernel: file system overlay": true,
		"kernel: seccomp filters": false, "kernel: user namespaces": false,
	} {
		if got, ok := bad[subject]; !ok || got != want {
			t.Errorf("%s: bad %t, looked at %t; want %t", subject, got, ok, want)
		}
	}
}
