// SPDX-License-Identifier: Apache-2.0

package keeper_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/client"
	"crishim.dev/proto"
)

// failing is a Spawn whose program fails before execve.
func (p *pair) failing(id string) client.Spawn {
	s := p.container(id, "")
	var b builder
	b.op("mount nothing", unix.SYS_MOUNT, b.str("nothing"), b.str("/nowhere"), b.str("x"), imm(0), imm(0))
	b.exec(proto.FDPassed, "helper", "print", "never\n")
	s.Program = &b.Program
	return s
}

// A launch that fails fails, also when the keeper that has heard of it dies before it can tell.
func TestKillDuringFailures(t *testing.T) {
	p := newPair(t)
	done := make(chan struct{})
	kills := p.killer(done, 12*time.Millisecond)
	rounds := 1500
	if testing.Short() {
		rounds = 300
	}
	for i := range rounds {
		id := fmt.Sprint("c", i)
		pr, err := p.c.Spawn(timeout(t), p.failing(id))
		var l *client.LaunchError
		if !errors.As(err, &l) || l.Label != "mount nothing" || l.Errno != unix.ENOENT {
			t.Fatalf("%s: %+v, %v", id, pr, err)
		}
		p.forget(id)
	}
	close(done)
	t.Logf("%d kills", <-kills)
	p.settled(0, 0)
	if ents, _ := os.ReadDir(p.dir); len(ents) != 3 {
		t.Errorf("left in the directory: %v", ents)
	}
}

// A launch that another younger takes up at its gate goes over to its second process: the end of the first, of which the younger
// hears at the same moment, is not the end.
func TestSecondCloneTakenUp(t *testing.T) {
	p := newPair(t)
	const n = 5
	for i := range n {
		s := p.container(fmt.Sprint("c", i), "")
		var b builder
		wait := make([]byte, 16)
		binary.NativeEndian.PutUint64(wait[8:], 100_000_000)
		b.op("wait 100 ms", unix.SYS_PPOLL, imm(0), imm(0), b.bytes(wait), imm(0), imm(8))
		b.op("clone", proto.PseudoClone, imm(unix.CLONE_NEWPID))
		b.stdio(proto.FDStdin, proto.FDStdout, proto.FDStderr)
		b.exec(proto.FDPassed, "helper", "nap", "42")
		s.Program, s.Hold = &b.Program, true
		first := p.spawn(s)
		p.killYounger()
		_, y := p.settled(0, 0)
		released := make(chan error, 1)
		go func() {
			pr, err := p.c.Release(timeout(t), s.ID, "start container", s.Program)
			if err == nil {
				pr.Close()
			}
			released <- err
		}()
		waitFor(t, "an open gate", func() bool {
			call, _ := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", first.PID))
			return strings.HasPrefix(string(call), fmt.Sprint(unix.SYS_PPOLL, " "))
		})
		if err := syscall.Kill(y, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		p.ended(first)
		if err := errors.Join(syscall.Kill(y, syscall.SIGCONT), <-released); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		id := fmt.Sprint("c", i)
		if e := p.exit(id); e.Status != 42<<8 {
			t.Errorf("%s: %+v", id, e)
		}
		p.forget(id)
	}
}

// ended waits for the end of a process that the keeper may not have seen.
func (p *pair) ended(pr *client.Process) {
	p.t.Helper()
	fd := []unix.PollFd{{Fd: int32(pr.PIDFD.Fd()), Events: unix.POLLIN}}
	if n, err := unix.Poll(fd, 10_000); n != 1 {
		p.t.Fatalf("process %d has not ended: %v", pr.PID, err)
	}
}

// The elder is killed while launches are under way, and the daemon too: a launch has happened, or nothing is left of it.
func TestElderKilledDuringSpawns(t *testing.T) {
	p := newPair(t)
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	for i := range rounds {
		e, y := p.settled(0, 0)
		c := p.connect()
		ctx, cancel := context.WithCancel(timeout(t))
		const at = 8
		started := make(chan struct{}, at)
		for j := range at {
			s := p.container(fmt.Sprintf("c%d-%d", i, j), "", "wait", "0")
			go func() {
				for n := 0; ctx.Err() == nil; n++ {
					s.ID = fmt.Sprintf("c%d-%d-%d", i, j, n)
					if pr, err := c.Spawn(ctx, s); err == nil {
						pr.Close()
					}
				}
				started <- struct{}{}
			}()
		}
		waitFor(t, "launches", func() bool {
			procs, _, err := p.c.Processes(timeout(t))
			return err == nil && len(procs) > at
		})
		if err := syscall.Kill(e, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		cancel()
		_ = c.Close()
		for range at {
			<-started
		}
		p.settled(e, y)
		p.endAll(timeout(t))
	}
	// A pair that keeps nothing ends when it is asked to.
	waitFor(t, "the pair's end", func() bool {
		ctx, cancel := context.WithTimeout(timeout(t), 100*time.Millisecond)
		defer cancel()
		p.endAll(ctx) // what the last daemon asked for at its end
		e, y := p.keepers()
		for _, pid := range []int{e, y} {
			if pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGTERM)
			}
		}
		return e == 0 && y == 0
	})
}

// endAll kills and forgets all processes.
func (p *pair) endAll(ctx context.Context) {
	for {
		procs, fds, err := p.c.Processes(ctx)
		if err != nil || len(procs) == 0 {
			return
		}
		for i, pr := range procs {
			if fds[i] != nil {
				_ = unix.PidfdSendSignal(int(fds[i].Fd()), unix.SIGKILL, nil, 0)
				fds[i].Close()
				continue
			}
			_ = p.c.Forget(ctx, pr.ID)
		}
	}
}

// A younger that dies while it goes over to another log loses no line, and no keeper goes on holding an old log.
func TestReopenAcrossKills(t *testing.T) {
	p := newPair(t)
	dir := t.TempDir()
	log := filepath.Join(dir, "0.log")
	lines, rounds := 1_500_000, 150
	if testing.Short() {
		lines, rounds = 400_000, 40
	}
	s := p.container("web", log, "lines", fmt.Sprint(lines))
	p.spawn(s)
	s.Log.Close()
	done := make(chan struct{})
	kills := p.killer(done, 20*time.Millisecond)
	var whole bytes.Buffer
	var names []string
	for i := range rounds {
		old := fmt.Sprintf("%s.%03d", log, i)
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
	}
	p.exit("web")
	close(done)
	t.Logf("%d kills", <-kills)
	waitFor(t, "two keepers that hold the last log alone", func() bool {
		e, y := p.keepers()
		return slices.Equal(openLogs(e, dir), []string{log}) && slices.Equal(openLogs(y, dir), []string{log})
	})
	for _, n := range append(names, log) {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		whole.Write(b)
	}
	all := filepath.Join(dir, "whole")
	if err := os.WriteFile(all, whole.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	checkLines(t, all, lines)
	p.forget("web")
}

// openLogs gives the files in dir that a process holds open.
func openLogs(pid int, dir string) (names []string) {
	fds := fmt.Sprintf("/proc/%d/fd", pid)
	ents, _ := os.ReadDir(fds)
	for _, e := range ents {
		if to, err := os.Readlink(filepath.Join(fds, e.Name())); err == nil && strings.HasPrefix(to, dir) {
			names = append(names, to)
		}
	}
	return names
}

// The elder hears of a process only after that one's parent has died, and it has ended: whoever wakes first, the status is known.
func TestExitBeforeElderHears(t *testing.T) {
	p := newPair(t)
	for i := range 20 {
		e, y := p.settled(0, 0)
		if err := syscall.Kill(e, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprint("c", i)
		pr := p.spawn(p.container(id, "", "wait", "0"))
		if err := errors.Join(syscall.Kill(y, syscall.SIGSTOP), syscall.Kill(pr.PID, syscall.SIGKILL)); err != nil {
			t.Fatal(err)
		}
		p.ended(pr)
		for _, k := range []struct {
			pid int
			sig syscall.Signal
		}{{y, syscall.SIGKILL}, {e, syscall.SIGCONT}} {
			if err := syscall.Kill(k.pid, k.sig); err != nil {
				t.Fatal(err)
			}
		}
		if e := p.exit(id); e.Status != uint32(syscall.SIGKILL) {
			t.Errorf("%s: %+v", id, e)
		}
		p.forget(id)
	}
}

// Upgrades while launches, exits and output go on: each launch happens once.
func TestUpgradeUnderLoad(t *testing.T) {
	p := newPair(t)
	const lines = 300_000
	long := filepath.Join(t.TempDir(), "long")
	p.spawn(p.container("long", long, "lines", fmt.Sprint(lines)))
	dir := t.TempDir()
	stop, failed := make(chan struct{}), make(chan error, 4)
	for w := range cap(failed) {
		go func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					failed <- nil
					return
				default:
				}
				id := fmt.Sprintf("c%d-%d", w, i)
				log := filepath.Join(dir, id)
				pr, err := p.c.Spawn(timeout(t), p.container(id, log, "print", "once\n"))
				if err != nil {
					failed <- err
					return
				}
				pr.Close()
				e := p.exit(id)
				if got := texts(t, log); e.Status != 0 || len(got) != 1 || got[0] != "stdout F once" {
					failed <- fmt.Errorf("%s: exit %+v, log %q", id, e, got)
					return
				}
				p.forget(id)
			}
		}()
	}
	rounds := 30
	if testing.Short() {
		rounds = 8
	}
	for i := range rounds {
		if err := p.c.Upgrade(timeout(t), []string{p.bins.newer, p.bins.keeper}[i%2]); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	for range cap(failed) {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	p.exit("long")
	checkLines(t, long, lines)
	p.forget("long")
	if procs, _, err := p.c.Processes(timeout(t)); err != nil || len(procs) != 0 {
		t.Errorf("left: %+v, %v", procs, err)
	}
}
