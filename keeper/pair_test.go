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

	"crishim.dev/internal/errs"
	"crishim.dev/keeper/client"
	"crishim.dev/proto"
)

func TestContainer(t *testing.T) {
	p := newPair(t)
	log := filepath.Join(t.TempDir(), "0.log")
	pr := p.spawn(p.container("web", log, "print", "one\ntwo\nrest", "oops\n"))
	if pr.PID == 0 || pr.StartTime == 0 || pr.PIDFD == nil {
		t.Errorf("spawned %+v", pr)
	}
	e := p.exit("web")
	if e.Status != 0 || e.Time == 0 {
		t.Errorf("exit %+v", e)
	}
	got := texts(t, log)
	slices.Sort(got)
	if want := []string{"stderr F oops", "stdout F one", "stdout F two", "stdout P rest"}; !slices.Equal(got, want) {
		t.Errorf("log %q, want %q", got, want)
	}
	record, err := os.ReadFile(filepath.Join(p.dir, "web", "exit"))
	if want := fmt.Sprintf("0 %d\n", e.Time); err != nil || string(record) != want {
		t.Errorf("exit record %q, %v; want %q", record, err, want)
	}
	procs, fds, err := p.c.Processes(timeout(t))
	if err != nil || len(procs) != 1 || !procs[0].Exited || procs[0].Time != e.Time || fds[0] != nil {
		t.Errorf("list %+v %v %v", procs, fds, err)
	}
	again := p.spawn(p.container("web", "", "print", "again\n"))
	if again.PID != pr.PID || again.StartTime != pr.StartTime {
		t.Errorf("a repeated Spawn gave %+v, want %+v", again, pr)
	}
	p.forget("web")
	p.forget("web")
	if procs, _, err := p.c.Processes(timeout(t)); err != nil || len(procs) != 0 {
		t.Errorf("after Forget: %+v, %v", procs, err)
	}
}

func TestRefusals(t *testing.T) {
	p := newPair(t)
	for name, c := range map[string]struct {
		spoil func(s *client.Spawn)
		want  string
		kind  error
	}{
		"id":          {func(s *client.Spawn) { s.ID = "../x" }, "spawn ../x", errs.Invalid},
		"own file":    {func(s *client.Spawn) { s.ID = "keeper.sock" }, "", errs.Invalid},
		"program":     {func(s *client.Spawn) { s.Program = &proto.Program{Ops: []proto.Op{{NR: 5000}}} }, "op 0: unknown operation 5000", errs.Invalid},
		"descriptors": {func(s *client.Spawn) { s.Files = nil }, "argument", errs.Invalid},
		"flags":       {func(s *client.Spawn) { s.CloneFlags = unix.CLONE_VM }, "clone flags", errs.Invalid},
		"cgroup":      {func(s *client.Spawn) { s.Cgroup = 3 }, "cgroup", errs.Invalid},
		"log":         {func(s *client.Spawn) { s.Log = os.Stdin }, "log file", errs.Invalid},
	} {
		s := p.container("x", "", "print", "")
		s.Name = "start container x"
		c.spoil(&s)
		_, err := p.c.Spawn(timeout(t), s)
		if err == nil || !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	s := p.container("x", "", "print", "")
	s.CloneFlags = unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_INTO_CGROUP // no cgroup's descriptor
	_, err := p.c.Spawn(timeout(t), s)
	if want := "start container x: clone: bad file descriptor"; err == nil || err.Error() != want {
		t.Errorf("clone refused: %v, want %s", err, want)
	}
	if procs, _, err := p.c.Processes(timeout(t)); err != nil || len(procs) != 0 {
		t.Errorf("left: %+v, %v", procs, err)
	}
	if ents, _ := os.ReadDir(p.dir); len(ents) != 3 {
		t.Errorf("left in the directory: %v", ents)
	}
	for name, err := range map[string]error{
		"reopen":  p.c.Reopen(timeout(t), "nobody", os.Stdin),
		"tty":     func() error { _, err := p.c.TTY(timeout(t), "nobody"); return err }(),
		"attach":  func() error { _, err := p.c.Attach(timeout(t), "nobody", true, nil, nil); return err }(),
		"release": func() error { _, err := p.c.Release(timeout(t), "nobody", "release", nil); return err }(),
	} {
		if !errors.Is(err, errs.NotFound) {
			t.Errorf("%s of an unknown id: %v", name, err)
		}
	}
}

func TestSecondStart(t *testing.T) {
	p := newPair(t)
	e1, y1 := p.settled(0, 0)
	if err := client.Start(p.bins.keeper, p.dir); err != nil {
		t.Error(err)
	}
	if e2, y2 := p.keepers(); e1 != e2 || y1 != y2 {
		t.Errorf("keepers %d %d became %d %d", e1, y1, e2, y2)
	}
}

func TestManyAtOnce(t *testing.T) {
	p := newPair(t)
	dir := t.TempDir()
	const n = 200
	failed := make(chan error, n)
	for i := range n {
		s := p.container(fmt.Sprint("c", i), filepath.Join(dir, fmt.Sprint(i)), "print", fmt.Sprintf("I am %d\n", i))
		go func() {
			pr, err := p.c.Spawn(timeout(t), s)
			if err == nil {
				pr.Close()
			}
			failed <- err
		}()
	}
	for range n {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	for i := range n {
		id := fmt.Sprint("c", i)
		if e := p.exit(id); e.Status != 0 {
			t.Errorf("%s: %+v", id, e)
		}
		if got, want := texts(t, filepath.Join(dir, fmt.Sprint(i))), fmt.Sprintf("stdout F I am %d", i); len(got) != 1 || got[0] != want {
			t.Errorf("%s: log %q", id, got)
		}
		p.forget(id)
	}
}
