// SPDX-License-Identifier: Apache-2.0

package launch_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"crishim.dev/launch"
	"crishim.dev/proto"
)

// A keeper for tests: the test binary, started again in a mount namespace like the keeper's, runs one program in a forked
// child and tells what became of it. It shares no code with the real one, so each checks what the other understands.

// order is what the test keeper is asked to do, in its environment.
type order struct {
	CloneFlags uint64
	Cgroup     int
	// Std has the descriptors (from 3 on) for the program's stdin, stdout, stderr; -1 is none.
	Std [3]int
	// First and Files are where the program's own descriptors are.
	First, Files int
}

// Messages from the test keeper, as JSON; a descriptor may travel with each.
type message struct {
	// PID is the process that will execve; Failed the op that failed, else -1; Exited says that Status is valid.
	PID    int
	Failed int
	Errno  int
	Exited bool
	Status int
	// Tag is that of a reported descriptor, else -1.
	Tag int
}

const orderEnv = "LAUNCH_TEST_ORDER"

func TestMain(m *testing.M) {
	if o := os.Getenv(orderEnv); o != "" {
		var ord order
		if err := json.Unmarshal([]byte(o), &ord); err != nil {
			panic(err)
		}
		keep(ord)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// running is a process started by start.
type running struct {
	pid     int
	failed  int
	errno   unix.Errno
	plan    *launch.Plan
	fds     map[int][]*os.File
	keeper  *exec.Cmd
	control *os.File
}

// fail is the label and errno of the op that failed, as a user would see them.
func (r *running) fail() string {
	if r.failed < 0 {
		return ""
	}
	return r.plan.Program.Labels[r.failed] + ": " + r.errno.Error()
}

func memfd(t testing.TB, name string, data []byte, flags int) *os.File {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|flags)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	return f
}

// start runs plan until execve (or its end) and returns what is known then.
func start(t testing.TB, plan *launch.Plan, files []*os.File, std [3]*os.File) *running {
	t.Helper()
	enc, err := plan.Program.Encode()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	control, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	cmd.ExtraFiles = []*os.File{theirs, memfd(t, "program", enc, 0)}
	o := order{CloneFlags: plan.CloneFlags, Cgroup: plan.Cgroup, Files: len(files)}
	for i, f := range std {
		o.Std[i] = -1
		if f != nil {
			o.Std[i] = 3 + len(cmd.ExtraFiles)
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		}
	}
	o.First = 3 + len(cmd.ExtraFiles)
	cmd.ExtraFiles = append(cmd.ExtraFiles, files...)
	env, _ := json.Marshal(o)
	cmd.Env = append(os.Environ(), orderEnv+"="+string(env))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := &running{failed: -1, plan: plan, keeper: cmd, control: control, fds: map[int][]*os.File{}}
	t.Cleanup(r.end)
	for {
		m, f := r.receive(t)
		switch {
		case m.Tag >= 0:
			r.fds[m.Tag] = append(r.fds[m.Tag], f)
			t.Cleanup(func() { f.Close() })
		case m.Failed >= 0:
			r.failed, r.errno = m.Failed, unix.Errno(m.Errno)
			return r
		default:
			r.pid = m.PID
			return r
		}
	}
}

func (r *running) receive(t testing.TB) (message, *os.File) {
	t.Helper()
	buf, oob := make([]byte, 512), make([]byte, 64)
	n, oobn, _, _, err := unix.Recvmsg(int(r.control.Fd()), buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n == 0 {
		t.Fatalf("test keeper: %v, %d bytes", err, n)
	}
	m := message{Failed: -1, Tag: -1}
	if err := json.Unmarshal(buf[:n], &m); err != nil {
		t.Fatal(err)
	}
	if oobn == 0 {
		return m, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		t.Fatal(err)
	}
	return m, os.NewFile(uintptr(fds[0]), "reported")
}

// wait is the process's wait status.
func (r *running) wait(t testing.TB) unix.WaitStatus {
	t.Helper()
	if r.failed >= 0 {
		t.Fatal(r.fail())
	}
	m, _ := r.receive(t)
	return unix.WaitStatus(m.Status)
}

func (r *running) end() {
	if r.pid > 0 {
		_ = unix.Kill(r.pid, unix.SIGKILL)
	}
	r.control.Close()
	_ = r.keeper.Wait()
}

// keep is the test keeper.
func keep(o order) {
	runtime.LockOSThread()
	must := func(what string, err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "test keeper:", what, err)
			os.Exit(1)
		}
	}
	must("private", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must("tmpfs", unix.Mount("tmpfs", "/mnt", "tmpfs", 0, ""))
	must("chdir", unix.Chdir("/mnt"))
	for _, d := range []string{"proc", "sys", "r"} {
		must("mkdir", unix.Mkdir(d, 0o755))
	}
	must("proc", unix.Mount("proc", "proc", "proc", 0, ""))
	must("sys", unix.Mount("sysfs", "sys", "sysfs", 0, ""))
	must("pivot", unix.PivotRoot(".", "."))
	must("umount", unix.Unmount(".", unix.MNT_DETACH))
	must("chdir", unix.Chdir("/"))
	must("dumpable", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))

	// What a container must not inherit.
	_, err := unix.KeyctlJoinSessionKeyring("keeper-test")
	must("keyring", err)
	signal.Ignore(unix.SIGHUP, unix.SIGTERM)
	var cpu unix.CPUSet
	cpu.Set(0)
	must("affinity", unix.SchedSetaffinity(0, &cpu))
	must("nice", unix.Setpriority(unix.PRIO_PROCESS, 0, 5))

	var st unix.Stat_t
	must("stat", unix.Fstat(4, &st))
	// Registers and data are written by the child, in its own copy.
	mem, err := unix.Mmap(4, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	must("mmap", err)
	c := &child{}
	layout, err := proto.Check(mem, proto.FDPassed+o.Files)
	must("check", err)
	c.load(mem, layout, o)
	report, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	must("socketpair", err)
	c.fds[proto.FDReport] = uintptr(report[1])
	for i := 3; i < o.First+o.Files; i++ {
		unix.CloseOnExec(i)
	}
	args := cloneArgs{flags: o.CloneFlags, exitSignal: uint64(unix.SIGCHLD)}
	if o.Cgroup >= 0 {
		args.flags, args.cgroup = args.flags|unix.CLONE_INTO_CGROUP, uint64(o.First+o.Cgroup)
	}
	pid, errno := c.spawn(&args)
	must("clone3", errnoErr(errno))
	unix.Close(report[1])
	follow(report[0], int(pid), must)
}

func errnoErr(e unix.Errno) error {
	if e != 0 {
		return e
	}
	return nil
}

// follow passes on what the child reports, and its end.
func follow(report, pid int, must func(string, error)) {
	send := func(m message, fd int) {
		b, _ := json.Marshal(m)
		var oob []byte
		if fd >= 0 {
			oob = unix.UnixRights(fd)
		}
		if err := unix.Sendmsg(3, b, oob, nil, unix.MSG_NOSIGNAL); err != unix.EPIPE { // the test has ended
			must("sendmsg", err)
		}
	}
	failed := false
	for {
		buf, oob := make([]byte, 64), make([]byte, 64)
		n, oobn, _, _, err := unix.Recvmsg(report, buf, oob, unix.MSG_CMSG_CLOEXEC)
		must("recvmsg", err)
		if n == 0 {
			break
		}
		w := unsafe.Slice((*uint64)(unsafe.Pointer(&buf[0])), 3)
		switch w[0] {
		case reportFail:
			failed = true
			send(message{Failed: int(w[1]), Errno: int(w[2]), Tag: -1}, -1)
		case reportPID:
			var ws unix.WaitStatus
			_, err := unix.Wait4(pid, &ws, unix.WALL, nil)
			must("wait for the first process", err)
			pid = int(w[1])
		case reportFD:
			msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
			must("control message", err)
			fds, err := unix.ParseUnixRights(&msgs[0])
			must("rights", err)
			send(message{Failed: -1, Tag: int(w[1])}, fds[0])
			unix.Close(fds[0])
		default:
			must("report", fmt.Errorf("kind %s", strconv.Itoa(int(w[0]))))
		}
	}
	if !failed {
		send(message{PID: pid, Failed: -1, Tag: -1}, -1)
	}
	var ws unix.WaitStatus
	for {
		// A pid namespace ends only when all in it are reaped, so those aside are, too.
		got, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		must("wait", err)
		if got == pid {
			break
		}
	}
	if !failed {
		send(message{PID: pid, Failed: -1, Exited: true, Status: int(ws), Tag: -1}, -1)
	}
}
