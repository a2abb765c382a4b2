// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/proto"
)

// Socket is one argument list of socket(2).
type Socket struct{ Domain, Type, Protocol int }

// SocketDescription is sockets to be opened in a network namespace by somebody who can't enter it. The program reports them in
// order; it leaves out those of an address family that the kernel lacks.
type SocketDescription struct {
	NetNS   FD
	Sockets []Socket
}

// Sockets compiles the opening of sockets in a network namespace. The process ends by itself (proto.Spawn.Run). All sockets
// are close-on-exec and non-blocking.
func Sockets(d *SocketDescription) (*Plan, error) {
	if d.NetNS == NoFD {
		return nil, errs.Newf(errs.Invalid, "no network namespace")
	}
	p := newProg()
	p.join(d.NetNS, unix.CLONE_NEWNET, "join network namespace")
	for _, s := range d.Sockets {
		p.step("open socket")
		missing := []unix.Errno{unix.EAFNOSUPPORT}
		r := p.open(missing, unix.SYS_SOCKET, imm(s.Domain), imm(s.Type|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK), imm(s.Protocol))
		p.step("report socket")
		p.ifOpen(r, func() { p.do(int(proto.PseudoReport), imm(proto.TagReturn), r.arg()) })
		p.close(r)
	}
	p.step("end")
	p.do(int(proto.PseudoExit), imm(0))
	return p.plan(0, Cgroup{Dir: NoFD}), nil
}
