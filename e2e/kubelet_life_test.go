// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

func TestKubelet14_SecondStopShortensTheFirst(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, []string{"probe", "ignore"})
	c.WaitLog("ignoring")
	first := make(chan error, 1)
	go func() {
		_, err := n.Runtime.StopContainer(kit.Context(t), &cri.StopContainerRequest{ContainerId: c.ID, Timeout: 50})
		first <- err
	}()
	// The first is under way once the process has had its signal: it ignores it, so its pending set tells nothing; give
	// the call the time that a status needs instead.
	for range 20 {
		if s := c.Status(); s.GetState() != cri.ContainerState_CONTAINER_RUNNING {
			t.Fatalf("container is %v under a stop of 50 s", s.GetState())
		}
	}
	began := time.Now()
	c.Stop(0)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stop with timeout 0 took %v", took)
	}
	if err := <-first; err != nil {
		t.Errorf("the first stop: %v", err)
	}
	if s := c.Status(); s.GetExitCode() != 137 {
		t.Errorf("exit code %d; want 137", s.GetExitCode())
	}
}

func TestKubelet14_FrozenContainerStops(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep())
	freeze(t, c)
	c.Stop(5)
	if s := c.Status(); s.GetState() != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("state %v", s.GetState())
	}
}

// freeze stops every process of the container, by whichever freezer the machine has.
func freeze(t *testing.T, c *kit.Container) {
	t.Helper()
	file, word := c.Cgroup("freezer")+"/freezer.state", "FROZEN"
	if _, err := os.Stat(file); err != nil {
		file, word = c.Cgroup("")+"/cgroup.freeze", "1"
	}
	if err := os.WriteFile(file, []byte(word), 0); err != nil {
		t.Fatal(err)
	}
	kit.Until(t, func() error {
		text, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(text)) != word {
			err = fmt.Errorf("%s is %s", file, text)
		}
		return err
	})
}

func TestKubelet15_EndOfFirstProcessKillsTheRest(t *testing.T) {
	n := node(t)
	for name, mode := range map[string]cri.NamespaceMode{"pod": cri.NamespaceMode_POD, "node": cri.NamespaceMode_NODE} {
		t.Run(name, func(t *testing.T) {
			pod := kit.RunPod(t, n, podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Pid = mode }))
			c := pod.Run(testimage.Busybox, []string{"probe", "grandchild", "5"}, security(func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions.Pid = mode }))
			dir := c.Cgroup("pids")
			if s := c.Exited(); s.GetExitCode() != 5 {
				t.Errorf("exit code %d; want 5", s.GetExitCode())
			}
			kit.Until(t, func() error {
				text, err := os.ReadFile(dir + "/cgroup.procs")
				if err == nil && len(text) > 0 {
					return fmt.Errorf("still in the control group: %s", strings.Fields(string(text)))
				}
				return nil // empty, or gone with the container
			})
		})
	}
}

func TestKubelet16_GrandchildHoldingStdoutDoesNotDelayTheExit(t *testing.T) {
	n := node(t)
	host := func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions.Pid = cri.NamespaceMode_POD }
	pod := kit.RunPod(t, n, podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Pid = cri.NamespaceMode_POD }))
	c := pod.Run(testimage.Busybox, []string{"probe", "grandchild", "7"}, security(host))
	began := time.Now()
	if s := c.Exited(); s.GetExitCode() != 7 {
		t.Errorf("exit code %d; want 7", s.GetExitCode())
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the exit was told after %v", took)
	}
	if !strings.Contains(c.Text("stdout"), "left ") {
		t.Error("what was written before the exit is not in the log")
	}
	exec := pod.Run(testimage.Busybox, kit.Sleep())
	began = time.Now()
	r, err := exec.ExecSync(20, "probe", "grandchild", "0")
	if err != nil || r.GetExitCode() != 0 {
		t.Errorf("exec that leaves a grandchild: %v, %v", r, err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("exec that leaves a grandchild took %v", took)
	}
}

func TestKubelet17_StopAndRemoveTakeTheContainersAlong(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	c := pod.Run(testimage.Busybox, []string{"probe", "ignore"})
	c.WaitLog("ignoring")
	pod.Stop()
	if s := c.Status(); s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 137 {
		t.Errorf("after StopPodSandbox: %v, exit code %d", s.GetState(), s.GetExitCode())
	}
	if s := pod.Status().GetStatus(); s.GetState() != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("after StopPodSandbox: %v", s.GetState())
	}
	_, err := pod.TryCreate(kit.ContainerConfig(t, testimage.Busybox, kit.Sleep()))
	wantCode(t, err, codes.FailedPrecondition)
	pod.Remove()
	_, err = n.Runtime.ContainerStatus(kit.Context(t), &cri.ContainerStatusRequest{ContainerId: c.ID})
	wantCode(t, err, codes.NotFound)
	_, err = n.Runtime.PodSandboxStatus(kit.Context(t), &cri.PodSandboxStatusRequest{PodSandboxId: pod.ID})
	wantCode(t, err, codes.NotFound)
}

func TestKubelet18_StartReturnsAfterExecve(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	for range 10 {
		c := pod.Run(testimage.Busybox, []string{"sleep", "600"})
		for _, pid := range c.PIDs() {
			if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err != nil || strings.TrimSpace(string(comm)) != "sleep" {
				t.Errorf("process is %q, %v right after StartContainer; want sleep", comm, err)
			}
		}
		c.Stop(0)
	}
}

func TestKubelet20_ExecIsLikeTheContainer(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	c := pod.Run(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) {
		c.Linux.Resources.OomScoreAdj = 321
		c.Linux.SecurityContext.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
		c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
		c.Linux.SecurityContext.NoNewPrivs = true
	})
	const look = "grep -E '^(Cap|Seccomp|NoNewPrivs|Uid|Gid|Groups|SigBlk|SigIgn)' /proc/$1/status; cat /proc/$1/oom_score_adj /proc/$1/cgroup; umask; ulimit -n"
	first := c.Exec("sh", "-c", look, "sh", "1")
	if own := c.Exec("sh", "-c", look, "sh", "self"); strip(own) != strip(first) {
		t.Errorf("an exec sees\n%s\nthe container's first process\n%s", own, first)
	}
	if !strings.Contains(first, "\n321\n") {
		t.Errorf("oom_score_adj is not 321:\n%s", first)
	}
}

// strip drops what differs between a shell that waits and its child, and the part of the container's cgroup that an exec has for
// being killed alone.
func strip(s string) string {
	var out []string
	for l := range strings.Lines(s) {
		if !strings.HasPrefix(l, "SigBlk") && !strings.HasPrefix(l, "SigIgn") {
			out = append(out, part.ReplaceAllString(l, "/"))
		}
	}
	return strings.Join(out, "")
}

var part = regexp.MustCompile(`/exec-[0-9a-f-]+`)
