// SPDX-License-Identifier: Apache-2.0

package launch_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crishim.dev/launch"
	"crishim.dev/launch/seccomp"
)

// field is the value of a "Name: value" line, with single spaces.
func field(text, name string) string {
	for line := range strings.SplitSeq(text, "\n") {
		if n, v, ok := strings.Cut(line, ":"); ok && n == name {
			return strings.Join(strings.Fields(v), " ")
		}
	}
	return "(no " + name + ")"
}

// TestNothingInherited is KUBELET.md 27: what a container's first process has is what the request says, whatever the keeper had.
func TestNothingInherited(t *testing.T) {
	b := newBox(t, "umask; cat /proc/self/oom_score_adj; pwd; ls --color=never /proc/self/fd; cat /proc/self/limits /proc/self/status; cat /proc/1/stat; echo; cat /proc/keys")
	b.OOMScoreAdj = 321
	b.MaskedPaths = nil
	// The test keeper inherits this, and has other things that must not be passed on: see keep.
	oldMask := unix.Umask(0o077)
	defer unix.Umask(oldMask)
	out, ws := b.run(t)
	lines := strings.SplitN(out, "\n", 4)
	if ws != 0 || lines[0] != "0022" || lines[1] != "321" || lines[2] != "/" {
		t.Errorf("status %x; umask, oom_score_adj, working directory: %q", ws, lines[:3])
	}
	// 3 is ls's own.
	if !strings.HasPrefix(lines[3], "0\n1\n2\n3\nLimit") {
		t.Errorf("descriptors: %.40q", lines[3])
	}
	if !regexp.MustCompile(`Max open files +1234 +2345`).MatchString(out) {
		t.Error("limit of open files is not the request's")
	}
	for name, want := range map[string]string{
		"SigBlk": "0000000000000000", "SigIgn": "0000000000000000", "Uid": "0 0 0 0", "Groups": "", "NoNewPrivs": "1", "Seccomp": "0",
		"CapInh": "0000000000000000", "CapPrm": "00000000a80425fb", "CapEff": "00000000a80425fb", "CapBnd": "00000000a80425fb", "CapAmb": "0000000000000000",
	} {
		if got := field(out, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if cpus := fmt.Sprintf("0-%d", runtime.NumCPU()-1); runtime.NumCPU() > 1 && field(out, "Cpus_allowed_list") != cpus {
		t.Errorf("CPUs %s, want %s", field(out, "Cpus_allowed_list"), cpus)
	}
	// priority and nice value
	if !regexp.MustCompile(`(?m)^1 \(sh\) (\S+ ){15}20 0 `).MatchString(out) {
		t.Error("scheduling is not reset")
	}
	// pid, comm, state, ppid, pgrp, session: it leads its own, and its parent is outside.
	if !regexp.MustCompile(`(?m)^1 \(sh\) \S 0 1 1 `).MatchString(out) {
		t.Error("the first process has not a session of its own")
	}
	if _, err := os.Stat("/proc/keys"); err == nil && !strings.Contains(out, " _ses: empty\n") {
		t.Error("no session keyring of its own")
	}
	if strings.Contains(out, "hunter2") {
		t.Error("environment shown")
	}
}

func TestMounts(t *testing.T) {
	b := newBox(t, "cat /proc/mounts; cat /proc/self/cgroup; ls -l /dev; ls -lR /sys/fs/cgroup | head -40")
	out, ws := b.run(t)
	if ws != 0 {
		t.Errorf("status %x", ws)
	}
	for _, want := range []string{
		"proc /proc proc rw,nosuid,nodev,noexec,relatime ",
		"tmpfs /dev tmpfs rw,nosuid,", "devpts /dev/pts devpts rw,nosuid,noexec,relatime,gid=5,mode=620,ptmxmode=666 ",
		"tmpfs /dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=65536k", "mqueue /dev/mqueue mqueue rw,nosuid,nodev,noexec,relatime ",
		"sysfs /sys sysfs ro,nosuid,nodev,noexec,relatime ",
	} {
		// The tests' own /dev has no source.
		if !strings.Contains(strings.ReplaceAll("\n"+out, "none /dev tmpfs", "tmpfs /dev tmpfs"), "\n"+want) {
			t.Errorf("no mount %s: %s", want, out)
		}
	}
	for _, h := range b.facts.Hierarchies {
		if !strings.Contains(out, "cgroup /sys/fs/cgroup/"+h.Dir+" cgroup ro,nosuid,nodev,noexec,relatime,") {
			t.Errorf("no read-only hierarchy %s", h.Dir)
		}
	}
	for line := range strings.SplitSeq(out, "\n") {
		if strings.HasPrefix(line, "tmpfs /r") || strings.Contains(line, " /mnt") {
			t.Errorf("a mount of the keeper: %s", line)
		}
	}
}

func TestMaskedAndReadOnly(t *testing.T) {
	b := newBox(t, `cat /proc/keys; ls /sys/firmware /proc/acpi
		for f in /proc/sys/kernel/hostname /proc/irq/default_smp_affinity /sys/kernel/mm/ksm/run; do echo x > $f && echo WRITTEN $f; done
		touch /sys/firmware/x /proc/acpi/x && echo WRITTEN
		mount -o remount,rw /sys && echo REMOUNTED; stat -c '%F %t,%T %a' /proc/keys`)
	out, _ := b.run(t)
	if strings.Contains(out, "WRITTEN") || strings.Contains(out, "REMOUNTED") || !strings.Contains(out, "character special file 1,3 666") {
		t.Error(out)
	}
	if strings.Contains(out, "keyring") {
		t.Error("/proc/keys shows through its mask")
	}
}

func TestReadOnlyRoot(t *testing.T) {
	b := newBox(t, "touch /x || echo refused; touch /data/y && echo kept; touch /dev/z && echo dev")
	b.ReadOnlyRoot = true
	b.Mounts = []launch.Mount{{Target: "/data", FD: b.list.Add(tree(t, t.TempDir()))}}
	if out, _ := b.run(t); !strings.Contains(out, "refused\nkept\ndev\n") {
		t.Error(out)
	}
}

func TestUser(t *testing.T) {
	b := newBox(t, "id -u; id -g; id -G; pwd; cat /proc/self/status; echo through > /dev/stdout; echo also > /proc/self/fd/2; cat /only-root/secret")
	b.UID, b.GID, b.Groups = 1000, 1001, []uint32{1001, 2000}
	b.Cwd = "/only-root" // only root can enter: runc manages, so do we
	if err := os.WriteFile(filepath.Join(b.root, "only-root/secret"), []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ := b.run(t)
	if !strings.HasPrefix(out, "1000\n1001\n1001 2000\n") {
		t.Errorf("ids: %.80q", out)
	}
	for name, want := range map[string]string{
		"CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "00000000a80425fb", "CapAmb": "0000000000000000", "CapInh": "0000000000000000",
		"Uid": "1000 1000 1000 1000", "Gid": "1001 1001 1001 1001",
	} {
		if got := field(out, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if !strings.Contains(out, "through\nalso\n") || strings.Contains(out, "secret\n") {
		t.Errorf("stdio or secret: %s", out)
	}
}

func TestAmbientCapabilities(t *testing.T) {
	b := newBox(t, "cat /proc/self/status")
	b.UID, b.GID, b.Caps, b.Ambient = 1000, 1000, 1<<10|1<<13, 1<<10|1<<21
	out, _ := b.run(t)
	for name, want := range map[string]string{"CapPrm": "0000000000000400", "CapEff": "0000000000000400", "CapAmb": "0000000000000400", "CapInh": "0000000000000400", "CapBnd": "0000000000002400"} {
		if got := field(out, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestPrivileged(t *testing.T) {
	b := newBox(t, "cat /proc/self/status /proc/mounts; mkdir /sys/fs/cgroup/x; mount -t tmpfs none /tmp && echo mounted")
	b.Caps, b.NoNewPrivileges, b.SysReadWrite, b.CgroupReadWrite, b.MaskedPaths, b.ReadOnlyPaths = launch.AllCaps, false, true, true, nil, nil
	out, _ := b.run(t)
	if got, want := field(out, "CapEff"), fmt.Sprintf("%016x", uint64(b.facts.Caps)); got != want {
		t.Errorf("CapEff %s, want what the host has: %s", got, want)
	}
	if !strings.Contains(out, " /sys sysfs rw,") || !strings.Contains(out, "mounted") || field(out, "NoNewPrivs") != "0" {
		t.Error(out)
	}
}

// TestWorkingDirectoryOutside attacks with working directories that lead to what the program itself has open (CVE-2024-21626), or to
// other processes.
func TestWorkingDirectoryOutside(t *testing.T) {
	needRoot(t)
	cgroup := must[*os.File](t)(os.OpenFile("/sys/fs/cgroup", unix.O_PATH, 0))
	defer cgroup.Close()
	for _, pid := range []launch.PIDMode{launch.PIDOwn, launch.PIDHost} {
		var dirs []string
		for fd := range 24 {
			dirs = append(dirs, fmt.Sprintf("/proc/self/fd/%d", fd), fmt.Sprintf("/proc/1/fd/%d/..", fd))
		}
		for _, dir := range append(dirs, "/proc/1/root", "/proc/1/cwd", "/proc/self/root", "/proc/thread-self/cwd") {
			b := newBox(t, "pwd")
			b.PID, b.Cwd, b.targets = pid, dir, false
			for _, d := range []string{"proc", "dev", "sys"} {
				_ = os.Mkdir(filepath.Join(b.root, d), 0o755)
			}
			b.Cgroup.Procs = nil
			b.list.Add(cgroup)
			r := start(t, b.plan(t), b.list.Files, [3]*os.File{})
			if r.failed < 0 {
				t.Fatalf("%s: got in", dir)
			}
			r.end()
		}
	}
}

func TestCommand(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(b *box)
		want string
	}{
		{"missing", func(b *box) { b.Args = []string{"nginx"} }, `exec "nginx": no such file or directory`},
		{"missing path", func(b *box) { b.Args = []string{"/bin/nginx"} }, `exec "/bin/nginx": no such file or directory`},
		{"not executable", func(b *box) { b.Args, b.Env = []string{"plain"}, []string{"PATH=/nowhere:/etc:/bin"} }, `exec "plain": permission denied`},
		{"a directory", func(b *box) { b.Args = []string{"/etc"} }, `exec "/etc": permission denied`},
		{"working directory", func(b *box) { b.Cwd = "/etc/plain" }, "set working directory /etc/plain: not a directory"},
		{"working directory of another", func(b *box) { b.UID, b.Cwd, b.facts.Caps = 1000, "/only-root", b.facts.Caps&^6 },
			"set working directory /only-root: permission denied"},
		{"rootfs gone", func(b *box) { b.Mounts = []launch.Mount{{Target: "/bin", FD: b.list.Add(tree(t, t.TempDir()))}} }, `exec "sh": no such file or directory`},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t, "echo no")
			if err := os.WriteFile(filepath.Join(b.root, "etc/plain"), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
			c.edit(b)
			plan := b.plan2(t, c.name != "working directory")
			out := newOutput(t)
			r := start(t, plan, b.list.Files, [3]*os.File{nil, out.w, out.w})
			if got := r.fail(); got != c.want {
				t.Errorf("%q, want %q; output %q", got, c.want, out.text())
			}
		})
	}
}

// defaultFilter is the default profile for a container with these capabilities.
func defaultFilter(t testing.TB, caps []string) *launch.Seccomp {
	t.Helper()
	f := must[*seccomp.Filter](t)(seccomp.Default().Compile(seccomp.Target{Arch: runtime.GOARCH, Major: 6, Minor: 1, Caps: caps}))
	return &launch.Seccomp{Code: f.Code, Flags: f.Flags, Narrow: f.Narrow}
}

func TestSeccomp(t *testing.T) {
	for _, nnp := range []bool{false, true} {
		b := newBox(t, "cat /proc/self/status; mount -t tmpfs none /tmp || echo refused")
		b.NoNewPrivileges, b.Caps = nnp, launch.DefaultCaps|1<<21
		b.Seccomp = defaultFilter(t, launch.DefaultCaps.Names())
		out, _ := b.run(t)
		if field(out, "Seccomp") != "2" || field(out, "Seccomp_filters") != "1" || !strings.Contains(out, "refused") {
			t.Errorf("no_new_privs %v: %s", nnp, out)
		}
	}
}
