// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"

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
	secret := func(c *cri.ContainerConfig) {
		c.Envs = append(c.Envs, &cri.KeyValue{Key: "TOKEN", Value: []byte("hunter2")})
		c.Mounts = append(c.Mounts, &cri.Mount{HostPath: t.TempDir(), ContainerPath: "/some/where", Readonly: true})
	}
	for id, words := range map[string][]string{
		plain.Run(testimage.Busybox, kit.Sleep(), secret).ID: {"join network namespace", "mount /proc", "/some/where", "execve", "TOKEN="},
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
	if out, err := n.Shim(kit.Context(t), "why", strings.Repeat("0", 64)); err != nil || strings.Contains(out, "stop") {
		t.Errorf("why of another pod: %q, %v", out, err)
	}
	c.Stop(0)
	if err := <-stopped; err != nil {
		t.Errorf("stop: %v", err)
	}
}
