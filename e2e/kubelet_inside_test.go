// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

func TestKubelet21_EtcFiles(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) {
		c.DnsConfig = &cri.DNSConfig{Servers: []string{"192.0.2.53", "192.0.2.54"}, Searches: []string{"e2e.svc", "svc"}, Options: []string{"ndots:5"}}
	})
	c := pod.Run(testimage.Busybox, kit.Sleep())
	if got := c.Exec("hostname"); got != pod.Config.Hostname+"\n" {
		t.Errorf("hostname %q; want %q", got, pod.Config.Hostname)
	}
	if got := c.Exec("cat", "/etc/hostname"); got != pod.Config.Hostname+"\n" {
		t.Errorf("/etc/hostname %q", got)
	}
	if got := c.Exec("cat", "/etc/resolv.conf"); got != "search e2e.svc svc\nnameserver 192.0.2.53\nnameserver 192.0.2.54\noptions ndots:5\n" {
		t.Errorf("/etc/resolv.conf %q", got)
	}
	if got := c.Exec("cat", "/etc/hosts"); !strings.Contains(got, "localhost") {
		t.Errorf("/etc/hosts %q", got)
	}
	c.Exec("sh", "-c", "echo 192.0.2.9 written >> /etc/hosts")
	second := pod.Run(testimage.Busybox, kit.Sleep(), security(func(s *cri.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true }))
	if got := second.Exec("cat", "/etc/hosts"); !strings.Contains(got, "written") {
		t.Error("/etc/hosts is not the pod's: another container's change is not seen")
	}
	if r, err := second.ExecSync(10, "sh", "-c", "echo x >> /etc/hosts"); err != nil || r.GetExitCode() == 0 {
		t.Errorf("/etc/hosts can be written under a read-only root: %v, %v", r, err)
	}
	own := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(own, []byte("127.0.0.1 mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	mounted := pod.Run(testimage.Busybox, kit.Sleep(), mount(&cri.Mount{HostPath: own, ContainerPath: "/etc/hosts"}))
	if got := mounted.Exec("cat", "/etc/hosts"); got != "127.0.0.1 mine\n" {
		t.Errorf("/etc/hosts %q; want the one that the request mounts", got)
	}
}

func TestKubelet21_NoDNSConfigIsTheHosts(t *testing.T) {
	n := node(t)
	want, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Skipf("this machine has no resolv.conf: %v", err)
	}
	if got := kit.RunPod(t, n).Output(testimage.Busybox, []string{"cat", "/etc/resolv.conf"}); got != string(want) {
		t.Errorf("/etc/resolv.conf %q; want the host's %q", got, want)
	}
}

func TestKubelet21_HostNetwork(t *testing.T) {
	n := node(t)
	host := podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Network = cri.NamespaceMode_NODE })
	pod := kit.RunPod(t, n, host)
	want, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	c := pod.Run(testimage.Busybox, kit.Sleep(), security(func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions.Network = cri.NamespaceMode_NODE }))
	if got := c.Exec("hostname"); got != want+"\n" {
		t.Errorf("hostname %q; want the host's %q", got, want)
	}
	if ip := pod.Status().GetStatus().GetNetwork().GetIp(); ip != "" {
		t.Errorf("a host-network pod has the address %q", ip)
	}
	self, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Exec("readlink", "/proc/self/ns/net"); strings.TrimSpace(got) != self {
		t.Errorf("network namespace %s; want the host's %s", got, self)
	}
	bad := kit.PodConfig(t, n, host, func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"} })
	_, err = n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: bad})
	wantCode(t, err, codes.InvalidArgument, "net.ipv4.ip_forward")
}

func TestKubelet22_ShmBelongsToThePod(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	first := pod.Run(testimage.Busybox, kit.Sleep())
	mounts := first.Exec("grep", " /dev/shm ", "/proc/mounts")
	for _, want := range []string{"nosuid", "nodev", "noexec", "size=65536k"} {
		if !strings.Contains(mounts, want) {
			t.Errorf("/dev/shm is %q; want %s", mounts, want)
		}
	}
	first.Exec("sh", "-c", "echo shared > /dev/shm/x")
	first.Stop(0)
	first.Remove()
	second := pod.Run(testimage.Busybox, kit.Sleep())
	if got := second.Exec("cat", "/dev/shm/x"); got != "shared\n" {
		t.Errorf("/dev/shm/x %q; want what a container of before wrote", got)
	}
	if got := second.Exec("grep", " /dev/mqueue ", "/proc/mounts"); !strings.Contains(got, "mqueue") {
		t.Errorf("/dev/mqueue: %q", got)
	}
}

func TestKubelet23_Environment(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	env := pod.Output(testimage.Configured, []string{"probe", "env"}, func(c *cri.ContainerConfig) {
		c.Envs = []*cri.KeyValue{{Key: "BOTH", Value: []byte("request")}, {Key: "odd.name-1", Value: []byte("a=b c")}}
	})
	lines := strings.Split(strings.TrimSpace(env), "\n")
	for _, want := range []string{"FROM_IMAGE=image", "BOTH=request", "odd.name-1=a=b c", "HOSTNAME=" + pod.Config.Hostname, "HOME=/var/www"} {
		if !slices.Contains(lines, want) {
			t.Errorf("no %s in\n%s", want, env)
		}
	}
	if slices.Contains(lines, "BOTH=image") || strings.Contains(env, "TERM=") {
		t.Errorf("environment\n%s", env)
	}
	tty := pod.Run(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) { c.Tty = true })
	if got := tty.Exec("sh", "-c", "tr '\\0' '\\n' < /proc/1/environ"); !strings.Contains(got, "TERM=xterm") {
		t.Errorf("with a tty: %q; want TERM=xterm", got)
	}
	bare := pod.Run(testimage.Busybox, kit.Sleep(), security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 4711} }))
	if got := bare.Exec("probe", "env"); !strings.Contains(got, "PATH=") || !strings.Contains(got, "HOME=/\n") {
		t.Errorf("for a user without an entry: %q; want PATH and HOME=/", got)
	}
}

func TestKubelet23_CommandArgsAndDirectory(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	for name, tt := range map[string]struct {
		command, args []string
		want          string
	}{
		"image's":      {nil, nil, "\"entrypoint\"\n\"cmd\"\n"},
		"args only":    {nil, []string{"mine"}, "\"entrypoint\"\n\"mine\"\n"},
		"command only": {[]string{"probe", "args", "c"}, nil, "\"c\"\n"},
		"both":         {[]string{"probe", "args", "c"}, []string{"a b", ""}, "\"c\"\n\"a b\"\n\"\"\n"},
	} {
		if got := pod.Output(testimage.Configured, tt.command, func(c *cri.ContainerConfig) { c.Args = tt.args }); got != tt.want {
			t.Errorf("%s: %q; want %q", name, got, tt.want)
		}
	}
	if got := pod.Output(testimage.Configured, []string{"pwd"}); got != "/work/dir\n" {
		t.Errorf("working directory %q; want the image's, made", got)
	}
	if got := pod.Output(testimage.Busybox, []string{"pwd"}, func(c *cri.ContainerConfig) { c.WorkingDir = "/made/for/me" }); got != "/made/for/me\n" {
		t.Errorf("working directory %q; want the request's, made", got)
	}
}

func TestKubelet24_ImageVolumes(t *testing.T) {
	n := node(t)
	kit.RemoveImage(t, n, testimage.Volumes)
	pod := kit.RunPod(t, n)
	c := pod.Run(testimage.Volumes, kit.Sleep())
	if got := c.Exec("sh", "-c", "cat /data/seed; stat -c '%u %g %a' /data; ls -A /empty | wc -l; grep -c -e ' /data ' -e ' /empty ' /proc/mounts"); got != "seed33 33 750\n0\n2\n" {
		t.Errorf("volumes %q; want the seed with its owner and mode, two mounts", got)
	}
	c.Exec("sh", "-c", "echo changed > /data/seed")
	other := pod.Run(testimage.Volumes, kit.Sleep())
	if got := other.Exec("cat", "/data/seed"); got != "seed" {
		t.Errorf("another container sees %q", got)
	}
}

func TestKubelet25_Defaults(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep())
	for path, want := range map[string]string{
		"/proc/sys/net/ipv4/ip_unprivileged_port_start": "0\n",
		"/proc/sys/net/ipv4/ping_group_range":           "0\t2147483647\n",
	} {
		if got := c.Exec("cat", path); got != want {
			t.Errorf("%s is %q; want %q", path, got, want)
		}
	}
	// chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod audit_write setfcap
	const want = "00000000a80425fb"
	status := c.Exec("cat", "/proc/1/status")
	for field, value := range map[string]string{"CapPrm": want, "CapEff": want, "CapBnd": want, "CapInh": "0000000000000000", "CapAmb": "0000000000000000"} {
		if !strings.Contains(status, field+":\t"+value+"\n") {
			t.Errorf("%s is not %s:\n%s", field, value, status)
		}
	}
}

func TestKubelet26_Devices(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	as := security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 33} })
	if got := pod.Output(testimage.Busybox, []string{"probe", "stdout"}, as); got != "by name\n" {
		t.Errorf("a user that opens /dev/stdout wrote %q", got)
	}
	c := pod.Run(testimage.Busybox, kit.Sleep())
	for link, want := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2", "/dev/ptmx": "pts/ptmx"} {
		if got := c.Exec("readlink", link); strings.TrimSpace(got) != want {
			t.Errorf("%s is %q; want %q", link, got, want)
		}
	}
	for _, dev := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if got := c.Exec("stat", "-c", "%F %a", "/dev/"+dev); got != "character special file 666\n" {
			t.Errorf("/dev/%s: %q", dev, got)
		}
	}
	mounts := "grep -E '^[^ ]+ (/sys|/sys/fs/cgroup[^ ]*) ' /proc/mounts | cut -d' ' -f4 | cut -d, -f1 | sort -u"
	if got := c.Exec("sh", "-c", mounts); got != "ro\n" {
		t.Errorf("/sys and /sys/fs/cgroup: %q; want read-only", got)
	}
	privileged := kit.RunPod(t, n, podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.Privileged = true })).
		Run(testimage.Busybox, kit.Sleep(), security(func(s *cri.LinuxContainerSecurityContext) { s.Privileged = true }))
	if got := privileged.Exec("sh", "-c", mounts); got != "rw\n" {
		t.Errorf("/sys and /sys/fs/cgroup of a privileged container: %q; want writable", got)
	}
}

func TestKubelet27_NothingOfTheKeeperIsInherited(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep())
	status := c.Exec("cat", "/proc/1/status")
	for field, want := range map[string]string{"SigBlk": "0000000000000000", "Umask": "0022", "NoNewPrivs": "0", "Seccomp": "0"} {
		if field != "Seccomp" && !strings.Contains(status, field+":\t"+want+"\n") {
			t.Errorf("%s is not %s:\n%s", field, want, status)
		}
	}
	limits := c.Exec("cat", "/proc/1/limits")
	var host unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &host); err != nil {
		t.Fatal(err)
	}
	nofile := min(1048576, host.Max) // a host without CAP_SYS_RESOURCE can't raise it
	if !containsFields(limits, fmt.Sprintf("Max open files %d %d", nofile, nofile)) || !containsFields(limits, "Max core file size unlimited unlimited") {
		t.Errorf("limits:\n%s", limits)
	}
	if got := c.Exec("cat", "/proc/1/oom_score_adj"); got != "0\n" {
		t.Errorf("oom_score_adj %q", got)
	}
	self, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(self)) {
		if strings.HasPrefix(l, "Cpus_allowed_list:") && !strings.Contains(status, l) {
			t.Errorf("affinity is not %q:\n%s", l, status)
		}
	}
	if got := c.Exec("sh", "-c", "ls /proc/1/fd | tr '\\n' ' '"); got != "0 1 2 " {
		t.Errorf("descriptors %q; want 0 1 2", got)
	}
	if got := strings.Fields(c.Exec("cut", "-d ", "-f", "5-6", "/proc/1/stat")); !slices.Equal(got, []string{"1", "1"}) {
		t.Errorf("process group and session are %q; want its own", got)
	}
	// Not of the sleeper: a shell ignores SIGQUIT by itself.
	if got := kit.RunPod(t, n).Output(testimage.Busybox, []string{"grep", "^SigIgn", "/proc/self/status"}); got != "SigIgn:\t0000000000000000\n" {
		t.Errorf("%q; want no ignored signal", got)
	}
	own, other := c.Exec("probe", "keyring"), kit.RunPod(t, n).Output(testimage.Busybox, []string{"probe", "keyring"})
	if own == other || strings.Contains(other, "_uid_ses") || strings.Contains(other, "_uid.") {
		t.Errorf("session keyrings %q and %q; want one each", own, other)
	}
}

// containsFields says whether a line starts with these words, however they are spaced.
func containsFields(text, words string) bool {
	for l := range strings.Lines(text) {
		if strings.HasPrefix(strings.Join(strings.Fields(l), " "), words) {
			return true
		}
	}
	return false
}

func TestKubelet28_LogFiles(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	c := pod.Run(testimage.Busybox, []string{"sh", "-c", "echo one; read x < /dev/null; sleep infinity"})
	c.WaitLog("one")
	info, err := os.Lstat(c.LogPath())
	if err != nil || info.Mode() != 0o640 {
		t.Errorf("log file: %v, %v; want a plain file of mode 0640", info.Mode(), err)
	}
	if err := os.Rename(c.LogPath(), c.LogPath()+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Runtime.ReopenContainerLog(kit.Context(t), &cri.ReopenContainerLogRequest{ContainerId: c.ID}); err != nil {
		t.Errorf("reopen log: %v", err)
	}
	c.Exec("sh", "-c", "echo two > /proc/1/fd/1")
	c.WaitLog("two")
	if old, err := os.ReadFile(c.LogPath() + ".1"); err != nil || strings.Contains(string(old), "two") {
		t.Errorf("the old log: %q, %v", old, err)
	}
	c.Stop(0)
	_, err = n.Runtime.ReopenContainerLog(kit.Context(t), &cri.ReopenContainerLogRequest{ContainerId: c.ID})
	if err == nil {
		t.Error("reopening the log of an exited container succeeds")
	}
	target := filepath.Join(t.TempDir(), "target")
	linked := pod.Create(testimage.Busybox, []string{"echo", "through"})
	if err := os.Remove(linked.LogPath()); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if err := os.Symlink(target, linked.LogPath()); err != nil {
		t.Fatal(err)
	}
	if err := linked.TryStart(); err == nil {
		linked.Exited()
	}
	if text, err := os.ReadFile(target); err == nil {
		t.Errorf("the log went through a symbolic link: %q", text)
	}
}
