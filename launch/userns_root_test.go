// SPDX-License-Identifier: Apache-2.0

package launch_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"crishim.dev/launch"
	"crishim.dev/proto"
)

const idBase = 300000

// userNS makes a user namespace that maps 0 to idBase.
func userNS(t testing.TB) *os.File {
	t.Helper()
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: idBase, Size: 65536}}
	cmd := exec.Command(must[string](t)(busybox()), "sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: m, GidMappings: m, GidMappingsEnableSetgroups: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ns := openNS(t, cmd.Process.Pid, "user")
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return ns
}

// chown gives a tree to the root of the user namespace.
func chown(t testing.TB, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, idBase, idBase)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// mapped is a pod's namespaces that belong to a user namespace, and a container in them.
func mapped(t testing.TB, command string) (b *box, user *os.File, podFDs []*os.File) {
	t.Helper()
	needRoot(t)
	user = userNS(t)
	plan := must[*launch.Plan](t)(launch.Pod(&launch.PodDescription{UserNS: 0, Hostname: "mapped", Sysctls: map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "5", "kernel.shmmax": "4321", "fs.mqueue.msg_max": "12"}}, hostFacts(t)))
	r := start(t, plan, []*os.File{user}, [3]*os.File{})
	if r.failed >= 0 {
		t.Fatal(r.fail())
	}
	r.wait(t)
	podFDs = r.fds[proto.TagReturn]
	b = newBox(t, command)
	b.mapped = true
	b.join(podFDs)
	b.UserNS, b.IDBase = b.list.Add(user), idBase
	return b, user, podFDs
}

func TestUserNS(t *testing.T) {
	b, user, _ := mapped(t, `id -u; cat /proc/self/uid_map; readlink /proc/self/ns/user; hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmax /proc/sys/fs/mqueue/msg_max
		echo $$; stat -c '%u %a' /etc /data /data/made /data/made/inner; touch /data/new; cat /proc/self/status /proc/mounts; grep keyring /proc/keys && echo KEYS; echo x > /dev/null && echo null works
		mount -o remount,bind,rw /ro; touch /ro/x && echo WRITTEN; umount /ro && echo UNCOVERED; umount /dev && echo UNCOVERED; mount -t tmpfs none /tmp && echo own mount; ls /proc/1/root >/dev/null && echo root; pwd; ls /r /mnt`)
	b.Caps = launch.AllCaps // inside
	data, ro := t.TempDir(), t.TempDir()
	chown(t, data)
	b.volume(t, "/data", data)
	b.volume(t, "/data/made/inner", t.TempDir())
	b.volume(t, "/ro", ro)
	if err := unix.MountSetattr(int(b.list.Files[b.Mounts[2].FD].Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		t.Fatal(err)
	}
	b.Cwd = "/data/work"
	out, ws := b.run(t)
	want := fmt.Sprintf("0\n         0     %d      65536\nuser:[%d]\nmapped\n5\n4321\n12\n1\n0 755\n0 755\n0 755\n65534 755\n", idBase, inode(t, user))
	if !strings.HasPrefix(out, want) {
		t.Errorf("%q, want %q", out, want)
	}
	if got, want := field(out, "CapBnd"), fmt.Sprintf("%016x", uint64(b.facts.Caps)); got != want {
		t.Errorf("bounding set %s, want what the host has: %s", got, want)
	}
	for _, s := range []string{"KEYS", "WRITTEN", "UNCOVERED"} {
		if strings.Contains(out, s) {
			t.Errorf("status %x: %s in %s", ws, s, out)
		}
	}
	for _, s := range []string{"null works\n", "own mount\n", "/data/work\n", "proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0\n", " /sys sysfs ro,", "devpts /dev/pts devpts ", "mqueue /dev/mqueue "} {
		if !strings.Contains(out, s) {
			t.Errorf("no %q in %s", s, out)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(data, "new"), &st); err != nil || st.Uid != idBase {
		t.Errorf("a file of the container's root: %v, owner %d on the host", err, st.Uid)
	}
}

func TestUserNSUser(t *testing.T) {
	b, _, _ := mapped(t, "id -u; id -G; echo through > /dev/stdout; cat /proc/self/status")
	b.UID, b.GID, b.Groups = 1000, 1000, []uint32{1000, 7}
	b.Seccomp = defaultFilter(t, launch.DefaultCaps.Names())
	out, _ := b.run(t)
	if !strings.HasPrefix(out, "1000\n1000 7\nthrough\n") || field(out, "CapEff") != "0000000000000000" || field(out, "Seccomp") != "2" {
		t.Error(out)
	}
}

func TestUserNSTTYAndExec(t *testing.T) {
	b, user, _ := mapped(t, "")
	_, d, l := idle(t, b, ttyCommand)
	d.UserNS, d.TTY, d.UID, d.GID = true, true, 1000, 1000
	r := start(t, must[*launch.Plan](t)(launch.Exec(d, b.facts)), l.Files, [3]*os.File{})
	if r.failed >= 0 {
		t.Fatal(r.fail())
	}
	master := r.fds[proto.TagReturn][0]
	if _, err := master.WriteString("input\n"); err != nil {
		t.Fatal(err)
	}
	if out := terminal(t, master); !strings.Contains(out, "/dev/pts/0\n/dev/pts/0\n1000 5 620\nyes\n") || !strings.Contains(out, "got input") {
		t.Error(out)
	}
	d.TTY = false
	d.Args = []string{"sh", "-c", "id -u; readlink /proc/self/ns/user; echo > /dev/stdout"}
	out, _ := runExec(t, d, l, b.facts)
	if want := fmt.Sprintf("1000\nuser:[%d]\n\n", inode(t, user)); out != want {
		t.Errorf("%q, want %q", out, want)
	}
}

func TestUserNSPodPID(t *testing.T) {
	for _, named := range []bool{true, false} {
		b, user, fds := mapped(t, "echo $$; readlink /proc/self/ns/pid; head -n 1 /proc/1/status")
		if named && !b.facts.ProcPIDNS {
			continue
		}
		b.facts.ProcPIDNS = named
		var l launch.FDList
		d := launch.PodInitDescription{Cgroup: launch.Cgroup{Dir: launch.NoFD}, NetNS: l.Add(fds[1]), IPCNS: l.Add(fds[2]), UTSNS: l.Add(fds[3]), UserNS: l.Add(user),
			Binary: l.Add(memfd(t, "init", must[[]byte](t)(launch.InitELF(runtime.GOARCH)), 0)), Seccomp: defaultFilter(t, nil)}
		r := start(t, must[*launch.Plan](t)(launch.PodInit(&d, b.facts)), l.Files, [3]*os.File{})
		if r.failed >= 0 {
			t.Fatal(r.fail())
		}
		if got, want := field(procFile(t, r.pid, "status"), "Uid"), fmt.Sprintf("%[1]d %[1]d %[1]d %[1]d", idBase+65534); got != want {
			t.Errorf("init's ids %s, want %s", got, want)
		}
		ns := openNS(t, r.pid, "pid")
		b.PID, b.PIDNS, b.PIDMount = launch.PIDJoin, b.list.Add(ns), b.list.Add(openNS(t, r.pid, "mnt"))
		out, _ := b.run(t)
		if !strings.HasPrefix(out, fmt.Sprintf("2\npid:[%d]\nName:\t", inode(t, ns))) || strings.Contains(out, "Name:\tsh") {
			t.Error(out)
		}
	}
}
