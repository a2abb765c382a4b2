// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/proto"
)

// Spawn is a process to be started.
type Spawn struct {
	proto.Spawn
	Program *proto.Program
	// Log is the log file, or nil. It is written at its end, by offset: nobody else may write to it.
	Log *os.File
	// Files are the program's descriptors, from index proto.FDPassed on.
	Files []*os.File
	// Name says what is being done, for errors: "start container web".
	Name string
}

// Process is one that was started.
type Process struct {
	ID  string
	PID int
	// StartTime is field 22 of /proc/PID/stat; it and the pid name the process for good.
	StartTime uint64
	// PIDFD is nil for a Run process, which has ended.
	PIDFD *os.File
	// Files were reported with proto.TagReturn, in that order.
	Files []*os.File
	// Status is the wait status, of a Run process only.
	Status uint32
}

// Close closes the pidfd and the files.
func (p *Process) Close() {
	if p.PIDFD != nil {
		_ = p.PIDFD.Close()
	}
	for _, f := range p.Files {
		_ = f.Close()
	}
}

// LaunchError says which step of a launch failed. It unwraps to the errno.
type LaunchError struct {
	// Name is Spawn.Name.
	Name string
	// Label is the failed op's, "clone", or empty when the process was killed before its program was through.
	Label string
	// Errno is the kernel's reason.
	Errno syscall.Errno
	// Status is the wait status of a process that was killed.
	Status uint32
}

func (e *LaunchError) Error() string {
	if e.Label == "" {
		return fmt.Sprintf("%s: the process was killed before it was executed (wait status %#x)", e.Name, e.Status)
	}
	return fmt.Sprintf("%s: %s: %s", e.Name, e.Label, e.Errno)
}

func (e *LaunchError) Unwrap() error { return e.Errno }

// Step is what failed, and why.
func (e *LaunchError) Step() (label string, reason syscall.Errno) { return e.Label, e.Errno }

// retrySpawn is the time between attempts while an earlier process of the same id is on its way out.
const retrySpawn = 2 * time.Millisecond

// Spawn starts a process, or joins the one that has its id. It returns when execve has succeeded, with Hold when the process is at its gate,
// with Run when the process has ended. A *LaunchError says which step failed; nothing is left of the process then.
func (c *Client) Spawn(ctx context.Context, s Spawn) (*Process, error) {
	prog, err := seal(s.Program)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	defer prog.Close()
	s.Spawn.Log = s.Log != nil
	files := []*os.File{prog}
	if s.Log != nil {
		files = append(files, s.Log)
	}
	for {
		r, err := c.ask(ctx, &s.Spawn, append(files, s.Files...)...)
		if errors.Is(err, unix.EAGAIN) {
			select {
			case <-time.After(retrySpawn):
				continue
			case <-ctx.Done():
				return nil, fmt.Errorf("%s: %w", s.Name, context.Cause(ctx))
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Name, err)
		}
		p, err := r.process(s.ID, s.Name, s.Program)
		if err == nil && s.Run && !s.Hold && p.PIDFD != nil { // it names a process that is gone
			_ = p.PIDFD.Close()
			p.PIDFD = nil
		}
		return p, err
	}
}

// Release lets a process that was spawned with Hold go; it returns as Spawn does. p is the program it was spawned with, for its labels.
func (c *Client) Release(ctx context.Context, id, name string, p *proto.Program) (*Process, error) {
	r, err := c.ask(ctx, &proto.Release{ID: id})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r.process(id, name, p)
}

// process makes the result of an answer to Spawn or Release.
func (r *reply) process(id, name string, prog *proto.Program) (*Process, error) {
	m, ok := r.msg.(*proto.Spawned)
	if !ok {
		closeAll(r.fds)
		return nil, fmt.Errorf("%s: the keeper answered %T", name, r.msg)
	}
	if m.FailedOp != proto.FailedNone {
		closeAll(r.fds)
		e := &LaunchError{Name: name, Errno: syscall.Errno(m.Errno), Status: m.Status}
		switch op := int(m.FailedOp); {
		case m.FailedOp == proto.FailedClone:
			e.Label = "clone"
		case m.FailedOp == proto.FailedKilled:
		case prog != nil && op < len(prog.Labels):
			e.Label = prog.Labels[op]
		default:
			e.Label = fmt.Sprintf("operation %d", op)
		}
		return nil, e
	}
	p := &Process{ID: id, PID: int(m.PID), StartTime: m.StartTime, Status: m.Status}
	for i, fd := range r.fds {
		if i == 0 {
			p.PIDFD = os.NewFile(uintptr(fd), "pidfd of "+id)
		} else {
			p.Files = append(p.Files, os.NewFile(uintptr(fd), "reported by "+id))
		}
	}
	return p, nil
}

// seal puts a program into a memfd that nobody can change.
func seal(p *proto.Program) (*os.File, error) {
	b, err := p.Encode()
	if err != nil {
		return nil, errs.As(errs.Invalid, err)
	}
	const noexec = 0x8 // MFD_NOEXEC_SEAL, Linux 6.3
	fd, err := unix.MemfdCreate("program", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC|noexec)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("program", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("make memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "program")
	_, err = f.Write(b)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write program: %w", err), f.Close())
	}
	return f, nil
}

// Processes lists everything kept, with a pidfd for each process; nil for those that have exited.
func (c *Client) Processes(ctx context.Context) ([]proto.Process, []*os.File, error) {
	r, err := c.ask(ctx, &proto.List{})
	if err != nil {
		return nil, nil, fmt.Errorf("list processes: %w", err)
	}
	files, next := make([]*os.File, len(r.procs)), 0
	for i, p := range r.procs {
		if !p.Exited && next < len(r.fds) {
			files[i] = os.NewFile(uintptr(r.fds[next]), "pidfd of "+p.ID)
			next++
		}
	}
	closeAll(r.fds[next:])
	return r.procs, files, nil
}

// Reopen goes on in another log file. When it returns, nothing more is written to the old one.
func (c *Client) Reopen(ctx context.Context, id string, log *os.File) error {
	_, err := c.ask(ctx, &proto.Reopen{ID: id}, log)
	return err
}

// Attach copies a process's output to stdout and stderr from now on; nil means not. The keeper writes to them without waiting and drops one that falls behind.
// With stdin it returns what to write to: an end of a FIFO, or the pty's master; both may be non-blocking. errs.Precondition: there is no stdin, or it was closed.
func (c *Client) Attach(ctx context.Context, id string, stdin bool, stdout, stderr *os.File) (in *os.File, err error) {
	var files []*os.File
	for _, f := range []*os.File{stdout, stderr} {
		if f != nil {
			files = append(files, f)
		}
	}
	r, err := c.ask(ctx, &proto.Attach{ID: id, Stdin: stdin, Stdout: stdout != nil, Stderr: stderr != nil}, files...)
	if err != nil {
		return nil, err
	}
	return r.file("stdin of " + id), nil
}

// TTY gives the pty's master, for resizing. It is non-blocking.
func (c *Client) TTY(ctx context.Context, id string) (*os.File, error) {
	r, err := c.ask(ctx, &proto.TTY{ID: id})
	if err != nil {
		return nil, err
	}
	return r.file("terminal of " + id), nil
}

// file makes a file of the answer's only descriptor.
func (r *reply) file(name string) *os.File {
	if len(r.fds) == 0 {
		return nil
	}
	closeAll(r.fds[1:])
	return os.NewFile(uintptr(r.fds[0]), name)
}

// Forget drops a process that has exited, or waits at its gate, with everything of it. Unknown ids succeed; errs.Precondition: it runs.
func (c *Client) Forget(ctx context.Context, id string) error {
	_, err := c.ask(ctx, &proto.Forget{ID: id})
	return err
}
