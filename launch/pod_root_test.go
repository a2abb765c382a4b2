// SPDX-License-Identifier: Apache-2.0

package launch_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crishim.dev/launch"
	"crishim.dev/proto"
)

// pod makes namespaces and returns what the program reports: socket, net, ipc, uts.
func pod(t testing.TB, d launch.PodDescription) []*os.File {
	t.Helper()
	needRoot(t)
	d.UserNS = launch.NoFD
	plan := must[*launch.Plan](t)(launch.Pod(&d, hostFacts(t)))
	r := start(t, plan, nil, [3]*os.File{})
	if r.failed >= 0 {
		t.Fatal(r.fail())
	}
	if ws := r.wait(t); ws != 0 {
		t.Fatalf("status %x", ws)
	}
	return r.fds[proto.TagReturn]
}

// join puts the container into a pod's namespaces.
func (b *box) join(fds []*os.File) {
	b.NetNS, b.IPCNS, b.UTSNS = b.list.Add(fds[1]), b.list.Add(fds[2]), b.list.Add(fds[3])
}

func inode(t testing.TB, f *os.File) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestPod(t *testing.T) {
	fds := pod(t, launch.PodDescription{Hostname: "web-0", Sysctls: map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "77", "net/ipv4/ping_group_range": "0 2147483647", "kernel.shmmax": "123456", "fs.mqueue.msg_max": "11",
	}})
	if len(fds) != 4 {
		t.Fatalf("%d descriptors", len(fds))
	}
	// The socket is in the new network namespace: its only link is a loopback.
	if proto, err := unix.GetsockoptInt(int(fds[0].Fd()), unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || proto != unix.NETLINK_ROUTE {
		t.Errorf("protocol %d, %v", proto, err)
	}
	b := newBox(t, "hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range /proc/sys/kernel/shmmax /proc/sys/fs/mqueue/msg_max; "+
		"for n in net ipc uts; do readlink /proc/self/ns/$n; done; ls /sys/class/net")
	b.join(fds)
	out, _ := b.run(t)
	want := fmt.Sprintf("web-0\n77\n0\t2147483647\n123456\n11\nnet:[%d]\nipc:[%d]\nuts:[%d]\n", inode(t, fds[1]), inode(t, fds[2]), inode(t, fds[3]))
	if !strings.HasPrefix(out, want) || !strings.Contains(out, "\nlo\n") {
		t.Errorf("%q, want %q and lo", out, want)
	}
}

func TestPodErrors(t *testing.T) {
	needRoot(t)
	plan := must[*launch.Plan](t)(launch.Pod(&launch.PodDescription{UserNS: launch.NoFD, Sysctls: map[string]string{"net.ipv4.nothing": "1"}}, hostFacts(t)))
	if r := start(t, plan, nil, [3]*os.File{}); r.fail() != "set sysctl net.ipv4.nothing: no such file or directory" {
		t.Error(r.fail())
	}
	plan = must[*launch.Plan](t)(launch.Pod(&launch.PodDescription{UserNS: launch.NoFD, Sysctls: map[string]string{"net.ipv4.ip_forward": "many"}}, hostFacts(t)))
	if r := start(t, plan, nil, [3]*os.File{}); r.fail() != "set sysctl net.ipv4.ip_forward: invalid argument" {
		t.Error(r.fail())
	}
	if _, err := launch.Pod(&launch.PodDescription{UserNS: launch.NoFD, Hostname: strings.Repeat("x", 65)}, launch.Facts{}); err == nil {
		t.Error("long host name: no error")
	}
}

// startInit starts a pod's first process in its namespaces.
func startInit(t testing.TB, fds []*os.File, facts launch.Facts) *running {
	t.Helper()
	var l launch.FDList
	elf := must[[]byte](t)(launch.InitELF(runtime.GOARCH))
	d := launch.PodInitDescription{
		Cgroup: launch.Cgroup{Dir: launch.NoFD}, UserNS: launch.NoFD,
		NetNS: l.Add(fds[1]), IPCNS: l.Add(fds[2]), UTSNS: l.Add(fds[3]), Binary: l.Add(memfd(t, "init", elf, 0)),
	}
	d.Seccomp = defaultFilter(t, nil)
	plan := must[*launch.Plan](t)(launch.PodInit(&d, facts))
	r := start(t, plan, l.Files, [3]*os.File{})
	if r.failed >= 0 {
		t.Fatal(r.fail())
	}
	return r
}

func procFile(t testing.TB, pid int, name string) string {
	t.Helper()
	return string(must[[]byte](t)(os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), name))))
}

func openNS(t testing.TB, pid int, name string) *os.File {
	t.Helper()
	f := must[*os.File](t)(os.Open(filepath.Join("/proc", strconv.Itoa(pid), "ns", name)))
	t.Cleanup(func() { f.Close() })
	return f
}

func TestPodInit(t *testing.T) {
	fds := pod(t, launch.PodDescription{Hostname: "web-0"})
	r := startInit(t, fds, hostFacts(t))
	status := procFile(t, r.pid, "status")
	for name, want := range map[string]string{
		"Uid": "65534 65534 65534 65534", "Gid": "65534 65534 65534 65534", "CapPrm": "0000000000000000", "CapBnd": fmt.Sprintf("%016x", 0),
		"NoNewPrivs": "1", "Seccomp": "2", "NSpid": fmt.Sprint(r.pid) + " 1", "Threads": "1",
	} {
		if got := field(status, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if m := strings.Split(strings.TrimSpace(procFile(t, r.pid, "mountinfo")), "\n"); hostFacts(t).ProcPIDNS && len(m) != 1 || !strings.Contains(m[0], " / / ro,nosuid,nodev,noexec") {
		t.Errorf("mounts %q", m)
	}
	if fds := must[[]os.DirEntry](t)(os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.pid))); len(fds) != 0 {
		t.Errorf("descriptors %v", fds)
	}
	if got := must[string](t)(os.Readlink(fmt.Sprintf("/proc/%d/ns/net", r.pid))); got != fmt.Sprintf("net:[%d]", inode(t, fds[1])) {
		t.Errorf("network namespace %s", got)
	}
	// It is the pod's reaper: an orphan is gone, not a zombie, once it has ended.
	b := newBox(t, "sleep 0.01 & sleep 0.02 & exec true")
	b.join(fds)
	b.PID, b.PIDNS, b.PIDMount = launch.PIDJoin, b.list.Add(openNS(t, r.pid, "pid")), b.list.Add(openNS(t, r.pid, "mnt"))
	if _, ws := b.run(t); ws != 0 {
		t.Fatalf("status %x", ws)
	}
	children := fmt.Sprintf("/proc/%d/task/%d/children", r.pid, r.pid)
	until(t, "no children left", func() bool { return len(must[[]byte](t)(os.ReadFile(children))) == 0 })
	if err := unix.Kill(r.pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if ws := r.wait(t); !ws.Exited() || ws.ExitStatus() != 0 {
		t.Errorf("status %x after SIGTERM", ws)
	}
}

func TestPodPIDNamespace(t *testing.T) {
	needRoot(t)
	for _, named := range []bool{true, false} {
		t.Run(fmt.Sprintf("proc names the namespace %v", named), func(t *testing.T) {
			facts := hostFacts(t)
			if named && !facts.ProcPIDNS {
				t.Skip("needs proc's pidns option, Linux 6.17")
			}
			facts.ProcPIDNS = named
			fds := pod(t, launch.PodDescription{})
			r := startInit(t, fds, facts)
			b := newBox(t, "echo $$; readlink /proc/self; readlink /proc/self/ns/pid; cat /proc/self/stat; touch /proc/1/x; ls --color=never /proc/self/fd; cat /proc/mounts; head -n 1 /proc/1/status")
			b.facts = facts
			b.join(fds)
			ns := openNS(t, r.pid, "pid")
			b.PID, b.PIDNS, b.PIDMount = launch.PIDJoin, b.list.Add(ns), b.list.Add(openNS(t, r.pid, "mnt"))
			b.Seccomp = defaultFilter(t, launch.DefaultCaps.Names())
			out, ws := b.run(t)
			if ws != 0 || !strings.HasPrefix(out, fmt.Sprintf("2\n3\npid:[%d]\n", inode(t, ns))) || field(out, "Name") == "sh" {
				t.Errorf("status %x, %s", ws, out)
			}
			// cat's session is that of the shell, which leads it; the shell's parent is outside.
			if !strings.Contains(out, " (cat) R 2 2 2 0 -1 ") || !strings.Contains(out, "\n0\n1\n2\n3\n") {
				t.Errorf("session or descriptors: %s", out)
			}
			if !strings.Contains(out, "proc /proc proc rw,nosuid,nodev,noexec,relatime ") {
				t.Errorf("mounts: %s", out)
			}
		})
	}
}

func TestHostPID(t *testing.T) {
	b := newBox(t, "echo $$; readlink /proc/self/ns/pid")
	b.PID = launch.PIDHost
	out, _ := b.run(t)
	if want := must[string](t)(os.Readlink("/proc/self/ns/pid")); !strings.HasSuffix(out, want+"\n") || strings.HasPrefix(out, "1\n") {
		t.Errorf("%q, want %s", out, want)
	}
}

func TestCgroupV1(t *testing.T) {
	needRoot(t)
	if hostFacts(t).CgroupVersion != 1 {
		t.Skip("needs cgroup v1")
	}
	b := newBox(t, "cat /proc/self/cgroup; cat /sys/fs/cgroup/pids/pids.max")
	dir := "/sys/fs/cgroup/pids/" + cgroupName()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer removeCgroup(t, dir)
	if err := os.WriteFile(dir+"/pids.max", []byte("31"), 0); err != nil {
		t.Fatal(err)
	}
	procs := must[*os.File](t)(os.OpenFile(dir+"/cgroup.procs", os.O_WRONLY, 0))
	defer procs.Close()
	b.Procs = []launch.FD{b.list.Add(procs)}
	out, _ := b.run(t)
	if !strings.Contains(out, ":pids:/\n") || !strings.HasSuffix(out, "\n31\n") {
		t.Error(out)
	}
}

func TestCgroupV2(t *testing.T) {
	needRoot(t)
	root := "/sys/fs/cgroup"
	if hostFacts(t).CgroupVersion == 1 {
		root = "/sys/fs/cgroup/unified"
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		t.Skip("needs a mounted cgroup v2 hierarchy")
	}
	dir := filepath.Join(root, cgroupName())
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer removeCgroup(t, dir)
	b := newBox(t, "cat /proc/self/cgroup /sys/fs/cgroup/cgroup.events; grep cgroup /proc/mounts")
	b.facts.CgroupVersion = 2
	f := must[*os.File](t)(os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0))
	defer f.Close()
	b.Dir = b.list.Add(f)
	out, _ := b.run(t)
	if !strings.Contains(out, "0::/\n") || !strings.Contains(out, "populated 1\n") || !strings.Contains(out, "cgroup2 /sys/fs/cgroup cgroup2 ro,") {
		t.Error(out)
	}
}

func cgroupName() string { return "launch-test-" + strconv.Itoa(os.Getpid()) }

func removeCgroup(t testing.TB, dir string) {
	t.Helper()
	until(t, "remove "+dir, func() bool {
		err := os.Remove(dir)
		if err != nil && !errors.Is(err, unix.EBUSY) {
			t.Fatal(err)
		}
		return err == nil
	})
}

// until waits for a condition that comes true soon.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 10000 {
		if ok() {
			return
		}
		// The kernel has work to do; let it.
		runtime.Gosched()
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 100_000}, nil)
	}
	t.Fatal("still not: " + what)
}

func TestInitELF(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		elf := must[[]byte](t)(launch.InitELF(arch))
		if len(elf) > 2048 {
			t.Errorf("%s: %d bytes", arch, len(elf))
		}
		var b bytes.Buffer
		for i := 0; i < len(elf); i += 16 {
			fmt.Fprintf(&b, "%04x % x\n", i, elf[i:min(i+16, len(elf))])
		}
		golden(t, "init-"+arch, b.Bytes())
	}
	if _, err := launch.InitELF("s390x"); err == nil {
		t.Error("s390x: no error")
	}
}
