// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"crishim.dev/cgroup"
	"crishim.dev/keeper/client"
	"crishim.dev/launch"
	"crishim.dev/proto"
)

// Handler turns descriptions into processes: it is what the handler of a RuntimeClass chooses. All else, from the record, the root
// file system and the cgroup to the log and the end, is the Manager's and the same for every handler.
//
// The description is complete: what a handler is not told it must not decide. Descriptors in it count into Files, which stay the
// caller's. A process that is returned is a child of the keeper, under the id that was asked for: the keeper pumps its output and
// reports its end on Keeper.Exits. One that drives an OCI runtime would write the description as a config.json with the descriptors
// as /proc/self/fd paths, and have the keeper run `create` and `start`; it refuses by name what that runtime has no words for.
//
// An error means that no process is left, or that the Manager's clean-up (kill the cgroup, forget the id) finds it.
type Handler interface {
	// Start launches a container's first process and returns when execve has succeeded.
	Start(ctx context.Context, s Start) (*client.Process, error)
	// Exec launches a process beside a container's first.
	Exec(ctx context.Context, e Exec) (*client.Process, error)
}

// Start is what a handler starts a container from.
type Start struct {
	// ID is what the keeper is to call the process, Name begins its errors.
	ID, Name    string
	Description *launch.Description
	Files       []*os.File
	// Group is the container's cgroup; one that is Held takes the process by its pid, while that waits.
	Group *cgroup.Group
	// Log is nil for a container without one.
	Log       *os.File
	StdinOnce bool
}

// Exec is what a handler starts an exec from; the fields are as in Start.
type Exec struct {
	ID, Name    string
	Description *launch.ExecDescription
	Files       []*os.File
}

// programs is shim itself: the description becomes a launch program that the keeper runs.
type programs struct {
	keeper Keeper
	facts  launch.Facts
}

// Start implements Handler.
func (h programs) Start(ctx context.Context, s Start) (*client.Process, error) {
	d := s.Description
	plan, err := launch.Container(d, h.facts)
	if err != nil {
		return nil, err
	}
	held := s.Group.Held()
	p, err := h.keeper.Spawn(ctx, client.Spawn{
		Spawn: proto.Spawn{
			ID: s.ID, CloneFlags: plan.CloneFlags, Cgroup: int32(plan.Cgroup), Log: s.Log != nil, Hold: held,
			Stdin: d.Stdin, Stdout: d.Stdout, Stderr: d.Stderr, StdinOnce: s.StdinOnce,
		},
		Program: plan.Program, Log: s.Log, Files: s.Files, Name: s.Name,
	})
	if err != nil || !held {
		return p, launch.Blamed(err)
	}
	// It waits at its gate until it is in its cgroup.
	defer p.PIDFD.Close()
	if err := s.Group.Place(ctx, p.PID); err != nil {
		return nil, errors.Join(err, unix.PidfdSendSignal(int(p.PIDFD.Fd()), unix.SIGKILL, nil, 0))
	}
	p, err = h.keeper.Release(ctx, s.ID, s.Name, plan.Program)
	return p, launch.Blamed(err)
}

// Exec implements Handler.
func (h programs) Exec(ctx context.Context, e Exec) (*client.Process, error) {
	plan, err := launch.Exec(e.Description, h.facts)
	if err != nil {
		return nil, err
	}
	p, err := h.keeper.Spawn(ctx, client.Spawn{
		Spawn:   proto.Spawn{ID: e.ID, CloneFlags: plan.CloneFlags, Cgroup: int32(plan.Cgroup)},
		Program: plan.Program, Files: e.Files, Name: e.Name,
	})
	return p, launch.Blamed(err)
}
