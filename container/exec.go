// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/cgroup"
	"crishim.dev/internal/errs"
	"crishim.dev/internal/ids"
	"crishim.dev/launch"
	"crishim.dev/proto"
	"crishim.dev/stream"
)

// execPrefix begins the keeper's names for exec processes: "exec-", execOwner digits of the container's id, "-", a random number.
const (
	execPrefix = "exec-"
	execOwner  = 12
)

// drainLimit bounds the wait for the rest of the output after the process has ended: a grandchild may keep the pipe open for ever
// (KUBELET.md 16).
const drainLimit = 250 * time.Millisecond

// running is an exec process that was started.
type running struct {
	id    string
	pidfd *os.File
	// ended gets one element.
	ended chan proto.Exited
	// part is the process and its descendants within the container's cgroup.
	part *cgroup.Part
	// master is the pty's, when one was asked for.
	master *os.File
}

// ExecSync runs cmd in the container to its end. After timeout (0: never) it and all its children are killed and the error is
// errs.Deadline. Output beyond limit bytes, both streams together, is read and discarded.
func (m *Manager) ExecSync(ctx context.Context, id ID, cmd []string, timeout time.Duration, limit int) (stdout, stderr []byte, code int32, err error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, errs.Newf(errs.Deadline, "the command did not end within %s", timeout))
		defer cancel()
	}
	budget := &budget{left: limit}
	out, errOut := &capped{budget: budget}, &capped{budget: budget}
	code, err = m.Exec(ctx, id, cmd, stream.IO{Stdout: out, Stderr: errOut})
	return out.data, errOut.data, code, err
}

// Exec runs cmd in the container with the caller's streams until it ends, and returns its exit code. When ctx ends the process,
// its session and its children are killed.
func (m *Manager) Exec(ctx context.Context, id ID, cmd []string, s stream.IO) (code int32, err error) {
	pipes, err := openPipes(s)
	if err != nil {
		return 0, err
	}
	defer pipes.close()
	p, err := m.startExec(ctx, id, cmd, s.TTY, pipes)
	if err != nil {
		return 0, err
	}
	defer p.pidfd.Close()
	defer m.dropExec(p)
	pipes.started(s, p.master)
	select {
	case ev := <-p.ended:
		pipes.drain()
		code, _ = outcome(ev.Status)
		return code, nil
	case <-ctx.Done():
	}
	cause := context.Cause(ctx)
	kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), exitLimit)
	defer cancel()
	if err := p.part.Kill(kill); err != nil {
		cause = errors.Join(cause, err)
	}
	pipes.drain()
	return 0, fmt.Errorf("exec %q: %w", cmd[0], cause)
}

// dropExec forgets the process. What it left behind in the background stays, in the container.
func (m *Manager) dropExec(p *running) {
	m.mu.Lock()
	delete(m.execs, p.id)
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), exitLimit)
	defer cancel()
	if err := p.part.Remove(ctx); err != nil {
		m.o.Log.Warn("cgroup of an ended exec process stays until its container's end", "process", p.id, "error", err)
	}
}

// startExec launches the process. Like a container's start it is not cut short by the caller's end.
func (m *Manager) startExec(ctx context.Context, id ID, cmd []string, tty bool, pipes *pipes) (*running, error) {
	if len(cmd) == 0 || cmd[0] == "" {
		return nil, errs.Newf(errs.Invalid, "cmd: empty")
	}
	pidfd, r, err := m.live(id)
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	defer pidfd.Close()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startLimit)
	defer cancel()
	p, err := m.newExec(r)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", r.name(), err)
	}
	l := &launching{m: m, r: r}
	defer l.close()
	d, err := l.describeExec(p.part, pidfd, cmd, tty, pipes)
	if err != nil {
		m.dropExec(p)
		return nil, fmt.Errorf("exec in container %s: %w", r.name(), err)
	}
	proc, err := m.handler.Exec(ctx, Exec{ID: p.id, Name: "exec in container " + r.name(), Description: d, Files: l.files.Files})
	if err != nil {
		return nil, errors.Join(err, m.endExec(ctx, p))
	}
	p.pidfd = proc.PIDFD
	if len(proc.Files) > 0 {
		p.master = proc.Files[0]
	}
	return p, nil
}

// endExec ends an exec whose launch was not heard to succeed: the keeper may have started it all the same.
func (m *Manager) endExec(ctx context.Context, p *running) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), exitLimit)
	defer cancel()
	err := p.part.Kill(ctx)
	m.dropExec(p)
	if e := m.o.Keeper.Forget(ctx, p.id); e != nil && !errors.Is(e, unix.EBUSY) { // if it was started Run forgets it at its end
		err = errors.Join(err, e)
	}
	return err
}

// newExec names an exec and makes its part of the container's cgroup.
func (m *Manager) newExec(r *record) (*running, error) {
	// The container's name is for the next daemon, should this one be killed.
	p := &running{id: execPrefix + string(r.ID[:execOwner]) + "-" + ids.New()[:32], ended: make(chan proto.Exited, 1)}
	group, err := m.o.Cgroups.Open(r.Cgroup)
	if err != nil {
		return nil, err
	}
	if p.part, err = group.Part(p.id); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.execs[p.id] = p.ended
	return p, nil
}

// describeExec gives the process what the container's first has: cgroup, user, capabilities, seccomp, oom_score_adj (KUBELET.md 20).
func (l *launching) describeExec(part *cgroup.Part, pidfd *os.File, cmd []string, tty bool, pipes *pipes) (*launch.ExecDescription, error) {
	box, err := l.m.o.Sandboxes.Get(string(l.r.Sandbox))
	if err != nil {
		return nil, err
	}
	base, err := describe(l.r, box, l.m.o.Rlimits)
	if err != nil {
		return nil, err
	}
	d := &launch.ExecDescription{Process: base.Process, Cgroup: launch.Cgroup{Dir: launch.NoFD}}
	d.Args, d.TTY = cmd, tty
	d.Stdin, d.Stdout, d.Stderr = pipes.stdin.theirs != nil, pipes.stdout.theirs != nil, pipes.stderr.theirs != nil
	if tty && !slices.ContainsFunc(d.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
		d.Env = append(slices.Clone(d.Env), "TERM=xterm")
	}
	if err := l.m.confine(&d.Process, security(l.r.Config)); err != nil {
		return nil, err
	}
	procs, dir, err := part.Files()
	if err != nil {
		return nil, err
	}
	d.Dir = l.files.Add(dir)
	for _, f := range procs {
		d.Procs = append(d.Procs, l.files.Add(f))
	}
	dup, err := duplicate(pidfd) // files are closed with the launch
	if err != nil {
		return nil, err
	}
	d.PIDFD = l.files.Add(dup)
	for i, end := range []*pipeEnd{&pipes.stdin, &pipes.stdout, &pipes.stderr} {
		d.Stdio[i] = l.files.Add(end.give())
	}
	_, d.UserNS = box.Users()
	d.HostNet, d.HostUTS, d.HostIPC = box.HostNetwork(), box.HostNetwork(), box.HostIPC()
	d.HostPID = pidMode(l.r.Config) == cri.NamespaceMode_NODE
	return d, nil
}

func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func (m *Manager) execEnded(ctx context.Context, ev proto.Exited) {
	m.mu.Lock()
	ended := m.execs[ev.ID]
	m.mu.Unlock()
	if ended != nil {
		select {
		case ended <- ev:
		default: // announced twice
		}
	}
	if err := m.o.Keeper.Forget(ctx, ev.ID); err != nil && ctx.Err() == nil {
		m.o.Log.Warn("ended exec process can't be forgotten", "process", ev.ID, "error", err)
	}
}
