// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"fmt"
	"io"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// adapter gives the protocol handlers a command, an exec or an attach, in the form they want it.
type adapter struct {
	s *Server
	// asked says which streams the request has; over WebSocket the handlers pass idle ones for the others.
	asked *remotecommand.Options
	verb  string
	run   func(ctx context.Context, streams IO) error
}

// ExecInContainer implements remotecommand.Executor.
func (a adapter) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, err io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) (result error) {
	if err := a.s.begin(); err != nil {
		return err
	}
	defer a.s.work.Done()
	defer a.s.recovered(a.verb, &result)
	return a.run(ctx, a.streams(ctx, in, out, err, resize))
}

// streams leaves out what was not asked for.
func (a adapter) streams(ctx context.Context, in io.Reader, out, err io.Writer, resize <-chan remotecommand.TerminalSize) IO {
	s := IO{TTY: a.asked.TTY}
	if a.asked.Stdin {
		s.Stdin = in
	}
	if a.asked.Stdout {
		s.Stdout = out
	}
	if a.asked.Stderr {
		s.Stderr = err
	}
	if a.asked.TTY && resize != nil {
		s.Resize = sizes(ctx, resize)
	} else if resize != nil {
		go drain(ctx, resize)
	}
	return s
}

// sizes translates until the client's channel is closed, which the end of the connection does.
func sizes(ctx context.Context, from <-chan remotecommand.TerminalSize) <-chan Size {
	to := make(chan Size)
	go func() {
		defer close(to)
		for s := range from {
			select {
			case to <- Size{Width: s.Width, Height: s.Height}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return to
}

// drain takes the sizes that nobody wants, so that their sender can end.
func drain(ctx context.Context, from <-chan remotecommand.TerminalSize) {
	for {
		select {
		case _, ok := <-from:
			if !ok {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// recovered turns a panic below a protocol handler, which runs some of its work on goroutines of its own, into an error
// of that stream.
func (s *Server) recovered(what string, err *error) {
	if v := recover(); v != nil {
		s.o.Log.Error("panic while streaming", "path", what, "panic", v, "stack", stack())
		*err = fmt.Errorf("%s: internal error", what)
	}
}
