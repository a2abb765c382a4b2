// SPDX-License-Identifier: Apache-2.0

package launch_test

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crishim.dev/launch"
	"crishim.dev/proto"
)

// idle starts a container that waits, and describes an exec of the shell command in it.
func idle(t testing.TB, b *box, command string) (*running, *launch.ExecDescription, *launch.FDList) {
	t.Helper()
	b.Args = []string{"sleep", "1000"}
	plan := b.plan(t)
	r := start(t, plan, b.list.Files, [3]*os.File{nil, os.Stderr, os.Stderr})
	if r.failed >= 0 {
		t.Fatal(r.fail())
	}
	fd := must[int](t)(unix.PidfdOpen(r.pid, 0))
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { pidfd.Close() })
	l := &launch.FDList{}
	d := &launch.ExecDescription{Process: b.Process, Cgroup: launch.Cgroup{Dir: launch.NoFD}, PIDFD: l.Add(pidfd),
		HostNet: b.NetNS == launch.NoFD, HostIPC: b.IPCNS == launch.NoFD, HostUTS: b.UTSNS == launch.NoFD, HostPID: b.PID == launch.PIDHost}
	d.Args = []string{"sh", "-c", command}
	return r, d, l
}

// runExec runs the exec to its end.
func runExec(t testing.TB, d *launch.ExecDescription, l *launch.FDList, f launch.Facts) (string, unix.WaitStatus) {
	t.Helper()
	out := newOutput(t)
	w := l.Add(out.w)
	d.Stdio = [3]launch.FD{launch.NoFD, w, w}
	plan := must[*launch.Plan](t)(launch.Exec(d, f))
	r := start(t, plan, l.Files, [3]*os.File{})
	if r.failed >= 0 {
		t.Fatal(r.fail())
	}
	ws := r.wait(t)
	return out.text(), ws
}

func TestExec(t *testing.T) {
	for _, nnp := range []bool{false, true} {
		b := newBox(t, "")
		b.NoNewPrivileges, b.OOMScoreAdj, b.Seccomp = nnp, 77, defaultFilter(t, launch.DefaultCaps.Names())
		b.join(pod(t, launch.PodDescription{Hostname: "web-0"}))
		r, d, l := idle(t, b, "cat /proc/self/status /proc/self/oom_score_adj; hostname; pwd; for n in mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done; ls -l /proc/self/fd; cat /proc/self/stat; mount -t tmpfs none /tmp; exit 9")
		d.Cwd = "/etc"
		out, ws := runExec(t, d, l, b.facts)
		if ws.ExitStatus() != 9 || !strings.Contains(out, "\n77\nweb-0\n/etc\n") || !strings.Contains(out, "mount: permission denied") {
			t.Errorf("status %x: %s", ws, out)
		}
		for name, want := range map[string]string{
			"Seccomp": "2", "CapBnd": "00000000a80425fb", "CapEff": "00000000a80425fb", "NoNewPrivs": map[bool]string{false: "0", true: "1"}[nnp], "SigIgn": "0000000000000000",
		} {
			if got := field(out, name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup"} {
			if want := must[string](t)(os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", r.pid, ns))); !strings.Contains(out, want+"\n") {
				t.Errorf("not in %s", want)
			}
		}
		// Its own session (2 is the shell), and nothing but stdio; null comes from the container.
		if !strings.Contains(out, " 2 2 0 -1 ") || !strings.Contains(out, "0 -> /dev/null\n") || strings.Contains(out, "4 -> ") {
			t.Errorf("session or descriptors: %s", out)
		}
	}
}

// TestExecNarrowSeccomp runs a program under a profile that lets it do nothing of what starting it takes.
func TestExecNarrowSeccomp(t *testing.T) {
	for _, nnp := range []bool{false, true} {
		b := newBox(t, "")
		b.NoNewPrivileges = nnp
		_, d, l := idle(t, b, "cat /proc/self/status; sleep 0.01 & wait; echo end")
		f := defaultFilter(t, nil)
		d.Seccomp = &launch.Seccomp{Code: f.Code, Flags: f.Flags, Narrow: true}
		if out, ws := runExec(t, d, l, b.facts); ws != 0 || field(out, "Seccomp") != "2" || !strings.HasSuffix(out, "end\n") {
			t.Errorf("status %x: %s", ws, out)
		}
	}
}

func TestExecErrors(t *testing.T) {
	b := newBox(t, "")
	_, d, l := idle(t, b, "true")
	for _, c := range []struct {
		args []string
		cwd  string
		want string
	}{
		{[]string{"nginx"}, "/", `exec "nginx": no such file or directory`},
		{[]string{"/etc"}, "/", `exec "/etc": permission denied`},
		{[]string{"true"}, "/nope", "set working directory /nope: no such file or directory"},
	} {
		d.Args, d.Cwd, d.Stdout, d.Stderr = c.args, c.cwd, false, false
		r := start(t, must[*launch.Plan](t)(launch.Exec(d, b.facts)), l.Files, [3]*os.File{})
		if r.fail() != c.want {
			t.Errorf("%q, want %q", r.fail(), c.want)
		}
	}
}

func TestExecInHostPID(t *testing.T) {
	b := newBox(t, "")
	b.PID = launch.PIDHost
	_, d, l := idle(t, b, "readlink /proc/self/ns/pid")
	out, _ := runExec(t, d, l, b.facts)
	if want := must[string](t)(os.Readlink("/proc/self/ns/pid")); out != want+"\n" {
		t.Errorf("%q, want %s", out, want)
	}
}

// terminal reads what comes out of a pty until its slave is closed by all, which is EIO on the master.
func terminal(t testing.TB, master *os.File) string {
	t.Helper()
	b, err := io.ReadAll(master)
	if err != nil && !strings.Contains(err.Error(), "input/output error") {
		t.Fatal(err)
	}
	// The echo comes when it comes.
	return strings.Replace(strings.ReplaceAll(string(b), "\r\n", "\n"), "input\n", "", 1)
}

const ttyCommand = "readlink /proc/self/fd/0; readlink /proc/self/fd/2; stat -c '%u %g %a' /dev/pts/0; echo yes > /dev/tty; cat /proc/self/stat; mount | grep console; ls --color=never /proc/self/fd; stat -c %t,%T /dev/console; read x; echo got $x"

func TestTTY(t *testing.T) {
	b := newBox(t, ttyCommand)
	b.TTY, b.UID, b.GID = true, 1000, 1000
	r := start(t, b.plan(t), b.list.Files, [3]*os.File{})
	if r.failed >= 0 {
		t.Fatal(r.fail())
	}
	master := r.fds[proto.TagPTY][0]
	if _, err := master.WriteString("input\n"); err != nil {
		t.Fatal(err)
	}
	out := terminal(t, master)
	for _, want := range []string{
		"/dev/pts/0\n/dev/pts/0\n1000 5 620\nyes\n", " (cat) R 1 1 1 34816 1 ",
		"devpts on /dev/console type devpts (rw,nosuid,noexec,relatime,gid=5,mode=620,ptmxmode=666)", "\n0  1  2  3\n", "88,0", "got input\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}

func TestExecTTY(t *testing.T) {
	b := newBox(t, "")
	b.Seccomp = defaultFilter(t, launch.DefaultCaps.Names())
	_, d, l := idle(t, b, ttyCommand)
	d.TTY, d.UID, d.GID = true, 1000, 1000
	r := start(t, must[*launch.Plan](t)(launch.Exec(d, b.facts)), l.Files, [3]*os.File{})
	if r.failed >= 0 {
		t.Fatal(r.fail())
	}
	master := r.fds[proto.TagReturn][0] // the daemon's, not the keeper's
	if _, err := master.WriteString("input\n"); err != nil {
		t.Fatal(err)
	}
	out := terminal(t, master)
	for _, want := range []string{"/dev/pts/0\n/dev/pts/0\n1000 5 620\nyes\n", " 34816 ", "\n0  1  2  3\n", "got input\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}
