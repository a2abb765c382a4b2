// SPDX-License-Identifier: Apache-2.0

package keeper_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/keeper/client"
	"crishim.dev/proto"
)

func TestStdin(t *testing.T) {
	p := newPair(t)
	for _, once := range []bool{true, false} {
		log := filepath.Join(t.TempDir(), "0.log")
		s := p.container("web", log, "cat")
		s.StdinOnce = once
		p.spawn(s)
		in, err := p.c.Attach(timeout(t), "web", true, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(in, "first")
		p.killYounger()
		fmt.Fprintln(in, "second")
		in.Close()
		in, err = p.c.Attach(timeout(t), "web", true, nil, nil)
		if once {
			if !errors.Is(err, errs.Precondition) && !errors.Is(err, errs.NotFound) {
				t.Errorf("a second attach to stdin: %v", err)
			}
			p.exit("web")
			if got := texts(t, log); !slices.Equal(got, []string{"stdout F first", "stdout F second"}) {
				t.Errorf("log %q", got)
			}
			p.forget("web")
			delete(p.exits, "web")
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(in, "third")
		in.Close()
		waitFor(t, "the third line", func() bool { return len(texts(t, log)) == 3 })
	}
}

func TestAttach(t *testing.T) {
	p := newPair(t)
	for _, logged := range []bool{true, false} {
		log := ""
		if logged {
			log = filepath.Join(t.TempDir(), "0.log")
		}
		s := p.container("web", log, "cat")
		s.StdinOnce = true
		p.spawn(s)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		in, err := p.c.Attach(timeout(t), "web", true, w, nil)
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		for _, text := range []string{"no newline yet", "... and now\nmore", "\n"} {
			fmt.Fprint(in, text)
			if n, err := io.ReadFull(r, b[:len(text)]); err != nil || string(b[:n]) != text {
				t.Fatalf("attached: %q, %v; want %q", b[:n], err, text)
			}
		}
		in.Close()
		if rest, err := io.ReadAll(r); err != nil || len(rest) != 0 {
			t.Errorf("at the end: %q, %v", rest, err)
		}
		r.Close()
		p.exit("web")
		if logged {
			if got := texts(t, log); !slices.Equal(got, []string{"stdout F no newline yet... and now", "stdout F more"}) {
				t.Errorf("log %q", got)
			}
		}
		p.forget("web")
		delete(p.exits, "web")
	}
}

// A client that doesn't read is dropped; the container and the other client don't notice.
func TestStuckClient(t *testing.T) {
	p := newPair(t)
	log := filepath.Join(t.TempDir(), "0.log")
	const lines = 100_000 // 8 MB
	s := p.container("web", log, "lines", fmt.Sprint(lines))
	s.Hold = true
	p.spawn(s)
	stuck, w1, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stuck.Close()
	r, w2, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pr, err := p.c.Release(timeout(t), "web", "start", s.Program)
	if err != nil {
		t.Fatal(err)
	}
	pr.Close()
	for _, w := range []*os.File{w1, w2} {
		if _, err := p.c.Attach(timeout(t), "web", false, w, nil); err != nil {
			t.Fatal(err)
		}
		w.Close()
	}
	go func() { _, _ = io.Copy(io.Discard, r) }()
	if e := p.exit("web"); e.Status != 0 {
		t.Errorf("%+v", e)
	}
	checkLines(t, log, lines)
	got, err := io.ReadAll(stuck)
	if err != nil || len(got) > 2<<20 {
		t.Errorf("the stuck client got %d bytes, %v", len(got), err)
	}
}

func TestReopen(t *testing.T) {
	p := newPair(t)
	dir := t.TempDir()
	log := filepath.Join(dir, "0.log")
	const lines = 1_000_000
	p.spawn(p.container("web", log, "lines", fmt.Sprint(lines)))
	var names []string
	for i := range 20 {
		old := fmt.Sprintf("%s.%02d", log, i)
		if err := os.Rename(log, old); err != nil {
			t.Fatal(err)
		}
		names = append(names, old)
		f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.c.Reopen(timeout(t), "web", f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		before, _ := os.Stat(old)
		if i%5 == 4 {
			p.killYounger()
		}
		if after, _ := os.Stat(old); after.Size() != before.Size() {
			t.Errorf("%s grew after Reopen", old)
		}
	}
	p.exit("web")
	whole, err := os.Create(filepath.Join(dir, "whole"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range append(names, log) {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := whole.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	checkLines(t, whole.Name(), lines)
}

// A grandchild that holds stdout holds up neither the exit nor its own later output.
func TestGrandchild(t *testing.T) {
	p := newPair(t)
	log := filepath.Join(t.TempDir(), "0.log")
	s := p.container("web", log, "grandchild")
	s.StdinOnce = true
	p.spawn(s)
	in, err := p.c.Attach(timeout(t), "web", true, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e := p.exit("web"); e.Status != 0 {
		t.Errorf("%+v", e)
	}
	if got := texts(t, log); !slices.Equal(got, []string{"stdout F parent", "stdout P half"}) {
		t.Errorf("at the exit: log %q", got)
	}
	in.Close()
	waitFor(t, "the grandchild's line", func() bool { return len(texts(t, log)) == 3 })
	if got := texts(t, log); got[2] != "stdout F -full" {
		t.Errorf("log %q", got)
	}
	p.forget("web")
}

func TestBothStreams(t *testing.T) {
	p := newPair(t)
	log := filepath.Join(t.TempDir(), "0.log")
	const lines = 100_000
	p.spawn(p.container("web", log, "both", fmt.Sprint(lines)))
	for range 5 {
		p.killYounger()
	}
	p.exit("web")
	next := [2]int{0, 1}
	for i, l := range texts(t, log) {
		which := 0
		if strings.HasPrefix(l, "stderr") {
			which = 1
		}
		if want := fmt.Sprintf("%s F line %d", []string{"stdout", "stderr"}[which], next[which]); l != want {
			t.Fatalf("line %d: %q, want %q", i, l, want)
		}
		next[which] += 2
	}
	if next != [2]int{lines, lines + 1} {
		t.Errorf("ended at %v", next)
	}
}

// terminal makes a pty in the program, as a container's would be.
func (p *pair) terminal(id, log string, args ...string) client.Spawn {
	s := p.container(id, log)
	var b builder
	b.op("setsid", unix.SYS_SETSID)
	b.op("open ptmx", unix.SYS_DUP, fd(proto.FDPassed+1)).Result = 1
	zero := b.bytes(make([]byte, 8))
	b.op("unlock", unix.SYS_IOCTL, reg(1), imm(unix.TIOCSPTLCK), zero)
	b.op("open terminal", unix.SYS_IOCTL, reg(1), imm(unix.TIOCGPTPEER), imm(unix.O_RDWR|unix.O_NOCTTY)).Result = 2
	b.op("control terminal", unix.SYS_IOCTL, reg(2), imm(unix.TIOCSCTTY), imm(0))
	for i := range 3 {
		b.op("stdio", unix.SYS_DUP3, reg(2), imm(i), imm(0))
	}
	b.op("report terminal", proto.PseudoReport, imm(proto.TagPTY), reg(1))
	b.op("close the rest", unix.SYS_CLOSE_RANGE, reg(1), reg(2), imm(0))
	b.exec(proto.FDPassed, append([]string{"helper"}, args...)...)
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { ptmx.Close() })
	s.Program, s.Stdin, s.Stdout, s.Stderr = &b.Program, false, false, false
	s.Files = append(s.Files, ptmx)
	return s
}

func TestTerminal(t *testing.T) {
	p := newPair(t)
	log := filepath.Join(t.TempDir(), "0.log")
	s := p.terminal("web", log, "cat")
	p.spawn(s)
	s.Files[1].Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	in, err := p.c.Attach(timeout(t), "web", true, w, nil)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(in, "hello\n")
	b := make([]byte, 100)
	if n, err := io.ReadFull(r, b[:14]); err != nil || string(b[:n]) != "hello\r\nhello\r\n" {
		t.Errorf("terminal shows %q, %v", b[:n], err)
	}
	tty, err := p.c.TTY(timeout(t), "web")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 5, Col: 17}); err != nil {
		t.Error(err)
	}
	for range 3 { // the terminal outlives its keepers
		p.killYounger()
		e, y := p.settled(0, 0)
		if err := syscall.Kill(e, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		p.settled(e, y)
	}
	if ws, err := unix.IoctlGetWinsize(int(tty.Fd()), unix.TIOCGWINSZ); err != nil || ws.Col != 17 {
		t.Errorf("size %+v, %v", ws, err)
	}
	fmt.Fprint(in, "bye\n\x04")
	in.Close()
	tty.Close()
	p.exitsWith("web", 0)
	want := []string{"stdout F hello\r", "stdout F hello\r", "stdout F bye\r", "stdout F bye\r"}
	if got := texts(t, log); !slices.Equal(got, want) {
		t.Errorf("log %q, want %q", got, want)
	}
	p.forget("web")
}

// All that a terminal got before its process ended is in the log, whoever is killed.
func TestTerminalAcrossKills(t *testing.T) {
	p := newPair(t)
	log := filepath.Join(t.TempDir(), "0.log")
	const lines = 50_000
	done := make(chan struct{})
	kills := p.killer(done, 60*time.Millisecond)
	p.spawn(p.terminal("web", log, "lines", fmt.Sprint(lines)))
	p.exit("web")
	close(done)
	t.Logf("%d kills", <-kills)
	got := texts(t, log)
	if len(got) != lines {
		t.Fatalf("%d lines of %d", len(got), lines)
	}
	for i, l := range got {
		if want := "stdout F " + strings.TrimSuffix(string(line(nil, i)), "\n") + "\r"; l != want {
			t.Fatalf("line %d: %.60q, want %.60q", i, l, want)
		}
	}
}

// A log that can't be written stops its container's output, and nothing else; when there is room, nothing is missing.
func TestFullDisk(t *testing.T) {
	p := newPair(t)
	small := filepath.Join(t.TempDir(), "small")
	if err := os.Mkdir(small, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	log := filepath.Join(small, "0.log")
	const lines = 20_000 // 2.4 MB of log
	p.spawn(p.container("web", log, "lines", fmt.Sprint(lines)))
	full := func() bool {
		var st unix.Statfs_t
		return unix.Statfs(small, &st) == nil && st.Bfree == 0
	}
	waitFor(t, "a full disk", full)
	p.killYounger()
	p.spawn(p.container("other", filepath.Join(t.TempDir(), "log"), "print", "not held up\n"))
	p.exit("other")
	// A rotation to a disk with room goes on at once.
	next := filepath.Join(t.TempDir(), "1.log")
	f, err := os.Create(next)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.c.Reopen(timeout(t), "web", f); err != nil {
		t.Fatal(err)
	}
	f.Close()
	p.exit("web")
	first, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(next)
	if err != nil {
		t.Fatal(err)
	}
	whole := filepath.Join(t.TempDir(), "whole")
	if err := os.WriteFile(whole, append(first, second...), 0o600); err != nil {
		t.Fatal(err)
	}
	checkLines(t, whole, lines)
}

// The end of a process is told although its log can't be written.
func TestExitWithFullDisk(t *testing.T) {
	p := newPair(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	p.spawn(p.container("web", filepath.Join(small, "log"), "print", strings.Repeat("x\n", 5000)))
	if e := p.exit("web"); e.Status != 0 {
		t.Errorf("%+v", e)
	}
	p.forget("web")
}

func TestUpgrade(t *testing.T) {
	p := newPair(t)
	log := filepath.Join(t.TempDir(), "0.log")
	const lines = 1_000_000
	p.spawn(p.container("web", log, "lines", fmt.Sprint(lines)))
	s := p.container("idle", "", "wait", "5")
	s.StdinOnce = true
	p.spawn(s)
	e, y := p.settled(0, 0)
	for i, to := range []string{p.bins.newer, p.bins.keeper, p.bins.newer} {
		start := time.Now()
		if err := p.c.Upgrade(timeout(t), to); err != nil {
			t.Fatal(err)
		}
		t.Logf("upgraded in %v", time.Since(start).Round(100*time.Microsecond))
		if got, want := p.c.Build(), []string{"test-2", "test-1", "test-2"}[i]; got != want {
			t.Errorf("build %q, want %q", got, want)
		}
		if e2, y2 := p.keepers(); e2 != e || y2 != y {
			t.Errorf("keepers %d %d became %d %d", e, y, e2, y2)
		}
	}
	if err := p.c.Upgrade(timeout(t), "/bin/false"); err == nil {
		t.Error("upgraded to /bin/false")
	}
	p.closeStdin("idle")
	if e := p.exit("idle"); e.Status != 5<<8 {
		t.Errorf("%+v", e)
	}
	p.exit("web")
	checkLines(t, log, lines)
	p.killYounger()
	if p.c.Build() != "test-2" {
		t.Errorf("the next younger is %q", p.c.Build())
	}
}

// Being asked to end ends the pair when it keeps nothing, and only then.
func TestTerminate(t *testing.T) {
	p := newPair(t)
	s := p.container("web", "", "wait", "0")
	s.StdinOnce = true
	p.spawn(s)
	e, y := p.settled(0, 0)
	for _, pid := range []int{e, y} {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT} {
			if err := syscall.Kill(pid, sig); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.closeStdin("web")
	p.exit("web")
	if e2, y2 := p.keepers(); e2 != e || y2 != y {
		t.Errorf("keepers %d %d became %d %d", e, y, e2, y2)
	}
	p.forget("web")
	waitFor(t, "the pair's end", func() bool {
		e, y := p.keepers()
		for _, pid := range []int{e, y} {
			if pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGTERM)
			}
		}
		return e == 0 && y == 0
	})
}
