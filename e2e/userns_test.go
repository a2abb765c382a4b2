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

// idRange is a mapping as kubelet assigns it to a pod.
func idRange(host uint32) []*cri.IDMapping {
	return []*cri.IDMapping{{HostId: host, ContainerId: 0, Length: 65536}}
}

// mapped gives a pod a user namespace.
func mapped(host uint32) func(*cri.PodSandboxConfig) {
	return podSecurity(func(s *cri.LinuxSandboxSecurityContext) {
		s.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: idRange(host), Gids: idRange(host)}
	})
}

// mappedVolume is a volume whose owners are mapped as the pod's.
func mappedVolume(host uint32, m *cri.Mount) func(*cri.ContainerConfig) {
	m.UidMappings, m.GidMappings = idRange(host), idRange(host)
	return mount(m)
}

// owner gives the owner of a file as the test sees it.
func owner(t *testing.T, path string) (uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid, st.Gid
}

func TestUserNamespace(t *testing.T) {
	n := node(t)
	const base = 200000
	pod := kit.RunPod(t, n, mapped(base))
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "old"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := pod.Run(testimage.Busybox, kit.Sleep(), mappedVolume(base, &cri.Mount{HostPath: data, ContainerPath: "/data"}))
	for _, file := range []string{"uid_map", "gid_map"} {
		if got := strings.Fields(c.Exec("cat", "/proc/self/"+file)); strings.Join(got, " ") != fmt.Sprintf("0 %d 65536", base) {
			t.Errorf("%s %q", file, got)
		}
	}
	for _, pid := range c.PIDs() {
		if uid, gid := owner(t, fmt.Sprintf("/proc/%d", pid)); uid != base || gid != base {
			t.Errorf("process %d is %d:%d outside; want %d", pid, uid, gid, base)
		}
	}
	c.Exec("sh", "-c", `set -e
		test "$(stat -c %u:%g /etc/passwd /bin /root /dev /dev/null /dev/shm /etc/hosts /data /data/old | sort -u)" = 0:0
		test "$(stat -c %u:%g /var/www)" = 33:33
		echo x > /dev/null; echo x > /dev/shm/x; echo 192.0.2.1 y >> /etc/hosts; echo new > /etc/new; rm /etc/group
		chown 1000:1001 /etc/passwd; mv /etc/passwd /etc/moved; test "$(stat -c %u:%g /etc/moved)" = 1000:1001
		touch /data/new; mkdir /data/dir; chown 12:13 /data/dir; echo old > /data/old`)
	for _, f := range []struct {
		name     string
		uid, gid uint32
	}{{"old", 0, 0}, {"new", 0, 0}, {"dir", 12, 13}} {
		// An id-mapped mount stores what the pod sees: the volume can go to a pod with other ids.
		if uid, gid := owner(t, filepath.Join(data, f.name)); uid != f.uid || gid != f.gid {
			t.Errorf("%s belongs to %d:%d on disk; want %d:%d", f.name, uid, gid, f.uid, f.gid)
		}
	}
}

func TestUserNamespaceRootIsLockedIn(t *testing.T) {
	n := node(t)
	const base = 300000
	pod := kit.RunPod(t, n, mapped(base))
	dir, plain := t.TempDir(), t.TempDir()
	if err := os.Chmod(plain, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := pod.Run(testimage.Busybox, kit.Sleep(),
		mappedVolume(base, &cri.Mount{HostPath: dir, ContainerPath: "/ro", Readonly: true}),
		mount(&cri.Mount{HostPath: plain, ContainerPath: "/plain"}),
		security(func(s *cri.LinuxContainerSecurityContext) {
			noAppArmor(s)
			s.Capabilities = &cri.Capability{AddCapabilities: []string{"ALL"}}
			s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/keys"}, []string{"/proc/sys"}
		}))
	for _, attack := range []string{
		"mount -o remount,bind,rw /ro", "mount -o remount,rw /ro", "umount /ro", "umount -l /ro", "touch /ro/x", "umount /dev", "umount /dev/shm", "umount /etc/hosts", "umount /",
		"mount -o remount,rw /sys", "mknod /tmp/sda b 8 0", "echo 1 > /proc/sys/kernel/sysrq", "echo b > /proc/sysrq-trigger",
		"mkdir /n && mknod /n/null c 1 3", "mount -o remount,dev /ro",
		"mkdir /m && mount --bind /ro /m && mount -o remount,bind,rw /m",
	} {
		if r, err := c.ExecSync(10, "sh", "-c", attack); err != nil || r.GetExitCode() == 0 {
			t.Errorf("%s succeeds: %v, %v", attack, r, err)
		}
	}
	// What is its own it may do.
	c.Exec("sh", "-c", `set -e
		mkdir /t /p /b; mount -t tmpfs none /t; mount --bind /t /b; mount -t proc proc /p && exit 9; hostname other; touch /plain/made; cat /ro/secret
		test "$(stat -c %u /plain)" = 65534`)
	if uid, gid := owner(t, filepath.Join(plain, "made")); uid != base || gid != base {
		t.Errorf("a file in a volume that is not mapped belongs to %d:%d; want %d", uid, gid, base)
	}
	if _, err := os.Lstat(filepath.Join(dir, "x")); err == nil {
		t.Error("the read-only volume was written")
	}
}

// noAppArmor leaves mounts to the kernel's own rules: the default profile forbids all of them.
func noAppArmor(s *cri.LinuxContainerSecurityContext) {
	s.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
}

// defaultMasks are what kubelet asks for unless procMount is Unmasked.
func defaultMasks(s *cri.LinuxContainerSecurityContext) {
	s.MaskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	s.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// TestUserNamespaceMountsAreLocked lets a root with every capability of its user namespace try to undo each mount it was given.
func TestUserNamespaceMountsAreLocked(t *testing.T) {
	n := node(t)
	const base = 350000
	all := security(func(s *cri.LinuxContainerSecurityContext) {
		defaultMasks(s)
		noAppArmor(s)
		s.Capabilities = &cri.Capability{AddCapabilities: []string{"ALL"}}
	})
	own := security(func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions.Pid = cri.NamespaceMode_POD })
	shared := podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Pid = cri.NamespaceMode_POD })
	for name, c := range map[string]struct {
		pod       []func(*cri.PodSandboxConfig)
		container []func(*cri.ContainerConfig)
	}{
		"pid namespace of its own": {[]func(*cri.PodSandboxConfig){mapped(base)}, []func(*cri.ContainerConfig){all}},
		"the pod's pid namespace":  {[]func(*cri.PodSandboxConfig){mapped(base), shared}, []func(*cri.ContainerConfig){all, own}},
	} {
		t.Run(name, func(t *testing.T) {
			pod := kit.RunPod(t, n, c.pod...)
			cpuinfo := filepath.Join(t.TempDir(), "cpuinfo")
			if err := os.WriteFile(cpuinfo, []byte("none\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			c := pod.Run(testimage.Busybox, kit.Sleep(), append(c.container,
				mappedVolume(base, &cri.Mount{HostPath: t.TempDir(), ContainerPath: "/ro", Readonly: true}),
				mappedVolume(base, &cri.Mount{HostPath: t.TempDir(), ContainerPath: "/data"}),
				mount(&cri.Mount{HostPath: t.TempDir(), ContainerPath: "/dev/shm/in", Readonly: true}),
				mount(&cri.Mount{HostPath: cpuinfo, ContainerPath: "/proc/cpuinfo", Readonly: true}))...)
			for line := range strings.Lines(c.Exec("probe", "undo")) {
				// Its own devpts is the one thing that the container's root mounts itself.
				if !strings.HasSuffix(line, " /dev/pts\n") {
					t.Errorf("works: %s", line)
				}
			}
			c.Exec("sh", "-c", `set -e
				test "$(stat -c %F:%t:%T /proc/keys)" = "character special file:1:3"; test -z "$(ls /sys/firmware)"; grep -q none /proc/cpuinfo
				own="/dev/shm /dev/mqueue /dev /proc/self/status"; test -e /sys/fs/cgroup/cgroup.procs || own="$own /sys/fs/cgroup"
				test "$(stat -c %u:%g $own | sort -u)" = 0:0
				mkdir /dev/shm/d; ls /sys/class/net/eth0/ >/dev/null; echo 1 > /proc/self/oom_score_adj; ls /dev/mqueue > /dev/null
				mkdir /cg; mount -t cgroup -o pids none /cg 2>/dev/null || mount -t cgroup2 none /cg; ! echo 0 > /cg/pids.max; ! mkdir /cg/x`)
		})
	}
	// Without masks there is nothing to hide: kubelet's procMount Unmasked is what nested containers need.
	c := kit.RunPod(t, n, mapped(base)).Run(testimage.Busybox, kit.Sleep(), security(func(s *cri.LinuxContainerSecurityContext) {
		noAppArmor(s)
		s.Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	}))
	c.Exec("sh", "-c", "mkdir /p /s && mount -t proc proc /p && test -d /p/1 && mount -t sysfs -o ro,nosuid,nodev,noexec sysfs /s")
}

func TestUserNamespacesAreSeparate(t *testing.T) {
	n := node(t)
	shared := t.TempDir()
	if err := os.Chmod(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, base := range []uint32{400000, 500000, 600000} {
		pod := kit.RunPod(t, n, mapped(base), podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Pid = cri.NamespaceMode_POD }))
		c := pod.Run(testimage.Busybox, kit.Sleep(), mount(&cri.Mount{HostPath: shared, ContainerPath: "/shared"}),
			security(func(s *cri.LinuxContainerSecurityContext) {
				s.NamespaceOptions.Pid = cri.NamespaceMode_POD
				s.NamespaceOptions.UsernsOptions = pod.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions
				s.RunAsUser, s.RunAsGroup = &cri.Int64Value{Value: 1000}, &cri.Int64Value{Value: 1001}
			}))
		name := fmt.Sprintf("of-%d", base)
		c.Exec("sh", "-c", "id -u; umask 077; echo mine > /shared/"+name)
		if uid, gid := owner(t, filepath.Join(shared, name)); uid != base+1000 || gid != base+1001 {
			t.Errorf("%s belongs to %d:%d", name, uid, gid)
		}
		for _, other := range seen {
			if r, err := c.ExecSync(10, "cat", "/shared/"+other); err != nil || r.GetExitCode() == 0 {
				t.Errorf("pod %d reads %s: %v, %v", base, other, r, err)
			}
		}
		seen = append(seen, name)
		init, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", c.PIDs()[0]))
		if err != nil || strings.Join(strings.Fields(string(init)), " ") != fmt.Sprintf("0 %d 65536", base) {
			t.Errorf("uid_map %q, %v", init, err)
		}
	}
}

func TestUserNamespaceSysctlsAndNetwork(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n, mapped(700000), func(c *cri.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "81", "kernel.shmmax": "4096000"}
	})
	c := pod.Run(testimage.Busybox, kit.Sleep())
	got := c.Exec("cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/kernel/shmmax", "/proc/sys/net/ipv4/ping_group_range")
	if f := strings.Fields(got); len(f) != 4 || f[0] != "81" || f[1] != "4096000" || f[2] == "0" {
		t.Errorf("sysctls %q; the default ping_group_range must not be set", got)
	}
	if got := c.Exec("ip", "-o", "addr"); !strings.Contains(got, pod.IP()) {
		t.Errorf("no address %s in %s", pod.IP(), got)
	}
	tty := pod.Run(testimage.Busybox, []string{"sh", "-c", "tty; stat -c %u $(tty); exec sleep 1000"}, func(c *cri.ContainerConfig) { c.Tty = true })
	tty.WaitLog("/dev/pts/0")
	tty.WaitLog(" 0\r")
}

func TestUserNamespaceRefusals(t *testing.T) {
	n := node(t)
	with := func(change func(*cri.NamespaceOption)) func(*cri.PodSandboxConfig) {
		return podSecurity(func(s *cri.LinuxSandboxSecurityContext) { change(s.NamespaceOptions) })
	}
	two := append(idRange(1000), &cri.IDMapping{HostId: 200000, ContainerId: 65536, Length: 65536})
	for name, c := range map[string]struct {
		change func(*cri.NamespaceOption)
		field  string
	}{
		"host network":  {func(o *cri.NamespaceOption) { o.Network = cri.NamespaceMode_NODE }, "network"},
		"host pid":      {func(o *cri.NamespaceOption) { o.Pid = cri.NamespaceMode_NODE }, "pid"},
		"host ipc":      {func(o *cri.NamespaceOption) { o.Ipc = cri.NamespaceMode_NODE }, "ipc"},
		"no mapping":    {func(o *cri.NamespaceOption) { o.UsernsOptions.Uids = nil }, "uids"},
		"length 0":      {func(o *cri.NamespaceOption) { o.UsernsOptions.Gids[0].Length = 0 }, "gids"},
		"several":       {func(o *cri.NamespaceOption) { o.UsernsOptions.Uids = two }, "uids"},
		"not from 0":    {func(o *cri.NamespaceOption) { o.UsernsOptions.Uids[0].ContainerId = 1 }, "uids"},
		"other groups":  {func(o *cri.NamespaceOption) { o.UsernsOptions.Gids = idRange(900000) }, "gids"},
		"too long":      {func(o *cri.NamespaceOption) { o.UsernsOptions.Uids[0].HostId = 1<<32 - 10 }, "uids"},
		"container":     {func(o *cri.NamespaceOption) { o.UsernsOptions.Mode = cri.NamespaceMode_CONTAINER }, "mode"},
		"target":        {func(o *cri.NamespaceOption) { o.UsernsOptions.Mode = cri.NamespaceMode_TARGET }, "mode"},
		"node mappings": {func(o *cri.NamespaceOption) { o.UsernsOptions.Mode = cri.NamespaceMode_NODE }, "uids"},
	} {
		_, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: kit.PodConfig(t, n, mapped(800000), with(c.change))})
		if err == nil {
			t.Errorf("%s: a pod was made", name)
			continue
		}
		wantCode(t, err, codes.InvalidArgument, c.field)
	}
	pod := kit.RunPod(t, n, mapped(800000))
	options := func(f func(*cri.NamespaceOption)) func(*cri.ContainerConfig) {
		return security(func(s *cri.LinuxContainerSecurityContext) { f(s.NamespaceOptions) })
	}
	users := func(host uint32) func(*cri.NamespaceOption) {
		return func(o *cri.NamespaceOption) {
			o.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: idRange(host), Gids: idRange(host)}
		}
	}
	for name, c := range map[string]struct {
		mod   func(*cri.ContainerConfig)
		field string
	}{
		"other range": {options(users(900000)), "uids"},
		"the host's":  {options(func(o *cri.NamespaceOption) { o.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_NODE} }), "mode"},
		"host pid":    {options(func(o *cri.NamespaceOption) { o.Pid = cri.NamespaceMode_NODE }), "pid"},
		"propagation": {mount(&cri.Mount{HostPath: "/tmp", ContainerPath: "/v", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}), "propagation"},
		"volume":      {mappedVolume(900000, &cri.Mount{HostPath: "/tmp", ContainerPath: "/v"}), "uidMappings"},
		"user":        {security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 70000} }), "70000"},
		"group":       {security(func(s *cri.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{65536} }), "65536"},
	} {
		if _, err := pod.TryCreate(kit.ContainerConfig(t, testimage.Busybox, kit.Sleep(), c.mod)); err == nil {
			t.Errorf("%s: a container was made", name)
		} else {
			wantCode(t, err, codes.InvalidArgument, c.field)
		}
	}
	_, err := kit.RunPod(t, n).TryCreate(kit.ContainerConfig(t, testimage.Busybox, kit.Sleep(), options(users(900000))))
	wantCode(t, err, codes.InvalidArgument, "userns_options")
	// A file system that has no id-mapped mounts is told as such.
	proc := pod.Create(testimage.Busybox, kit.Sleep(), mappedVolume(800000, &cri.Mount{HostPath: "/proc/sys", ContainerPath: "/v"}))
	wantCode(t, proc.TryStart(), codes.FailedPrecondition, "/proc/sys", "id-mapped mounts", "Linux ")
	status, err := n.Runtime.Status(kit.Context(t), &cri.StatusRequest{})
	if err != nil || !status.GetRuntimeHandlers()[0].GetFeatures().GetUserNamespaces() {
		t.Errorf("user_namespaces is not announced: %v, %v", status.GetRuntimeHandlers(), err)
	}
}
