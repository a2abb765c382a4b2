// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"

	"golang.org/x/sys/unix"
)

// forwarder carries the forwarded connections of one request. The handlers give each the background context, so it
// keeps the request's.
type forwarder struct {
	s     *Server
	ctx   context.Context //nolint:containedctx // see above
	ports []int32
}

// PortForward implements portforward.PortForwarder: it copies both ways, a half-close included, until both sides have
// ended or the client's connection has.
func (f *forwarder) PortForward(_ context.Context, sandbox, _ string, port int32, client io.ReadWriteCloser) (err error) {
	if err := f.s.begin(); err != nil {
		return err
	}
	defer f.s.work.Done()
	defer f.s.recovered("port-forward", &err)
	if port < 1 || port > 65535 {
		return fmt.Errorf("forward port %d: not within 1 to 65535", port)
	}
	// Over SPDY the client names the port when it opens a stream; kubelet sends no list then.
	if len(f.ports) > 0 && !slices.Contains(f.ports, port) {
		return fmt.Errorf("forward port %d: not in the request", port)
	}
	pod, err := f.s.o.Runtime.Dial(f.ctx, sandbox, uint16(port))
	if err != nil {
		return err
	}
	defer pod.Close()
	defer context.AfterFunc(f.ctx, func() { _ = pod.Close(); _ = client.Close() })()
	return splice(f.ctx, client, pod)
}

// splice returns when both directions have ended. The client's end is passed on as a half-close of pod, and the pod's as
// one of the client's stream.
func splice(ctx context.Context, client io.ReadWriteCloser, pod net.Conn) error {
	up := make(chan error, 1)
	go func() {
		_, err := io.Copy(pod, client)
		if h, ok := pod.(interface{ CloseWrite() error }); ok {
			_ = h.CloseWrite()
		} else {
			_ = pod.Close()
		}
		up <- err
	}()
	_, err := io.Copy(client, pod)
	_ = client.Close()
	if err != nil {
		_ = pod.Close()
	}
	select {
	case e := <-up:
		err = errors.Join(err, e)
	case <-ctx.Done():
		return nil
	}
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.EPIPE) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
