// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

func TestContainerListAndStatus(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	label := func(c *cri.ContainerConfig) {
		c.Labels, c.Annotations = map[string]string{"who": pod.ID[:8]}, map[string]string{"a": "b\nc"}
	}
	c := pod.Run(testimage.Busybox, kit.Sleep(), label)
	idle := pod.Create(testimage.Busybox, kit.Sleep(), label)
	for name, tt := range map[string]struct {
		filter *cri.ContainerFilter
		want   int
	}{
		"pod":         {&cri.ContainerFilter{PodSandboxId: pod.ID}, 2},
		"label":       {&cri.ContainerFilter{LabelSelector: map[string]string{"who": pod.ID[:8]}}, 2},
		"id":          {&cri.ContainerFilter{Id: c.ID}, 1},
		"prefix":      {&cri.ContainerFilter{Id: c.ID[:13]}, 1},
		"state":       {&cri.ContainerFilter{PodSandboxId: pod.ID, State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_CREATED}}, 1},
		"wrong pod":   {&cri.ContainerFilter{Id: c.ID, PodSandboxId: "other"}, 0},
		"wrong label": {&cri.ContainerFilter{Id: c.ID, LabelSelector: map[string]string{"who": "x"}}, 0},
	} {
		list, err := n.Runtime.ListContainers(kit.Context(t), &cri.ListContainersRequest{Filter: tt.filter})
		if err != nil || len(list.GetContainers()) != tt.want {
			t.Errorf("list by %s: %v, %v; want %d", name, list.GetContainers(), err, tt.want)
		}
	}
	s := c.Status()
	if s.GetState() != cri.ContainerState_CONTAINER_RUNNING || s.GetStartedAt() == 0 || s.GetFinishedAt() != 0 || s.GetAnnotations()["a"] != "b\nc" || s.GetImageRef() == "" {
		t.Errorf("status: %v", s)
	}
	if s := idle.Status(); s.GetState() != cri.ContainerState_CONTAINER_CREATED || s.GetStartedAt() != 0 {
		t.Errorf("status of one not started: %v", s)
	}
	if err := c.TryStart(); err == nil {
		t.Error("a running container starts again")
	} else {
		wantCode(t, err, codes.FailedPrecondition)
	}
	idle.Remove()
	idle.Remove()
}

func TestContainerStopSignals(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	for name, tt := range map[string]struct {
		image  string
		signal cri.Signal
		code   int32
	}{
		"default": {testimage.Busybox, 0, 40 + int32(unix.SIGTERM)},
		"image's": {testimage.Configured, 0, 40 + int32(unix.SIGUSR1)},
		"request": {testimage.Configured, cri.Signal_SIGNAL_SIGUSR2, 40 + int32(unix.SIGUSR2)},
	} {
		t.Run(name, func(t *testing.T) {
			c := pod.Run(tt.image, []string{"probe", "signals"}, func(c *cri.ContainerConfig) { c.StopSignal = tt.signal })
			c.WaitLog("ready")
			c.Stop(30)
			if s := c.Status(); s.GetExitCode() != tt.code {
				t.Errorf("exit code %d; want %d\n%s", s.GetExitCode(), tt.code, c.Text("stdout"))
			}
			c.Stop(0)
		})
	}
	stubborn := pod.Run(testimage.Busybox, []string{"probe", "ignore"})
	stubborn.WaitLog("ignoring")
	began := time.Now()
	stubborn.Stop(1)
	if took := time.Since(began); took < time.Second || took > 10*time.Second {
		t.Errorf("stop of one that ignores signals took %v; want a second", took)
	}
	if s := stubborn.Status(); s.GetExitCode() != 137 {
		t.Errorf("exit code %d; want 137", s.GetExitCode())
	}
}

func TestContainerUsers(t *testing.T) {
	n := node(t)
	const image = "gcr.io/k8s-staging-cri-tools/test-image-predefined-group:latest"
	kit.RemoveImage(t, n, image)
	pod := kit.RunPod(t, n)
	const ids = "echo $(id -u) $(id -g) $(id -G)"
	for name, tt := range map[string]struct {
		image string
		set   func(*cri.LinuxContainerSecurityContext)
		want  string
	}{
		"root":   {testimage.Busybox, func(*cri.LinuxContainerSecurityContext) {}, "0 0 0\n"},
		"number": {testimage.Busybox, func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 33} }, "33 33 33\n"},
		"name":   {testimage.Busybox, func(s *cri.LinuxContainerSecurityContext) { s.RunAsUsername = "operator" }, "37 37 37 4 29\n"},
		"group": {testimage.Busybox, func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup = &cri.Int64Value{Value: 33}, &cri.Int64Value{Value: 50}
		}, "33 50 50\n"},
		"supplemental": {testimage.Busybox, func(s *cri.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{1234, 33} }, "0 0 0 33 1234\n"},
		"image's user": {image, func(*cri.LinuxContainerSecurityContext) {}, "1000 1000 1000 50000\n"},
		"strict": {image, func(s *cri.LinuxContainerSecurityContext) {
			s.SupplementalGroupsPolicy = cri.SupplementalGroupsPolicy_Strict
		}, "1000 1000 1000\n"},
		"unknown number": {testimage.Busybox, func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 4711} }, "4711 0 0\n"},
	} {
		got := pod.Output(tt.image, []string{"sh", "-c", ids}, security(tt.set))
		if sorted(got) != sorted(tt.want) {
			t.Errorf("%s: %q; want %q", name, got, tt.want)
		}
	}
}

// sorted orders the groups of an `id` line: uid, gid, then groups in any order.
func sorted(s string) string {
	f := strings.Fields(s)
	if len(f) < 3 {
		return s
	}
	groups := map[string]bool{}
	for _, g := range f[2:] {
		groups[g] = true
	}
	out := f[:2:2]
	for _, g := range []string{"0", "33", "37", "4", "29", "50", "1000", "1234", "50000"} {
		if groups[g] {
			out = append(out, g)
			delete(groups, g)
		}
	}
	for g := range groups {
		out = append(out, g)
	}
	return strings.Join(out, " ")
}

func TestContainerMounts(t *testing.T) {
	n := node(t)
	dir := t.TempDir()
	for _, d := range []string{"rw", "ro", "ro/sub", "target"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("target", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	pod := kit.RunPod(t, n)
	c := pod.Run(testimage.Busybox, kit.Sleep(),
		mount(&cri.Mount{HostPath: dir + "/rw", ContainerPath: "/mnt/rw"}),
		mount(&cri.Mount{HostPath: dir + "/ro", ContainerPath: "/mnt/rw/nested/ro", Readonly: true}),
		mount(&cri.Mount{HostPath: dir + "/link", ContainerPath: "/mnt/link"}),
		mount(&cri.Mount{HostPath: dir + "/missing", ContainerPath: "/mnt/missing"}),
		mount(&cri.Mount{HostPath: "/etc/os-release", ContainerPath: "/mnt/file"}))
	c.Exec("sh", "-c", "echo x > /mnt/rw/x && echo y > /mnt/link/y && echo z > /mnt/missing/z && test -s /mnt/file")
	for _, f := range []string{"rw/x", "target/y", "missing/z"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			t.Errorf("written in the container: %v", err)
		}
	}
	if r, err := c.ExecSync(10, "touch", "/mnt/rw/nested/ro/x"); err != nil || r.GetExitCode() == 0 || !strings.Contains(string(r.GetStderr()), "Read-only file system") {
		t.Errorf("write to a read-only mount: %v, %v", r, err)
	}
}

// Propagation: what is mounted on one side later is seen on the other, or not.
func TestContainerMountPropagation(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n, podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.Privileged = true }))
	for name, tt := range map[string]struct {
		mode        cri.MountPropagation
		down, up    bool
		description string
	}{
		"private": {cri.MountPropagation_PROPAGATION_PRIVATE, false, false, "neither way"},
		"rslave":  {cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, true, false, "host to container"},
		"rshared": {cri.MountPropagation_PROPAGATION_BIDIRECTIONAL, true, true, "both ways"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, d := range []string{"down", "up"} {
				if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			c := pod.Run(testimage.Busybox, kit.Sleep(), mount(&cri.Mount{HostPath: dir, ContainerPath: "/vol", Propagation: tt.mode}),
				security(func(s *cri.LinuxContainerSecurityContext) { s.Privileged = true }))
			if err := unix.Mount("tmpfs", dir+"/down", "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(dir+"/down", unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			if got := mounted(c.Exec("cat", "/proc/self/mounts"), "/vol/down"); got != tt.down {
				t.Errorf("a mount of the host is seen inside: %v; want %s", got, tt.description)
			}
			c.Exec("mount", "-t", "tmpfs", "tmpfs", "/vol/up")
			text, err := os.ReadFile("/proc/self/mounts")
			if err != nil {
				t.Fatal(err)
			}
			if got := mounted(string(text), dir+"/up"); got != tt.up {
				t.Errorf("a mount of the container is seen outside: %v; want %s", got, tt.description)
			}
			c.Exec("umount", "/vol/up")
			c.Stop(0)
		})
	}
}

// What a container mounts below what the runtime gave it stays inside, on a host whose mounts are shared (as systemd makes them): Docker in a pod
// mounts below a volume of its image, and the host would keep those mounts.
func TestContainerMountsStayInside(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n, podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.Privileged = true }))
	host := filepath.Join(t.TempDir(), "dev")
	if err := unix.Mknod(host, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	c := pod.Run(testimage.Volumes, kit.Sleep(), security(func(s *cri.LinuxContainerSecurityContext) { s.Privileged = true }),
		func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{ContainerPath: "/device", HostPath: host, Permissions: "rw"}}
		})
	const mark = "stays-inside"
	for _, dir := range []string{"/data/sub", "/dev/shm/sub", "/dev/sub", "/tmp/sub"} {
		c.Exec("sh", "-c", "mkdir -p "+dir+" && mount -t tmpfs "+mark+" "+dir)
	}
	for _, file := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/device"} {
		c.Exec("mount", "--bind", "/etc/passwd", file)
	}
	c.Exec("mount", "-t", "tmpfs", mark, "/data")
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for m := range strings.Lines(string(b)) {
		if strings.HasPrefix(m, mark) || strings.Contains(m, host) || strings.Contains(m, "/pods/"+pod.ID) {
			t.Errorf("mounted on the host: %s", m)
		}
	}
	c.Stop(0)
}

func mounted(table, point string) bool { return strings.Contains(table, " "+point+" ") }

func TestContainerRootAndPaths(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	c := pod.Run(testimage.Busybox, kit.Sleep(), security(func(s *cri.LinuxContainerSecurityContext) {
		s.ReadonlyRootfs = true
		s.MaskedPaths = []string{"/bin/ls", "/etc/nginx", "/no/such/path", "/proc/keys"}
		s.ReadonlyPaths = []string{"/tmp", "/proc/sys"}
	}))
	for _, command := range [][]string{{"touch", "/x"}, {"touch", "/tmp/x"}, {"sh", "-c", "ls /"}, {"sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"}} {
		if r, err := c.ExecSync(10, command...); err != nil || r.GetExitCode() == 0 {
			t.Errorf("%q succeeds: %v, %v", command, r, err)
		}
	}
	if got := c.Exec("sh", "-c", "wc -c < /proc/keys; find /etc/nginx | wc -l"); got != "0\n1\n" {
		t.Errorf("masked: %q; want nothing to see", got)
	}
	c.Exec("touch", "/dev/shm/x")
}

func TestContainerTTY(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, []string{"sh", "-c", "tty; probe session; echo end >&2"}, func(c *cri.ContainerConfig) { c.Tty = true })
	if s := c.Exited(); s.GetExitCode() != 0 {
		t.Fatalf("exit code %d", s.GetExitCode())
	}
	got := c.Text("stdout")
	if !strings.Contains(got, "/dev/pts/0") && !strings.Contains(got, "/dev/console") || !strings.Contains(got, "end") || c.Text("stderr") != "" {
		t.Errorf("log of a tty: stdout %q, stderr %q", got, c.Text("stderr"))
	}
	if strings.Contains(got, " 0\r") || strings.Contains(got, " 0\n") {
		t.Errorf("no controlling terminal: %q", got)
	}
}
