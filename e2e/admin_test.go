// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

// TestPlan prints launch programs: of a container that runs, and of one in a shared pid namespace that has not been started.
func TestPlan(t *testing.T) {
	n := node(t)
	shared := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	})
	plain := kit.RunPod(t, n)
	kind := cdiSpec(t, `{"name": "doc", "containerEdits": {"mounts": [{"hostPath": "/usr", "containerPath": "/opt/vendor/doc", "options": ["ro"]}]}}`)
	secret := func(c *cri.ContainerConfig) {
		c.Envs = append(c.Envs, &cri.KeyValue{Key: "TOKEN", Value: []byte("hunter2")})
		c.Mounts = append(c.Mounts, &cri.Mount{HostPath: t.TempDir(), ContainerPath: "/some/where", Readonly: true})
	}
	for id, words := range map[string][]string{
		plain.Run(testimage.Busybox, kit.Sleep(), secret).ID: {"join network namespace", "mount /proc", "/some/where", "execve", "TOKEN="},
		// What a CDI device brings stands in it like what the request names.
		plain.Run(testimage.Busybox, kit.Sleep(), secret, cdiDevices(kind+"=doc")).ID: {"/opt/vendor/doc", "/some/where"},
		shared.Create(testimage.Busybox, kit.Sleep(), secret, func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		}).ID: {"join pid namespace", "execve"},
	} {
		out, err := n.Shim(kit.Context(t), "plan", id[:13])
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range words {
			if !strings.Contains(out, w) {
				t.Errorf("plan of %s has no %q:\n%s", id, w, out)
			}
		}
		if strings.Contains(out, "hunter2") {
			t.Error("the plan shows the value of a variable")
		}
	}
	if out, err := n.Shim(kit.Context(t), "plan", strings.Repeat("0", 64)); err == nil || !strings.Contains(err.Error(), "no such container") {
		t.Errorf("plan of an unknown container: %q, %v", out, err)
	}
}

// TestWhy sees what a call waits for, and nothing when none is under way.
func TestWhy(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	c := pod.Run(testimage.Busybox, []string{"sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"})
	stopped := make(chan error, 1)
	go func() {
		_, err := n.Runtime.StopContainer(kit.Context(t), &cri.StopContainerRequest{ContainerId: c.ID, Timeout: 3600})
		stopped <- err
	}()
	kit.Until(t, func() error {
		out, err := n.Shim(kit.Context(t), "why", pod.ID)
		if err != nil {
			return err
		}
		if !strings.Contains(out, "stop") || !strings.Contains(out, "wait for the end after SIGTERM") || !strings.Contains(out, c.ID[:12]) {
			return fmt.Errorf("why says %q", out)
		}
		return nil
	})
	if out, err := n.Shim(kit.Context(t), "why", kit.RunPod(t, n).ID); err != nil || !strings.Contains(out, "Nothing is under way.") || !strings.Contains(out, ": ready") {
		t.Errorf("why of another pod: %q, %v", out, err)
	}
	if out, err := n.Shim(kit.Context(t), "why", strings.Repeat("0", 64)); err == nil || !strings.Contains(err.Error(), "no such pod sandbox") {
		t.Errorf("why of an unknown pod: %q, %v", out, err)
	}
	c.Stop(0)
	if err := <-stopped; err != nil {
		t.Errorf("stop: %v", err)
	}
}

// TestWhyTellsOfAFailedStart: the reason is in the answer, without a search through logs.
func TestWhyTellsOfAFailedStart(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	if err := pod.Create(testimage.Busybox, []string{"/no/such/program"}).TryStart(); err == nil {
		t.Fatal("a program that is not there was started")
	}
	out, err := n.Shim(kit.Context(t), "why", pod.ID[:13])
	if err != nil || !strings.Contains(out, "exited 128 (StartError)") || !strings.Contains(out, "no such file or directory") {
		t.Errorf("why: %v\n%s", err, out)
	}
}

// TestShimStats shows a busy container's CPU and a pod's processes.
func TestShimStats(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	busy := pod.Run(testimage.Busybox, []string{"sh", "-c", "while :; do :; done"})
	out, err := n.Shim(kit.Context(t), "stats", pod.ID)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[1], pod.ID[:12]) || !strings.HasPrefix(lines[2], busy.ID[:12]) {
		t.Fatalf("stats:\n%s", out)
	}
	for _, l := range lines[1:] {
		f := strings.Fields(strings.ReplaceAll(l, "└ ", ""))
		if cores, err := strconv.ParseFloat(f[2], 64); err != nil || cores <= 0 || cores > 1.5 {
			t.Errorf("a busy loop uses %s cores", f[2])
		}
	}
	if out, err := n.Shim(kit.Context(t), "stats", "-o", "json", "--interval", "1ms", busy.ID[:12]); err != nil || !strings.Contains(out, busy.ID) {
		t.Errorf("stats as JSON: %v\n%s", err, out)
	}
}

// TestShimEvents follows a pod's life from its first event to its last, and ends with its signal.
func TestShimEvents(t *testing.T) {
	n := node(t)
	ctx, cancel := context.WithCancel(kit.Context(t))
	defer cancel()
	events := n.ShimCommand(ctx, "events")
	events.Cancel = func() error { return events.Process.Signal(os.Interrupt) }
	out, err := events.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := events.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			lines <- in.Text()
		}
	}()
	next := func(words ...string) {
		t.Helper()
		for l := range lines {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(l, w) }) {
				return
			}
		}
		t.Fatalf("no event with %q", words)
	}
	// The subscription is there once any pod's event comes.
	for subscribed := false; !subscribed; {
		kit.RunPod(t, n).Remove()
		select {
		case _, subscribed = <-lines:
			if !subscribed {
				t.Fatal("shim events has ended")
			}
		case <-time.After(20 * time.Millisecond):
		}
	}
	pod := kit.RunPod(t, n)
	next("created", pod.ID[:12], pod.Config.Metadata.Name)
	c := pod.Run(testimage.Busybox, []string{"sh", "-c", "exit 3"})
	next("started", c.ID[:12])
	next("stopped", c.ID[:12], "exited 3 (Error)")
	c.Remove()
	next("deleted", c.ID[:12])
	pod.Remove()
	next("stopped", pod.ID[:12])
	next("deleted", pod.ID[:12])
	cancel()
	for range lines {
	}
	if err := events.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if !events.ProcessState.Success() {
		t.Errorf("interrupted: %v", events.ProcessState)
	}
}

// TestAdminSocket is as private as CRI's; who is answered is package server's test.
func TestAdminSocket(t *testing.T) {
	n := node(t)
	path := filepath.Join(n.State, "admin.sock")
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("%v, %v; want mode 0600", fi, err)
	}
}

// TestShimCheck is content with a node that works, and names the pod whose pinned namespace somebody has unmounted.
func TestShimCheck(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	pod.Run(testimage.Busybox, kit.Sleep())
	out, err := n.Shim(kit.Context(t), "check")
	if err != nil || !strings.Contains(out, "ok") || !strings.Contains(out, "cgroup: controller memory") {
		t.Errorf("check: %v\n%s", err, out)
	}
	if err := unix.Unmount(filepath.Join(n.State, "ns", pod.ID, "net"), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	out, err = n.Shim(kit.Context(t), "check", "-o", "json")
	if err == nil || !strings.Contains(err.Error(), "exit status 1") || !strings.Contains(out, "store: pod "+pod.ID[:12]) || !strings.Contains(out, "no pinned namespace") {
		t.Errorf("check without the pin: %v\n%s", err, out)
	}
}

// TestShimPsAndInspect: a pod is listed with its containers below it, and inspected by a prefix of its id, as is each of them.
func TestShimPsAndInspect(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	runs, ended := pod.Run(testimage.Busybox, kit.Sleep()), pod.Run(testimage.Busybox, []string{"true"})
	ended.Exited()
	shim := func(args ...string) string {
		out, err := n.Shim(kit.Context(t), args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	below := func(list string) []string {
		_, rest, _ := strings.Cut(list, "\n"+pod.ID[:12])
		lines := strings.Split(rest, "\n")
		end := slices.IndexFunc(lines[1:], func(l string) bool { return !strings.Contains(l, "└") })
		return lines[1 : 1+end]
	}
	if got := below(shim("ps")); len(got) != 1 || !strings.HasPrefix(got[0], runs.ID[:12]) || !strings.Contains(got[0], "running") || !strings.Contains(got[0], testimage.Busybox) {
		t.Errorf("ps: below the pod %q", got)
	}
	if got := below(shim("ps", "-a")); len(got) != 2 {
		t.Errorf("ps -a: below the pod %q", got)
	}
	if got := shim("ps", "-o", "json"); !json.Valid([]byte(got)) || !strings.Contains(got, runs.ID) || strings.Contains(got, ended.ID) {
		t.Errorf("ps as JSON: %s", got)
	}
	for id, want := range map[string][]string{
		runs.ID[:13]: {runs.ID, "CONTAINER_RUNNING", "SIGNAL_SIGTERM", pod.ID, `"pid"`}, ended.ID[:13]: {"CONTAINER_EXITED", "Completed", `"exit_code": 0`},
		pod.ID[:13]: {pod.IP(), "SANDBOX_READY", runs.ID, ended.ID}, testimage.Busybox: {"sha256:", testimage.Busybox},
	} {
		got := shim("inspect", id)
		if !json.Valid([]byte(got)) || slices.ContainsFunc(want, func(w string) bool { return !strings.Contains(got, w) }) {
			t.Errorf("inspect %s: want %q in\n%s", id, want, got)
		}
	}
}
