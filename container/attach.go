// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"fmt"
	"io"
	"os"

	"crishim.dev/stream"
)

// Attach joins the streams of a container's first process until it ends, or the caller leaves. Output from before is in the log.
func (m *Manager) Attach(ctx context.Context, id ID, s stream.IO) error {
	pidfd, r, err := m.live(id)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	defer pidfd.Close()
	tty := r.Config.GetTty()
	if tty {
		s.Stderr = nil // one stream
	}
	out, err := openPipes(stream.IO{Stdout: s.Stdout, Stderr: s.Stderr})
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", r.name(), err)
	}
	defer out.close()
	wantIn := s.Stdin != nil && (tty || r.Config.GetStdin())
	in, err := m.o.Keeper.Attach(ctx, string(id), wantIn, out.stdout.theirs, out.stderr.theirs)
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", r.name(), err)
	}
	for _, end := range []*pipeEnd{&out.stdout, &out.stderr} {
		if f := end.give(); f != nil {
			_ = f.Close() // the keeper has its own copy
		}
	}
	if tty && s.Resize != nil {
		if master, err := m.o.Keeper.TTY(ctx, string(id)); err == nil {
			defer master.Close()
			go resize(master, s.Resize) // ends with the connection, which closes Resize
		}
	}
	out.output(s.Stdout, out.stdout.ours)
	out.output(s.Stderr, out.stderr.ours)
	if in != nil {
		defer in.Close()
		go feed(in, s.Stdin, r.Config.GetStdinOnce() && !tty) // ends with the client's connection
	}
	select {
	case <-m.done(id):
		out.drain()
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// feed copies a client's input. With once its end is the end of the container's stdin: the keeper closes that when our copy is closed.
func feed(in *os.File, from io.Reader, once bool) {
	_, _ = io.Copy(in, from)
	if once {
		_ = in.Close()
	}
}
