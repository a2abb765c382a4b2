// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

func TestPodStatusAndList(t *testing.T) {
	n := node(t)
	key := kit.Unique(t)
	pod := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) {
		c.Labels = map[string]string{"e2e/label": key, "empty": ""}
		c.Annotations = map[string]string{"note": "line one\nline two", "unicode": "ü"}
		c.Metadata.Attempt = 3
	})
	s := pod.Status().GetStatus()
	if s.GetState() != cri.PodSandboxState_SANDBOX_READY || s.GetMetadata().GetAttempt() != 3 || s.GetMetadata().GetUid() != pod.Config.Metadata.Uid {
		t.Errorf("status: %v", s)
	}
	if s.GetLabels()["e2e/label"] != key || len(s.GetLabels()) != 2 || s.GetAnnotations()["note"] != "line one\nline two" || s.GetAnnotations()["unicode"] != "ü" {
		t.Errorf("labels %v, annotations %v; want them verbatim", s.GetLabels(), s.GetAnnotations())
	}
	for name, tt := range map[string]struct {
		filter *cri.PodSandboxFilter
		want   int
	}{
		"label":           {&cri.PodSandboxFilter{LabelSelector: map[string]string{"e2e/label": key}}, 1},
		"two labels":      {&cri.PodSandboxFilter{LabelSelector: map[string]string{"e2e/label": key, "empty": ""}}, 1},
		"other value":     {&cri.PodSandboxFilter{LabelSelector: map[string]string{"e2e/label": key + "x"}}, 0},
		"id":              {&cri.PodSandboxFilter{Id: pod.ID}, 1},
		"prefix":          {&cri.PodSandboxFilter{Id: pod.ID[:13]}, 1},
		"id and state":    {&cri.PodSandboxFilter{Id: pod.ID, State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}}, 1},
		"id, wrong state": {&cri.PodSandboxFilter{Id: pod.ID, State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_NOTREADY}}, 0},
		"unknown id":      {&cri.PodSandboxFilter{Id: "no-such-id"}, 0},
	} {
		list, err := n.Runtime.ListPodSandbox(kit.Context(t), &cri.ListPodSandboxRequest{Filter: tt.filter})
		if err != nil || len(list.GetItems()) != tt.want {
			t.Errorf("list by %s: %v, %v; want %d pods", name, list.GetItems(), err, tt.want)
		}
	}
}

// namespaces reads what a process of the container lives in.
func namespaces(t *testing.T, c *kit.Container) map[string]string {
	t.Helper()
	out := make(map[string]string)
	for _, kind := range []string{"net", "ipc", "uts", "pid", "mnt", "cgroup", "user"} {
		out[kind] = strings.TrimSpace(c.Exec("readlink", "/proc/self/ns/"+kind))
	}
	return out
}

func TestPodNamespaces(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	a, b := namespaces(t, pod.Run(testimage.Busybox, kit.Sleep())), namespaces(t, pod.Run(testimage.Busybox, kit.Sleep()))
	other := namespaces(t, kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep()))
	for kind, shared := range map[string]bool{"net": true, "ipc": true, "uts": true, "pid": false, "mnt": false, "cgroup": false, "user": true} {
		if (a[kind] == b[kind]) != shared {
			t.Errorf("%s namespaces of one pod: %s and %s; shared should be %v", kind, a[kind], b[kind], shared)
		}
		if kind != "user" && a[kind] == other[kind] {
			t.Errorf("%s namespace %s is shared by two pods", kind, a[kind])
		}
		if own, err := os.Readlink("/proc/self/ns/" + kind); err != nil || kind != "user" && own == a[kind] {
			t.Errorf("%s namespace is the node's: %s, %v", kind, own, err)
		}
	}
}

func TestPodPIDModes(t *testing.T) {
	n := node(t)
	t.Run("pod", func(t *testing.T) {
		mode := cri.NamespaceMode_POD
		pod := kit.RunPod(t, n, podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Pid = mode }))
		set := security(func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions.Pid = mode })
		a, b := pod.Run(testimage.Busybox, []string{"sleep", "4321"}, set), pod.Run(testimage.Busybox, kit.Sleep(), set)
		if got := b.Exec("sh", "-c", "grep -l '[4]321' /proc/[0-9]*/cmdline | wc -l"); got != "1\n" {
			t.Errorf("a container sees %q of the other's processes; want 1", got)
		}
		if first := b.Exec("cat", "/proc/1/cmdline"); strings.Contains(first, "sleep") {
			t.Errorf("process 1 is %q; want the pod's init", first)
		}
		if zombies := b.Exec("sh", "-c", "(sleep 0 & exec true); sleep 0.2; grep -l '^State:.Z' /proc/[0-9]*/status | wc -l"); zombies != "0\n" {
			t.Errorf("%s zombies; want the pod's init to reap", zombies)
		}
		a.Stop(0)
		b.Exec("true")
	})
	t.Run("node", func(t *testing.T) {
		mode := cri.NamespaceMode_NODE
		pod := kit.RunPod(t, n, podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Pid = mode }))
		c := pod.Run(testimage.Busybox, kit.Sleep(), security(func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions.Pid = mode }))
		want, err := os.Readlink("/proc/self/ns/pid")
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(c.Exec("readlink", "/proc/self/ns/pid")); got != want {
			t.Errorf("pid namespace %s; want the node's %s", got, want)
		}
		if got := c.Exec("cat", fmt.Sprintf("/proc/%d/comm", os.Getpid())); got == "" {
			t.Error("the test itself is not seen")
		}
	})
	t.Run("target", func(t *testing.T) {
		pod := kit.RunPod(t, n)
		a := pod.Run(testimage.Busybox, []string{"sleep", "4321"})
		b := pod.Run(testimage.Busybox, kit.Sleep(), security(func(s *cri.LinuxContainerSecurityContext) {
			s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = cri.NamespaceMode_TARGET, a.ID
		}))
		if got := b.Exec("sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline"); got != "sleep 4321 " {
			t.Errorf("process 1 is %q; want the target's", got)
		}
		missing := kit.ContainerConfig(t, testimage.Busybox, kit.Sleep(), security(func(s *cri.LinuxContainerSecurityContext) {
			s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = cri.NamespaceMode_TARGET, "nobody"
		}))
		made, err := pod.TryCreate(missing)
		if err == nil {
			_, err = n.Runtime.StartContainer(kit.Context(t), &cri.StartContainerRequest{ContainerId: made.GetContainerId()})
		}
		if err == nil || !strings.Contains(err.Error(), "nobody") {
			t.Errorf("a target that does not exist: %v; want an error naming it", err)
		}
	})
}

func TestPodHostIPC(t *testing.T) {
	n := node(t)
	mode := cri.NamespaceMode_NODE
	pod := kit.RunPod(t, n, podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Ipc = mode }))
	c := pod.Run(testimage.Busybox, kit.Sleep(), security(func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions.Ipc = mode }))
	want, err := os.Readlink("/proc/self/ns/ipc")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(c.Exec("readlink", "/proc/self/ns/ipc")); got != want {
		t.Errorf("ipc namespace %s; want the node's %s", got, want)
	}
	name := "/dev/shm/" + kit.Unique(t)
	c.Exec("sh", "-c", "echo x > "+name)
	if err := os.Remove(name); err != nil {
		t.Errorf("the host's /dev/shm has no file of the container: %v", err)
	}
}

func TestPodSysctls(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.core.somaxconn": "1234", "kernel.shm_rmid_forced": "1", "net/ipv4/ip_unprivileged_port_start": "777"}
	})
	c := pod.Run(testimage.Busybox, kit.Sleep())
	if got := c.Exec("cat", "/proc/sys/net/core/somaxconn", "/proc/sys/kernel/shm_rmid_forced", "/proc/sys/net/ipv4/ip_unprivileged_port_start"); got != "1234\n1\n777\n" {
		t.Errorf("sysctls %q", got)
	}
	if got := c.Exec("cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra"); got != "0\n" {
		t.Errorf("router advertisements are accepted: %q", got)
	}
	for name, want := range map[string]string{
		"kernel.panic":                "kernel.panic",
		"vm.overcommit_memory":        "vm.overcommit_memory",
		"net..ipv4.ip_forward":        "net..ipv4.ip_forward",
		"net.ipv4/../../kernel/panic": "kernel/panic",
		"kernel.shm_rmid_forced/../x": "shm_rmid_forced",
		"":                            "sysctl",
	} {
		bad := kit.PodConfig(t, n, func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{name: "1"} })
		_, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: bad})
		wantCode(t, err, codes.InvalidArgument, want)
	}
	unknown := kit.PodConfig(t, n, func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.ipv4.no_such_thing": "1"} })
	if _, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: unknown}); err == nil || !strings.Contains(err.Error(), "no_such_thing") {
		t.Errorf("a sysctl that the kernel does not have: %v; want an error naming it", err)
	}
}

func TestPodStopIsIdempotentAndRemoveForces(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	pod.Run(testimage.Busybox, kit.Sleep())
	pod.Stop()
	pod.Stop()
	pod.Remove()
	pod.Remove()
	running := kit.RunPod(t, n)
	running.Run(testimage.Busybox, []string{"probe", "ignore"})
	if _, err := n.Runtime.RemovePodSandbox(kit.Context(t), &cri.RemovePodSandboxRequest{PodSandboxId: running.ID}); err != nil {
		t.Errorf("remove a pod that runs: %v", err)
	}
}

// A parent that the request names may hold other pods, and belongs to whoever made it.
func TestPodsShareACgroupParent(t *testing.T) {
	n := node(t)
	parent := n.CgroupParent + "/" + kit.Unique(t)
	share := func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = parent }
	a, b := kit.RunPod(t, n, share), kit.RunPod(t, n, share)
	a.Run(testimage.Busybox, kit.Sleep())
	other := b.Run(testimage.Busybox, kit.Sleep())
	a.Stop()
	a.Remove()
	if got := other.Exec("echo", "alive"); got != "alive\n" || len(other.PIDs()) == 0 {
		t.Errorf("the other pod's container: %q, processes %v", got, other.PIDs())
	}
}

func TestPodHandler(t *testing.T) {
	n := node(t)
	_, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: kit.PodConfig(t, n), RuntimeHandler: "no-such-handler"})
	if err == nil || !strings.Contains(err.Error(), "no-such-handler") {
		t.Errorf("unknown handler: %v; want a refusal by name", err)
	}
	s, err := n.Runtime.Status(kit.Context(t), &cri.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.GetRuntimeHandlers()) == 0 || s.GetRuntimeHandlers()[0].GetName() != "" {
		t.Errorf("handlers %v; want the default one with the empty name", s.GetRuntimeHandlers())
	}
	for _, c := range s.GetStatus().GetConditions() {
		if !c.GetStatus() {
			t.Errorf("condition %v", c)
		}
	}
}
