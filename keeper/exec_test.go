// SPDX-License-Identifier: Apache-2.0

package keeper_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/client"
	"crishim.dev/proto"
)

// run runs a program with Run.
func (p *pair) run(b *builder, files ...*os.File) (*client.Process, error) {
	s := client.Spawn{Program: &b.Program, Files: files, Name: "run program"}
	s.ID, s.Run, s.Cgroup = "run", true, -1
	pr, err := p.c.Spawn(timeout(p.t), s)
	if err == nil {
		p.t.Cleanup(pr.Close)
	}
	return pr, err
}

func TestOps(t *testing.T) {
	p := newPair(t)
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	var b builder
	// A register carries a descriptor from op to op; a store puts a number into data that another op reads.
	b.op("open", unix.SYS_OPENAT, imm(unix.AT_FDCWD), b.str("/proc/self/comm"), imm(unix.O_RDONLY), imm(0)).Result = 5
	buf := b.bytes(make([]byte, 64))
	b.op("read", unix.SYS_READ, reg(5), buf, imm(64)).Result = 6
	b.op("write", unix.SYS_WRITE, fd(proto.FDPassed), buf, reg(6))
	word := b.bytes([]byte("????"))
	b.op("store", proto.PseudoStore32, arg{proto.Imm, word.v}, imm(0x21_6b_6f)) // "ok!\0"
	b.op("write", unix.SYS_WRITE, fd(proto.FDPassed), word, imm(3))
	wide := b.bytes(make([]byte, 8))
	b.op("store", proto.PseudoStore64, wide, imm(uint64(0x0a_67_66_65_64_63_62_61)))
	b.op("write", unix.SYS_WRITE, fd(proto.FDPassed), wide, imm(8))
	// An ignored error leaves -errno in the register.
	o := b.op("open nothing", unix.SYS_OPENAT, imm(unix.AT_FDCWD), b.str("/nothing"), imm(0), imm(0))
	o.Ignore, o.Result = [4]uint16{uint16(unix.EACCES), uint16(unix.ENOENT)}, 7
	b.op("report", proto.PseudoReport, imm(proto.TagReturn), reg(5))
	b.op("report", proto.PseudoReport, imm(proto.TagReturn), fd(proto.FDPassed))
	b.op("store", proto.PseudoStore64, wide, reg(7))
	b.op("write", unix.SYS_WRITE, fd(proto.FDPassed), wide, imm(8))
	b.op("exit", proto.PseudoExit, imm(3))
	pr, err := p.run(&b, out)
	if err != nil {
		t.Fatal(err)
	}
	if pr.Status != 3<<8 || len(pr.Files) != 2 {
		t.Errorf("%+v", pr)
	}
	got, err := os.ReadFile(out.Name())
	want := "shim-keeper\nok!abcdefg\n\xfe\xff\xff\xff\xff\xff\xff\xff"
	if err != nil || string(got) != want {
		t.Errorf("wrote %q, %v; want %q", got, err, want)
	}
	var a, c unix.Stat_t
	if unix.Fstat(int(pr.Files[1].Fd()), &a) != nil || unix.Fstat(int(out.Fd()), &c) != nil || a.Ino != c.Ino {
		t.Errorf("the second descriptor is not the one reported")
	}
}

func TestAside(t *testing.T) {
	p := newPair(t)
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	write := func(b *builder, text string) {
		b.op("write", unix.SYS_WRITE, fd(proto.FDPassed), b.str(text), imm(len(text)))
	}
	var b builder
	b.op("aside", proto.PseudoAside, imm(4)).Result = 1
	b.op("receive", proto.PseudoReceive, reg(1)).Result = 2
	b.op("write", unix.SYS_WRITE, reg(2), b.str("aside "), imm(6))
	b.op("send", proto.PseudoSend, reg(1), imm(^uint64(0)))
	b.op("getpid", unix.SYS_GETPID) // its last: it goes no further
	b.op("send", proto.PseudoSend, reg(1), fd(proto.FDPassed))
	b.op("wait", proto.PseudoReceive, reg(1))
	write(&b, "main ")
	b.op("exit", proto.PseudoExit, imm(3))
	pr, err := p.run(&b, out)
	if err != nil || pr.Status != 3<<8 {
		t.Fatalf("%+v, %v", pr, err)
	}
	if got, err := os.ReadFile(out.Name()); err != nil || string(got) != "aside main " {
		t.Errorf("wrote %q, %v", got, err)
	}
	// What goes wrong aside is the program's failure, and the process that waits for it ends without another.
	b = builder{}
	b.op("aside", proto.PseudoAside, imm(1)).Result = 1
	b.op("mount aside", proto.PseudoFail, imm(unix.EXDEV))
	b.op("wait", proto.PseudoReceive, reg(1))
	b.op("exit", proto.PseudoExit, imm(0))
	var l *client.LaunchError
	if _, err := p.run(&b); !errors.As(err, &l) || err.Error() != "run program: mount aside: invalid cross-device link" {
		t.Errorf("%v", err)
	}
}

func TestOpErrors(t *testing.T) {
	p := newPair(t)
	for name, c := range map[string]struct {
		build func(b *builder)
		want  string
	}{
		"errno and label": {func(b *builder) {
			b.op("getpid", unix.SYS_GETPID)
			b.op("mount /x", unix.SYS_MOUNT, b.str("x"), b.str("/x"), b.str("nofs"), imm(0), imm(0))
			b.op("exit", proto.PseudoExit, imm(0))
		}, "run program: mount /x: no such file or directory"},
		"fail": {func(b *builder) {
			b.op("find command", proto.PseudoFail, imm(unix.ENOEXEC))
		}, "run program: find command: exec format error"},
		"EACCES is kept": {func(b *builder) {
			o := b.op("try", unix.SYS_EXECVE, b.str("/r"), imm(0), imm(0)) // a directory
			o.Ignore, o.Flags = [4]uint16{uint16(unix.ENOENT), uint16(unix.EACCES)}, proto.FlagKeepEACCES
			o = b.op("try", unix.SYS_EXECVE, b.str("/nothing"), imm(0), imm(0))
			o.Ignore, o.Flags = [4]uint16{uint16(unix.ENOENT), uint16(unix.EACCES)}, proto.FlagKeepEACCES
			b.op("find command", proto.PseudoFail, imm(unix.ENOENT))
		}, "run program: find command: permission denied"},
		"EACCES is not kept": {func(b *builder) {
			b.op("try", unix.SYS_EXECVE, b.str("/r"), imm(0), imm(0)).Ignore = [4]uint16{uint16(unix.EACCES)}
			b.op("find command", proto.PseudoFail, imm(unix.ENOENT))
		}, "run program: find command: no such file or directory"},
		"no end": {func(b *builder) {
			b.op("getpid", unix.SYS_GETPID)
		}, "run program: operation 1: exec format error"},
		"after the second clone": {func(b *builder) {
			b.op("clone", proto.PseudoClone, imm(unix.CLONE_NEWPID))
			b.op("fail", proto.PseudoFail, imm(unix.EDOM))
		}, "run program: fail: numerical argument out of domain"},
		"second clone": {func(b *builder) {
			b.op("clone", proto.PseudoClone, imm(unix.CLONE_NEWUSER|unix.CLONE_FS))
		}, "run program: clone: invalid argument"},
	} {
		var b builder
		c.build(&b)
		_, err := p.run(&b)
		var l *client.LaunchError
		if !errors.As(err, &l) || err.Error() != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	procs, _, err := p.c.Processes(timeout(t))
	if err != nil || len(procs) != 0 {
		t.Errorf("left: %v %v", procs, err)
	}
}

// A program that clones: the second process is the one that counts.
func TestSecondClone(t *testing.T) {
	p := newPair(t)
	log := filepath.Join(t.TempDir(), "0.log")
	for i := range 20 {
		var b builder
		b.op("clone", proto.PseudoClone, imm(unix.CLONE_NEWPID))
		b.op("setsid", unix.SYS_SETSID)
		b.stdio(proto.FDStdin, proto.FDStdout, proto.FDStderr)
		b.exec(proto.FDPassed, "helper", "wait", "42")
		s := p.container(fmt.Sprint("c", i), log)
		s.Program, s.StdinOnce = &b.Program, true
		pr := p.spawn(s)
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pr.PID))
		own, _ := os.Readlink("/proc/self/ns/pid")
		if err != nil || ns == own {
			t.Errorf("pid namespace %s, %v", ns, err)
		}
		if i == 10 {
			p.killYounger()
		}
		p.closeStdin(s.ID)
		if e := p.exit(s.ID); e.Status != 42<<8 {
			t.Errorf("%+v", e)
		}
		p.forget(s.ID)
	}
}

func TestKilledBeforeExecve(t *testing.T) {
	p := newPair(t)
	var b builder
	b.op("getpid", unix.SYS_GETPID).Result = 1
	b.op("kill", unix.SYS_KILL, reg(1), imm(unix.SIGKILL))
	s := p.container("x", "")
	s.Program = &b.Program
	_, err := p.c.Spawn(timeout(t), s)
	var l *client.LaunchError
	if !errors.As(err, &l) || l.Status != uint32(unix.SIGKILL) || !strings.Contains(err.Error(), "killed before it was executed (wait status 0x9)") {
		t.Errorf("%v", err)
	}
}

func TestHoldAndRelease(t *testing.T) {
	p := newPair(t)
	for _, kill := range []bool{false, true} {
		log := filepath.Join(t.TempDir(), "0.log")
		s := p.container("web", log, "print", "released\n")
		s.Hold = true
		pr := p.spawn(s)
		if again := p.spawn(s); again.PID != pr.PID {
			t.Errorf("a second Spawn gave pid %d, not %d", again.PID, pr.PID)
		}
		if kill {
			p.killYounger()
		}
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pr.PID))
		if err != nil || string(comm) != "shim-keeper\n" {
			t.Errorf("at the gate: %q, %v", comm, err)
		}
		got, err := p.c.Release(timeout(t), "web", "start container web", s.Program)
		if err != nil || got.PID != pr.PID {
			t.Fatalf("release: %+v, %v", got, err)
		}
		got.Close()
		p.exit("web")
		if lines := texts(t, log); !slices.Equal(lines, []string{"stdout F released"}) {
			t.Errorf("log %q", lines)
		}
		p.forget("web")
		delete(p.exits, "web")
	}
	s := p.container("web", "", "print", "never\n")
	s.Hold = true
	p.spawn(s)
	p.forget("web")
	if procs, _, err := p.c.Processes(timeout(t)); err != nil || len(procs) != 0 {
		t.Errorf("left: %+v %v", procs, err)
	}
}

// Nothing of the keeper is inherited: not its signals, its limits, or its descriptors.
func TestNothingInherited(t *testing.T) {
	p := newPair(t)
	log := filepath.Join(t.TempDir(), "0.log")
	p.spawn(p.container("other", filepath.Join(t.TempDir(), "other"), "cat"))
	p.spawn(p.container("web", log, "status"))
	p.exit("web")
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	var fds []string
	for _, l := range texts(t, log) {
		l = strings.TrimPrefix(l, "stdout F ")
		k, v, _ := strings.Cut(l, ":")
		v = strings.TrimSpace(v)
		switch k {
		case "SigBlk", "SigIgn", "CapInh", "CapAmb":
			if strings.Trim(v, "0") != "" {
				t.Errorf("%s", l)
			}
		case "NoNewPrivs", "Seccomp", "TracerPid":
			if v != "0" {
				t.Errorf("%s", l)
			}
		}
		if strings.HasPrefix(l, "Max open files") {
			// The helper is a Go program, which raises the soft limit.
			if f := strings.Fields(l); f[4] != fmt.Sprint(lim.Max) {
				t.Errorf("%s; this process has %d", l, lim.Max)
			}
		}
		if strings.HasPrefix(l, "fd ") && !strings.Contains(l, "anon_inode:[event") && !strings.HasSuffix(l, " ") && !strings.Contains(l, "/fd") {
			fds = append(fds, l)
		}
	}
	if len(fds) != 3 {
		t.Errorf("descriptors %q", fds)
	}
}

// killYounger kills the younger and waits for the next.
func (p *pair) killYounger() {
	p.t.Helper()
	_, y := p.settled(0, 0)
	if err := unix.Kill(y, unix.SIGKILL); err != nil {
		p.t.Fatal(err)
	}
	p.settled(0, y)
}
