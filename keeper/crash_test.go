// SPDX-License-Identifier: Apache-2.0

package keeper_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/client"
	"crishim.dev/proto"
)

// killer kills the younger at random moments until done is closed, and says how often.
func (p *pair) killer(done <-chan struct{}, longest time.Duration) <-chan int {
	_, y := p.settled(0, 0)
	began := time.Now()
	if err := syscall.Kill(y, syscall.SIGKILL); err != nil {
		p.t.Fatal(err)
	}
	p.settled(0, y)
	// A keeper that is killed before it lives does nothing, and a slow machine (or an emulated one) takes long to make one.
	const usual = 20 * time.Millisecond
	longest = max(longest, time.Duration(float64(longest)*float64(time.Since(began))/float64(usual)))
	kills := make(chan int)
	go func() {
		n, last := 1, 0
		for {
			select {
			case <-done:
				kills <- n
				return
			case <-time.After(time.Duration(rand.Int64N(int64(longest)))):
			}
			if _, y := p.keepers(); y != 0 && y != last {
				if syscall.Kill(y, syscall.SIGKILL) == nil {
					n++
					last = y
				}
			}
		}
	}()
	return kills
}

// checkLines compares a log with what the helper "lines" wrote.
func checkLines(t *testing.T, log string, n int) {
	t.Helper()
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	var want []byte
	last := ""
	for i := range n {
		want = line(want[:0], i)
		if !sc.Scan() {
			t.Fatalf("the log ends after %d lines of %d", i, n)
		}
		got := sc.Text()
		if len(got) < 40 || got[30:40] != " stdout F " || got[40:]+"\n" != string(want) {
			t.Fatalf("line %d: %.80q, want %.60q", i, got, want)
		}
		if got[:30] < last {
			t.Fatalf("line %d: time %s after %s", i, got[:30], last)
		}
		last = got[:30]
	}
	if sc.Scan() {
		t.Fatalf("more than %d lines: %.80q", n, sc.Text())
	}
}

func TestLinesAcrossKills(t *testing.T) {
	p := newPair(t)
	lines := 3_000_000
	if testing.Short() {
		lines = 300_000
	}
	log := filepath.Join(t.TempDir(), "0.log")
	p.settled(0, 0)
	p.spawn(p.container("web", log, "lines", fmt.Sprint(lines)))
	done := make(chan struct{})
	kills := p.killer(done, 60*time.Millisecond)
	start := time.Now()
	e := p.exit("web")
	close(done)
	t.Logf("%d lines in %v, %d kills", lines, time.Since(start).Round(time.Millisecond), <-kills)
	if e.Status != 0 {
		t.Errorf("exit %+v", e)
	}
	checkLines(t, log, lines)
	p.settled(0, 0)
	p.forget("web")
}

func TestElderKilled(t *testing.T) {
	p := newPair(t)
	log := filepath.Join(t.TempDir(), "0.log")
	p.settled(0, 0)
	p.spawn(p.container("web", log, "lines", "500000"))
	s := p.container("idle", "", "wait", "7")
	s.StdinOnce = true
	p.spawn(s)
	for range 5 { // each kill makes the younger the elder
		e, y := p.settled(0, 0)
		if err := syscall.Kill(e, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		e2, _ := p.settled(e, y)
		if e2 != y {
			t.Errorf("elder is %d, not the younger %d", e2, y)
		}
	}
	p.closeStdin("idle")
	p.exitsWith("idle", 7<<8)
	p.exitsWith("web", 0)
	checkLines(t, log, 500000)
}

// exitsWith waits for a process whose parents were all killed, and checks its status as far as this kernel can tell it.
func (p *pair) exitsWith(id string, status uint32) {
	p.t.Helper()
	if e := p.exit(id); e.Status != status && (e.Status != proto.StatusUnknown || toldAfterReaping()) {
		p.t.Errorf("exit %+v, want status %#x", e, status)
	}
}

// toldAfterReaping says whether this kernel tells the exit status of a process that somebody else has reaped (PIDFD_GET_INFO, Linux 6.15).
func toldAfterReaping() bool {
	var u unix.Utsname
	var major, minor int
	_ = unix.Uname(&u)
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return err != nil || major > 6 || major == 6 && minor >= 15
}

// Both keepers are killed in turn, with time to recover in between, while containers end.
func TestBothKilledInTurn(t *testing.T) {
	p := newPair(t)
	const n = 20
	for i := range n {
		s := p.container(fmt.Sprint("c", i), filepath.Join(t.TempDir(), "log"), "wait", fmt.Sprint(i))
		s.StdinOnce = true
		p.spawn(s)
	}
	for i := range n {
		e, y := p.settled(0, 0)
		victim := []int{e, y}[i%2]
		// The end of a container and the end of a keeper, in either order and at the same time.
		id := fmt.Sprint("c", i)
		in, err := p.c.Attach(timeout(t), id, true, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			in.Close()
		}
		if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		in.Close()
		// From the third on, both parents that it had are dead: see the package comment.
		if got := p.exit(id); got.Status != uint32(i)<<8 && (i < 2 || got.Status != proto.StatusUnknown || toldAfterReaping()) {
			t.Errorf("%s: exit %+v", id, got)
		}
		waitFor(t, "another keeper", func() bool {
			e2, y2 := p.keepers()
			return e2 != 0 && y2 != 0 && e2 != victim && y2 != victim
		})
		p.settled(0, 0)
	}
}

// The younger is killed while many launches are under way. Each must have happened once, or not at all.
func TestKillDuringSpawns(t *testing.T) {
	p := newPair(t)
	done := make(chan struct{})
	kills := p.killer(done, 60*time.Millisecond)
	rounds := 400
	if testing.Short() {
		rounds = 100
	}
	dir := t.TempDir()
	sem := make(chan struct{}, 8)
	type result struct {
		id  string
		pr  *client.Process
		err error
	}
	results := make(chan result, rounds)
	for i := range rounds {
		sem <- struct{}{}
		id := fmt.Sprint("c", i)
		out := filepath.Join(dir, id)
		s := p.container(id, out, "print", "once\n")
		go func() {
			defer func() { <-sem }()
			pr, err := p.c.Spawn(timeout(t), s)
			results <- result{id, pr, err}
		}()
	}
	for range rounds {
		r := <-results
		if r.err != nil {
			t.Errorf("%s: %v", r.id, r.err)
			continue
		}
		r.pr.Close()
		if e := p.exit(r.id); e.Status != 0 {
			t.Errorf("%s: exit %+v", r.id, e)
		}
		if got := texts(t, filepath.Join(dir, r.id)); len(got) != 1 || got[0] != "stdout F once" {
			t.Errorf("%s: log %q", r.id, got)
		}
		p.forget(r.id)
	}
	close(done)
	t.Logf("%d kills", <-kills)
	p.settled(0, 0)
	if procs, _, err := p.c.Processes(timeout(t)); err != nil || len(procs) != 0 {
		t.Errorf("left: %+v, %v", procs, err)
	}
}

// A Run whose keeper dies is done again, and a failing program fails in whatever keeper.
func TestKillDuringRuns(t *testing.T) {
	p := newPair(t)
	done := make(chan struct{})
	kills := p.killer(done, 60*time.Millisecond)
	for i := range 300 {
		var b builder
		b.op("open root", unix.SYS_OPENAT, imm(unix.AT_FDCWD), b.str("/"), imm(unix.O_RDONLY), imm(0)).Result = 3
		b.op("report", proto.PseudoReport, imm(proto.TagReturn), reg(3))
		want := error(nil)
		if i%3 == 2 {
			b.op("mount nothing", unix.SYS_MOUNT, b.str("nothing"), b.str("/nowhere"), b.str("x"), imm(0), imm(0))
			want = unix.ENOENT
		}
		b.op("exit", proto.PseudoExit, imm(i%50))
		s := client.Spawn{Program: &b.Program, Name: "run"}
		s.ID, s.Run, s.Cgroup = fmt.Sprint("r", i), true, -1
		pr, err := p.c.Spawn(timeout(t), s)
		if !errors.Is(err, want) {
			t.Fatalf("%d: %v, want %v", i, err, want)
		}
		if err != nil {
			continue
		}
		if pr.Status != uint32(i%50)<<8 || len(pr.Files) != 1 {
			t.Errorf("%d: %+v", i, pr)
		}
		pr.Close()
	}
	close(done)
	t.Logf("%d kills", <-kills)
}

// A container ends while no younger is there to see it.
func TestExitWhileYoungerIsDead(t *testing.T) {
	p := newPair(t)
	for i := range 30 {
		id := fmt.Sprint("c", i)
		log := filepath.Join(t.TempDir(), "log")
		s := p.container(id, log, "wait", "9")
		s.StdinOnce = true
		p.spawn(s)
		in, err := p.c.Attach(timeout(t), id, true, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, y := p.settled(0, 0)
		if err := syscall.Kill(y, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		in.Close()
		if i%2 == 0 {
			time.Sleep(2 * time.Millisecond) // it has become a zombie, mostly
		}
		if err := syscall.Kill(y, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if e := p.exit(id); e.Status != 9<<8 {
			t.Errorf("%s: %+v", id, e)
		}
		p.forget(id)
	}
}

// A container writes its last and ends while no younger is there to see it.
func TestOutputWhileYoungerIsDead(t *testing.T) {
	p := newPair(t)
	const first, all = 1000, 1700 // what comes late fits in a pipe
	for i := range 20 {
		id := fmt.Sprint("c", i)
		log := filepath.Join(t.TempDir(), "log")
		s := p.container(id, log, "late", fmt.Sprint(first), fmt.Sprint(all))
		s.StdinOnce = true
		pr := p.spawn(s)
		in, err := p.c.Attach(timeout(t), id, true, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the first lines", func() bool {
			b, _ := os.ReadFile(log)
			return bytes.Count(b, []byte("\n")) == first
		})
		_, y := p.settled(0, 0)
		if err := syscall.Kill(y, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		in.Close()
		ended := []unix.PollFd{{Fd: int32(pr.PIDFD.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(ended, 10_000); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(y, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if e := p.exit(id); e.Status != 0 {
			t.Errorf("%s: %+v", id, e)
		}
		checkLines(t, log, all)
		p.forget(id)
	}
}

// zygotes finds the children of the younger that only clone.
func (p *pair) zygotes() (pids []int) {
	_, y := p.keepers()
	ents, _ := os.ReadDir("/proc")
	for _, e := range ents {
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		var pid, parent int
		var state string
		if n, _ := fmt.Sscanf(string(b), "%d (shim-zygote) %s %d", &pid, &state, &parent); n == 3 && parent == y && state != "Z" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// The zygote is killed while launches are under way: each happens once all the same.
func TestZygoteKilled(t *testing.T) {
	p := newPair(t)
	p.settled(0, 0)
	done, killed := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-done:
				killed <- n
				return
			case <-time.After(5 * time.Millisecond):
			}
			for _, pid := range p.zygotes() {
				if syscall.Kill(pid, syscall.SIGKILL) == nil {
					n++
				}
			}
		}
	}()
	dir := t.TempDir()
	for i := range 300 {
		id := fmt.Sprint("c", i)
		log := filepath.Join(dir, id)
		pr, err := p.c.Spawn(timeout(t), p.container(id, log, "print", "once\n"))
		var l *client.LaunchError
		if errors.As(err, &l) && l.Label == "" {
			continue // a child that has just been forked looks like the zygote, and may be hit here or a little later
		}
		if err != nil {
			t.Fatal(err)
		}
		pr.Close()
		e := p.exit(id)
		if got := texts(t, log); e.Status != uint32(syscall.SIGKILL) && (e.Status != 0 || len(got) != 1 || got[0] != "stdout F once") {
			t.Errorf("%s: %+v, log %q", id, e, got)
		}
		p.forget(id)
	}
	close(done)
	t.Logf("%d kills", <-killed)
	if n := len(p.zygotes()); n > 1 {
		t.Errorf("%d zygotes", n)
	}
}
