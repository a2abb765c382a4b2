// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/internal/ids"
	"crishim.dev/keeper/client"
	"crishim.dev/launch"
	"crishim.dev/proto"
)

// Dial connects to a port of the pod's loopback from inside its network namespace: IPv4 first, then IPv6. With host networking
// it is the host's loopback.
func (m *Manager) Dial(ctx context.Context, s Sandbox, port uint16) (net.Conn, error) {
	if s.State != Ready {
		return nil, errs.Newf(errs.Precondition, "connect to port %d of pod %s: it is %s", port, s.ID, s.State)
	}
	if s.HostNetwork() {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", net.JoinHostPort("localhost", strconv.Itoa(int(port))))
	}
	sockets, err := m.sockets(ctx, s.ID, []launch.Socket{
		{Domain: unix.AF_INET, Type: unix.SOCK_STREAM}, {Domain: unix.AF_INET6, Type: unix.SOCK_STREAM},
	})
	if err != nil {
		return nil, err
	}
	defer func() { closeAll(sockets, nil) }() // net.FileConn makes a copy
	addrs := []unix.Sockaddr{
		&unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}},
		&unix.SockaddrInet6{Port: int(port), Addr: [16]byte{15: 1}},
	}
	var all []error
	for i, f := range sockets {
		if err := connect(f, addrs[i]); err != nil {
			all = append(all, err)
			continue
		}
		return net.FileConn(f)
	}
	return nil, errs.As(errs.Unavailable, fmt.Errorf("connect to port %d of pod %s: %w", port, s.ID, errors.Join(all...)))
}

// sockets lets the keeper open sockets in the pod's network namespace, which this process never enters.
func (m *Manager) sockets(ctx context.Context, id ID, list []launch.Socket) ([]*os.File, error) {
	var files launch.FDList
	ns, err := os.Open(m.o.Layout.Pin(id, "net"))
	if err != nil {
		return nil, fmt.Errorf("open the pod's network namespace: %w", err)
	}
	defer ns.Close()
	plan, err := launch.Sockets(&launch.SocketDescription{NetNS: files.Add(ns), Sockets: list})
	if err != nil {
		return nil, err
	}
	p, err := m.o.Keeper.Spawn(ctx, client.Spawn{
		Spawn:   proto.Spawn{ID: "sock-" + ids.New(), CloneFlags: plan.CloneFlags, Cgroup: -1, Run: true},
		Program: plan.Program, Files: files.Files, Name: "open sockets in pod",
	})
	if err != nil {
		return nil, err
	}
	_ = p.PIDFD.Close()
	return p.Files, nil
}

// connectLimit is how long a connection within one kernel may take, in milliseconds: more is a listener whose backlog is full.
const connectLimit = 5000

// connect connects a non-blocking socket.
func connect(f *os.File, addr unix.Sockaddr) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var connectErr error
	err = raw.Control(func(fd uintptr) {
		connectErr = unix.Connect(int(fd), addr)
		if !errors.Is(connectErr, unix.EINPROGRESS) {
			return
		}
		if connectErr = awaitWritable(int(fd)); connectErr != nil {
			return
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		connectErr = err
	})
	return errors.Join(err, os.NewSyscallError("connect", connectErr))
}

func awaitWritable(fd int) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, connectLimit)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return unix.ETIMEDOUT
		default:
			return nil
		}
	}
}
