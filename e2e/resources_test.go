// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

// setting is one limit as each version of control groups shows it: controller, file, value.
type setting struct{ controller, v1, want1, v2, want2 string }

// checkSettings reads the container's control group files.
func checkSettings(t *testing.T, c *kit.Container, settings []setting) {
	t.Helper()
	for _, s := range settings {
		dir, file, want := c.Cgroup(s.controller), s.v1, s.want1
		if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
			file, want = s.v2, s.want2
		}
		got, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %q, %v; want %s", file, got, err, want)
		}
	}
}

func TestResourcesAreInTheCgroupFiles(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	c := pod.Run(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, CpusetCpus: "0", CpusetMems: "0", MemoryLimitInBytes: 64 << 20, OomScoreAdj: 500}
	})
	checkSettings(t, c, []setting{
		{"cpu", "cpu.shares", "512", "cpu.weight", "59"},
		{"cpu", "cpu.cfs_quota_us", "50000", "cpu.max", "50000 100000"},
		{"cpu", "cpu.cfs_period_us", "100000", "cpu.max", "50000 100000"},
		{"cpuset", "cpuset.cpus", "0", "cpuset.cpus", "0"},
		{"cpuset", "cpuset.mems", "0", "cpuset.mems", "0"},
		{"memory", "memory.limit_in_bytes", fmt.Sprint(64 << 20), "memory.max", fmt.Sprint(64 << 20)},
	})
	if got := c.Exec("cat", "/proc/1/oom_score_adj"); got != "500\n" {
		t.Errorf("oom_score_adj %q", got)
	}
	if got := c.Exec("sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"); got != fmt.Sprintln(64<<20) {
		t.Errorf("the container sees a memory limit of %q", got)
	}
	if _, err := n.Runtime.UpdateContainerResources(kit.Context(t), &cri.UpdateContainerResourcesRequest{
		ContainerId: c.ID, Linux: &cri.LinuxContainerResources{CpuShares: 1024, CpuQuota: 20000, CpuPeriod: 50000, MemoryLimitInBytes: 128 << 20},
	}); err != nil {
		t.Fatalf("update: %v", err)
	}
	checkSettings(t, c, []setting{
		{"cpu", "cpu.shares", "1024", "cpu.weight", "100"},
		{"cpu", "cpu.cfs_quota_us", "20000", "cpu.max", "20000 50000"},
		{"memory", "memory.limit_in_bytes", fmt.Sprint(128 << 20), "memory.max", fmt.Sprint(128 << 20)},
		{"cpuset", "cpuset.cpus", "0", "cpuset.cpus", "0"},
	})
	if got := c.Status().GetResources().GetLinux(); got.GetMemoryLimitInBytes() != 128<<20 || got.GetCpuQuota() != 20000 {
		t.Errorf("status shows %v", got)
	}
}

func TestResourcesOOMScoreOfNegativeIsClamped(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) { c.Linux.Resources.OomScoreAdj = -997 })
	if got := strings.TrimSpace(c.Exec("cat", "/proc/1/oom_score_adj")); got != "-997" && got != "0" {
		t.Errorf("oom_score_adj %s; want -997, or what this host allows", got)
	}
}

func TestResourcesCPUSetOfAllIsRefusedWithAReason(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	c := pod.Create(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) { c.Linux.Resources.CpusetCpus = "4096" })
	if err := c.TryStart(); err == nil || !strings.Contains(err.Error(), "cpus") {
		t.Errorf("a CPU that is not there: %v; want an error naming cpuset.cpus", err)
	}
}

func TestCapabilitiesAndNoNewPrivs(t *testing.T) {
	n := node(t)
	const image = "registry.k8s.io/e2e-test-images/nonewprivs:1.3"
	kit.RemoveImage(t, n, image)
	pod := kit.RunPod(t, n)
	const zero, all = "0000000000000000", "ALL"
	for name, tt := range map[string]struct {
		add, drop []string
		check     func(eff string) bool
	}{
		"drop all":         {nil, []string{all}, func(e string) bool { return e == zero }},
		"drop all add one": {[]string{"NET_ADMIN"}, []string{all}, func(e string) bool { return e == "0000000000001000" }},
		"with prefix":      {[]string{"CAP_NET_ADMIN"}, []string{all}, func(e string) bool { return e == "0000000000001000" }},
		"drop one":         {nil, []string{"NET_RAW"}, func(e string) bool { return e == "00000000a80405fb" }},
		"add all":          {[]string{all}, nil, func(e string) bool { return len(e) == 16 && e > "00000000ffffffff" }},
		"add all drop one": {[]string{all}, []string{"CHOWN"}, func(e string) bool { return e > "00000000ffffffff" && strings.HasSuffix(e, "e") }},
	} {
		out := pod.Output(testimage.Busybox, []string{"grep", "CapEff", "/proc/self/status"}, security(func(s *cri.LinuxContainerSecurityContext) {
			s.Capabilities = &cri.Capability{AddCapabilities: tt.add, DropCapabilities: tt.drop}
		}))
		if eff := strings.TrimSpace(strings.TrimPrefix(out, "CapEff:")); !tt.check(eff) {
			t.Errorf("%s: effective %s", name, eff)
		}
	}
	for nnp, want := range map[bool]string{true: "Effective uid: 1000\n", false: "Effective uid: 0\n"} {
		got := pod.Output(image, nil, security(func(s *cri.LinuxContainerSecurityContext) {
			s.NoNewPrivs, s.RunAsUser = nnp, &cri.Int64Value{Value: 1000}
		}))
		if got != want {
			t.Errorf("no_new_privs %v: %q; want %q", nnp, got, want)
		}
	}
}

func TestSeccomp(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	for profile, want := range map[cri.SecurityProfile_ProfileType]string{cri.SecurityProfile_RuntimeDefault: "2", cri.SecurityProfile_Unconfined: "0"} {
		out := pod.Output(testimage.Busybox, []string{"grep", "Seccomp:", "/proc/self/status"}, security(func(s *cri.LinuxContainerSecurityContext) {
			s.Seccomp = &cri.SecurityProfile{ProfileType: profile}
		}))
		if got := strings.TrimSpace(strings.TrimPrefix(out, "Seccomp:")); got != want {
			t.Errorf("%v: mode %s; want %s", profile, got, want)
		}
	}
	denied := pod.Run(testimage.Busybox, kit.Sleep(), security(func(s *cri.LinuxContainerSecurityContext) {
		s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	}))
	for _, command := range [][]string{{"unshare", "-U", "true"}, {"mount", "-t", "tmpfs", "tmpfs", "/tmp"}, {"unshare", "-m", "true"}} {
		if r, err := denied.ExecSync(10, command...); err != nil || r.GetExitCode() == 0 {
			t.Errorf("%q succeeds under the default profile: %v, %v", command, r, err)
		}
	}
}

func TestPrivileged(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n, podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.Privileged = true }))
	c := pod.Run(testimage.Busybox, kit.Sleep(), security(func(s *cri.LinuxContainerSecurityContext) { s.Privileged = true }))
	c.Exec("mount", "-t", "tmpfs", "tmpfs", "/tmp")
	c.Exec("test", "-c", "/dev/kmsg")
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	var bounding string
	for l := range strings.Lines(string(own)) {
		if set, ok := strings.CutPrefix(l, "CapBnd:"); ok {
			bounding = set
		}
	}
	if got := strings.TrimPrefix(c.Exec("grep", "CapEff", "/proc/self/status"), "CapEff:"); got != bounding {
		t.Errorf("capabilities %s; want all that this host has, %s", got, bounding)
	}
}

func TestDevices(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) {
		c.Devices = []*cri.Device{{HostPath: "/dev/null", ContainerPath: "/dev/mine", Permissions: "rw"}}
	})
	c.Exec("sh", "-c", "echo x > /dev/mine && test -c /dev/mine")
	if r, err := c.ExecSync(10, "sh", "-c", "mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg"); err != nil || r.GetExitCode() == 0 {
		t.Errorf("a device that was not asked for can be read: %v, %v", r, err)
	}
}

// A directory stands for the devices below it, and access is that which was asked for.
func TestDeviceDirectory(t *testing.T) {
	n := node(t)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	// Nobody drives these two: what may be opened does not exist then (ENXIO), and the rest is not permitted.
	for name, dev := range map[string]uint64{"a": unix.Mkdev(240, 211), "sub/b": unix.Mkdev(240, 212)} {
		if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR|0o666, int(dev)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	pod := kit.RunPod(t, n)
	for access, want := range map[string]map[string]string{
		"r":   {"< ": "No such device", "> ": "not permitted", "<> ": "not permitted"},
		"w":   {"< ": "not permitted", "> ": "No such device", "<> ": "not permitted"},
		"rwm": {"< ": "No such device", "> ": "No such device", "<> ": "No such device"},
	} {
		for _, target := range []string{"/dev/group", "/elsewhere/group"} {
			c := pod.Run(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) {
				c.Devices = []*cri.Device{{HostPath: dir, ContainerPath: target, Permissions: access}}
			})
			if got := c.Exec("sh", "-c", "cd "+target+" && find . ! -type d | sort | xargs stat -c '%n %F %t:%T'"); got != "./a character special file f0:d3\n./sub/b character special file f0:d4\n" {
				t.Errorf("devices below %s: %q", target, got)
			}
			for how, says := range want {
				r, err := c.ExecSync(10, "sh", "-c", ": "+how+target+"/sub/b")
				if err != nil || r.GetExitCode() == 0 || !strings.Contains(string(r.GetStderr()), says) {
					t.Errorf("open by %q with access %q: %v, %v; want %q", how, access, r, err, says)
				}
			}
			c.Stop(0)
		}
	}
	c := pod.Create(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) {
		c.Devices = []*cri.Device{{HostPath: filepath.Join(dir, "file"), ContainerPath: "/dev/file", Permissions: "r"}}
	})
	wantCode(t, c.TryStart(), codes.InvalidArgument, "devices[0]", "not a device")
}
