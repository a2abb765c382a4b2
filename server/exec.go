// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"net"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/container"
	"crishim.dev/internal/errs"
	"crishim.dev/sandbox"
	"crishim.dev/stream"
)

// maxOutput bounds the output in an ExecSync answer, both streams together: a whole message less its framing.
const maxOutput = maxMessage - 1<<10

// execs answers the RPCs that run a process beside a container's own or join its streams.
type execs struct{ o *Options }

// ExecSync runs a command to its end and returns what it wrote. Output that the answer has no room for is dropped.
func (s execs) ExecSync(ctx context.Context, r *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	timeout, err := seconds("timeout", r.GetTimeout())
	if err != nil {
		return nil, err
	}
	c, err := s.target(r.GetContainerId(), r.GetCmd())
	if err != nil {
		return nil, err
	}
	stdout, stderr, exitCode, err := s.o.Execs.ExecSync(ctx, c.ID, r.GetCmd(), timeout, maxOutput)
	if err != nil {
		return nil, err
	}
	return &cri.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: exitCode}, nil
}

// Exec returns a URL that runs a command.
func (s execs) Exec(_ context.Context, r *cri.ExecRequest) (*cri.ExecResponse, error) {
	if err := validateStreams(r); err != nil {
		return nil, err
	}
	c, err := s.target(r.GetContainerId(), r.GetCmd())
	if err != nil {
		return nil, err
	}
	r.ContainerId = string(c.ID)
	u, err := s.o.URLs.Exec(r)
	return &cri.ExecResponse{Url: u}, err
}

// Attach returns a URL that joins a container's streams.
func (s execs) Attach(_ context.Context, r *cri.AttachRequest) (*cri.AttachResponse, error) {
	if err := validateStreams(r); err != nil {
		return nil, err
	}
	c, err := s.o.container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := running(c, "attach to streams"); err != nil {
		return nil, err
	}
	if r.GetTty() != c.Config.GetTty() {
		return nil, errs.Newf(errs.Invalid, "tty: is %t, but the container's is %t", r.GetTty(), c.Config.GetTty())
	}
	r.ContainerId = string(c.ID)
	u, err := s.o.URLs.Attach(r)
	return &cri.AttachResponse{Url: u}, err
}

// PortForward returns a URL that connects to ports of a pod.
func (s execs) PortForward(_ context.Context, r *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	for i, p := range r.GetPort() {
		if p < 1 || p > 65535 {
			return nil, errs.Newf(errs.Invalid, "port[%d]: %d is not within 1 to 65535", i, p)
		}
	}
	pod, err := s.o.pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if err := ready(pod); err != nil {
		return nil, err
	}
	r.PodSandboxId = string(pod.ID)
	u, err := s.o.URLs.PortForward(r)
	return &cri.PortForwardResponse{Url: u}, err
}

// target finds the running container of an exec and checks its command.
func (s execs) target(id string, cmd []string) (container.Container, error) {
	var f fields
	if len(cmd) == 0 || cmd[0] == "" {
		f.bad("cmd", "is empty")
	}
	f.arguments("cmd", cmd)
	if f.err != nil {
		return container.Container{}, f.err
	}
	c, err := s.o.container(id)
	if err != nil {
		return container.Container{}, err
	}
	return c, running(c, "exec")
}

func ready(pod sandbox.Sandbox) error {
	if pod.State == sandbox.Ready {
		return nil
	}
	return errs.Newf(errs.Precondition, "forward ports of pod sandbox %s: it is %s, not ready", pod.ID, pod.State)
}

// StreamRuntime is what a stream.Server runs: the same managers, asked again at the time that the client comes.
type StreamRuntime struct {
	Sandboxes  Sandboxes
	Containers Containers
	Execs      Execs
	Dialer     Dialer
}

// Exec implements stream.Runtime.
func (s *StreamRuntime) Exec(ctx context.Context, id string, cmd []string, io stream.IO) (int32, error) {
	c, err := s.Containers.Get(id)
	if err != nil {
		return 0, err
	}
	if err := running(c, "exec"); err != nil {
		return 0, err
	}
	return s.Execs.Exec(ctx, c.ID, cmd, io)
}

// Attach implements stream.Runtime.
func (s *StreamRuntime) Attach(ctx context.Context, id string, io stream.IO) error {
	c, err := s.Containers.Get(id)
	if err != nil {
		return err
	}
	if err := running(c, "attach to streams"); err != nil {
		return err
	}
	return s.Execs.Attach(ctx, c.ID, io)
}

// Dial implements stream.Runtime.
func (s *StreamRuntime) Dial(ctx context.Context, id string, port uint16) (net.Conn, error) {
	pod, err := s.Sandboxes.Get(id)
	if err != nil {
		return nil, err
	}
	if err := ready(pod); err != nil {
		return nil, err
	}
	return s.Dialer(ctx, pod, port)
}
