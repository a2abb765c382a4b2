// SPDX-License-Identifier: Apache-2.0

package keeper_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/client"
	"crishim.dev/proto"
)

// binaries are the real keeper, in two builds, and what the tests run as containers.
type binaries struct{ dir, keeper, newer, helper string }

var built = sync.OnceValues(func() (*binaries, error) {
	dir, err := os.MkdirTemp("", "keeper-test")
	if err != nil {
		return nil, err
	}
	b := &binaries{dir, filepath.Join(dir, "keeper"), filepath.Join(dir, "newer"), filepath.Join(dir, "helper")}
	for out, args := range map[string][]string{
		b.keeper: {"-ldflags", "-s -w -X main.build=test-1", "crishim.dev/cmd/shim-keeper"},
		b.newer:  {"-ldflags", "-s -w -X main.build=test-2", "crishim.dev/cmd/shim-keeper"},
		b.helper: {"./testdata/helper"},
	} {
		cmd := exec.Command("go", append([]string{"build", "-trimpath", "-o", out}, args...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return nil, errors.Join(fmt.Errorf("%w: %s", err, text), os.RemoveAll(dir))
		}
	}
	return b, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if b, err := built(); err == nil {
		_ = os.RemoveAll(b.dir)
	}
	os.Exit(code)
}

// line is what the helper "lines" writes as its i-th line.
func line(b []byte, i int) []byte {
	b = append(strconv.AppendInt(append(b, "line "...), int64(i), 10), ' ')
	for range i * 7919 % 150 {
		b = append(b, byte('a'+i%26))
	}
	return append(b, '\n')
}

// pair is a keeper pair of the test's own.
type pair struct {
	t    testing.TB
	dir  string
	bins *binaries
	c    *client.Client

	mu    sync.Mutex
	exits map[string]proto.Exited
	cond  *sync.Cond
}

func needRoot(t testing.TB) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mount namespaces and subreapers")
	}
}

// newPair starts a pair on tmpfs and ends it with the test, checking that nothing stays.
func newPair(t testing.TB) *pair {
	t.Helper()
	needRoot(t)
	b, err := built()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "keeper-test") //nolint:usetesting // tmpfs, as in use
	if err != nil {
		dir = t.TempDir()
	}
	p := &pair{t: t, dir: filepath.Join(dir, "k"), bins: b, exits: map[string]proto.Exited{}}
	p.cond = sync.NewCond(&p.mu)
	t.Cleanup(func() {
		p.killAll()
		_ = os.RemoveAll(dir)
	})
	if err := client.Start(b.keeper, p.dir); err != nil {
		t.Fatal(err)
	}
	p.c = p.connect()
	t.Cleanup(func() { _ = p.c.Close() })
	go func() {
		for e := range p.c.Exits() {
			p.mu.Lock()
			p.exits[e.ID] = e
			p.cond.Broadcast()
			p.mu.Unlock()
		}
	}()
	return p
}

func (p *pair) connect() *client.Client {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := client.New(ctx, client.Options{Socket: filepath.Join(p.dir, client.SocketName), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// keepers finds the pair's processes by the lock file they hold open. A child that has just been forked looks like its parent, and is not meant.
func (p *pair) keepers() (elder, younger int) {
	found := map[int]string{}
	ents, _ := os.ReadDir("/proc")
	for _, e := range ents {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/4", pid)); err != nil || to != filepath.Join(p.dir, ".lock") {
			continue
		}
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if a := strings.Split(string(b), "\x00"); len(a) > 1 {
			found[pid] = a[1]
		}
	}
	for pid, role := range found {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		f := strings.Fields(string(b[strings.LastIndex(string(b), ")")+1:]))
		if len(f) < 2 {
			continue
		}
		if parent, _ := strconv.Atoi(f[1]); found[parent] == role {
			continue
		}
		switch role {
		case "elder":
			elder = pid
		case "younger":
			younger = pid
		}
	}
	return elder, younger
}

// settled waits for both keepers to be there, other than the ones given, and equipped: a younger answers only then.
func (p *pair) settled(notElder, notYounger int) (elder, younger int) {
	p.t.Helper()
	waitFor(p.t, "two keepers", func() bool {
		elder, younger = p.keepers()
		return elder != 0 && younger != 0 && elder != notElder && younger != notYounger
	})
	c := p.connect()
	if err := c.Close(); err != nil {
		p.t.Error(err)
	}
	return elder, younger
}

func (p *pair) killAll() {
	procs, fds, err := p.c.Processes(timeout(p.t))
	if err == nil {
		for i, pr := range procs {
			if fds[i] != nil {
				_ = unix.PidfdSendSignal(int(fds[i].Fd()), unix.SIGKILL, nil, 0)
				fds[i].Close()
			}
			_ = pr
		}
	}
	waitFor(p.t, "the keepers' end", func() bool {
		e, y := p.keepers()
		for _, pid := range []int{e, y} { // the elder first, or it starts another younger
			if pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		return e == 0 && y == 0 && p.unlocked() // one that is executing itself at this moment goes by no name
	})
}

// unlocked says that nobody has the pair's lock.
func (p *pair) unlocked() bool {
	f, err := os.Open(filepath.Join(p.dir, ".lock"))
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func waitFor(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(time.Millisecond) {
		if f() {
			return
		}
		if time.Now().After(end) {
			t.Errorf("no %s within a minute", what)
			t.FailNow()
		}
	}
}

// exit waits for a process's end.
func (p *pair) exit(id string) proto.Exited {
	p.t.Helper()
	timer := time.AfterFunc(60*time.Second, p.cond.Broadcast)
	defer timer.Stop()
	end := time.Now().Add(60 * time.Second)
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if e, ok := p.exits[id]; ok {
			return e
		}
		if time.Now().After(end) {
			p.t.Fatalf("no exit of %s", id)
		}
		p.cond.Wait()
	}
}

func (p *pair) forget(id string) {
	p.t.Helper()
	if err := p.c.Forget(timeout(p.t), id); err != nil {
		p.t.Fatalf("forget %s: %v", id, err)
	}
	if _, err := os.Stat(filepath.Join(p.dir, id)); !errors.Is(err, os.ErrNotExist) {
		p.t.Errorf("the directory of %s stays: %v", id, err)
	}
}

// builder writes launch programs.
type builder struct{ proto.Program }

// arg is an argument of an op.
type arg struct {
	kind proto.ArgKind
	v    uint64
}

func imm[T ~int | ~uint32 | ~uint64 | ~int32 | ~uintptr](v T) arg { return arg{proto.Imm, uint64(v)} }
func fd(i int) arg                                                { return arg{proto.FD, uint64(i)} }
func reg(i int) arg                                               { return arg{proto.Reg, uint64(i)} }

func (b *builder) op(label string, nr uint32, args ...arg) *proto.Op {
	o := proto.Op{NR: nr, Result: proto.NoResult}
	for i, a := range args {
		o.Kind[i], o.Arg[i] = a.kind, a.v
	}
	b.Ops, b.Labels = append(b.Ops, o), append(b.Labels, label)
	return &b.Ops[len(b.Ops)-1]
}

func (b *builder) bytes(s []byte) arg {
	off := len(b.Data)
	b.Data = append(b.Data, s...)
	for len(b.Data)%8 != 0 {
		b.Data = append(b.Data, 0)
	}
	return arg{proto.Data, uint64(off)}
}

func (b *builder) str(s string) arg { return b.bytes(append([]byte(s), 0)) }

// vector is a NULL-terminated array of strings.
func (b *builder) vector(s ...string) arg {
	ptrs := make([]byte, 8*(len(s)+1))
	for i, x := range s {
		binary.NativeEndian.PutUint64(ptrs[8*i:], b.str(x).v)
	}
	a := b.bytes(ptrs)
	for i := range s {
		b.Relocs = append(b.Relocs, uint32(a.v)+8*uint32(i))
	}
	return a
}

func (b *builder) stdio(stdin, stdout, stderr int) {
	for to, from := range []int{stdin, stdout, stderr} {
		if from >= 0 {
			b.op(fmt.Sprintf("place descriptor %d", to), unix.SYS_DUP3, fd(from), imm(to), imm(0))
		}
	}
}

// exec executes a passed file.
func (b *builder) exec(file int, args ...string) {
	b.op("execute "+strings.Join(args, " "), unix.SYS_EXECVEAT, fd(file), b.str(""), b.vector(args...), b.vector("GOMAXPROCS=1"), imm(unix.AT_EMPTY_PATH))
}

// helper is the binary that plays the container.
func (p *pair) helper() *os.File {
	p.t.Helper()
	f, err := os.Open(p.bins.helper)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { f.Close() })
	return f
}

// container is a Spawn of the helper with FIFOs and, when log is set, a log file.
func (p *pair) container(id string, log string, args ...string) client.Spawn {
	p.t.Helper()
	var b builder
	b.op("setsid", unix.SYS_SETSID)
	b.stdio(proto.FDStdin, proto.FDStdout, proto.FDStderr)
	b.exec(proto.FDPassed, append([]string{"helper"}, args...)...)
	s := client.Spawn{Program: &b.Program, Files: []*os.File{p.helper()}, Name: "start container " + id}
	s.ID, s.Cgroup, s.Stdin, s.Stdout, s.Stderr = id, -1, true, true, true
	if log != "" {
		f, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
		if err != nil {
			p.t.Fatal(err)
		}
		p.t.Cleanup(func() { f.Close() })
		s.Log = f
	}
	return s
}

func (p *pair) spawn(s client.Spawn) *client.Process {
	p.t.Helper()
	pr, err := p.c.Spawn(timeout(p.t), s)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = unix.PidfdSendSignal(int(pr.PIDFD.Fd()), unix.SIGKILL, nil, 0)
		pr.Close()
	})
	return pr
}

// closeStdin ends a container's input: it takes the end of the FIFO that StdinOnce gives away.
func (p *pair) closeStdin(id string) {
	p.t.Helper()
	in, err := p.c.Attach(timeout(p.t), id, true, nil, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	in.Close()
}

// texts gives the lines of a log without times, and checks those.
func texts(t testing.TB, log string) []string {
	t.Helper()
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for l := range strings.Lines(string(b)) {
		stamp, text, _ := strings.Cut(l, " ")
		if _, err := time.Parse("2006-01-02T15:04:05.000000000Z", stamp); err != nil || !strings.HasSuffix(l, "\n") {
			t.Fatalf("line %d: %q: %v", len(out), l, err)
		}
		out = append(out, strings.TrimSuffix(text, "\n"))
	}
	return out
}
