// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"golang.org/x/sys/unix"

	"crishim.dev/keeper/sys"
	"crishim.dev/proto"
)

// wire is one end of a SOCK_SEQPACKET connection, non-blocking. Not safe for concurrent use.
type wire struct {
	fd  int
	out []packet // sent when the peer has room again
}

// packet is a message that waits; its descriptors are duplicates of its own.
type packet struct {
	data []byte
	fds  []int
}

// maxQueue bounds how many packets wait for a peer that doesn't read. What a daemon misses that way it gets by List, when it
// has connected again.
const maxQueue = 4096

func (w *wire) write(b []byte, fds []int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	return sys.Retry(func() error { return unix.Sendmsg(w.fd, b, oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT) })
}

// send sends a packet, or queues it when the peer has no room; then the owner of w calls flush when it has. ENOBUFS: the
// queue is full.
func (w *wire) send(b []byte, fds []int) error {
	if len(w.out) == 0 {
		if err := w.write(b, fds); err != unix.EAGAIN { //nolint:errorlint // bare errno
			return err
		}
	}
	if len(w.out) >= maxQueue {
		return unix.ENOBUFS
	}
	p := packet{data: b}
	for _, fd := range fds {
		d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			sys.CloseAll(p.fds)
			return err
		}
		p.fds = append(p.fds, d)
	}
	w.out = append(w.out, p)
	return nil
}

// flush sends what waits, as far as the peer has room.
func (w *wire) flush() error {
	for len(w.out) > 0 {
		p := w.out[0]
		err := w.write(p.data, p.fds)
		if err == unix.EAGAIN { //nolint:errorlint // bare errno
			return nil
		}
		sys.CloseAll(p.fds)
		w.out = w.out[1:]
		if err != nil {
			return err
		}
	}
	w.out = nil
	return nil
}

// sendNow returns when the packet is in the peer's queue, or the peer is gone.
func (w *wire) sendNow(b []byte, fds []int) error {
	for {
		err := w.flush()
		if err == nil && len(w.out) == 0 {
			err = w.write(b, fds)
			if err != unix.EAGAIN { //nolint:errorlint // bare errno
				return err
			}
		} else if err != nil {
			return err
		}
		p := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLOUT}}
		if _, err := unix.Poll(p, -1); err != nil && err != unix.EINTR {
			return err
		}
	}
}

// empty drops what waits.
func (w *wire) empty() {
	for _, p := range w.out {
		sys.CloseAll(p.fds)
	}
	w.out = nil
}

// close closes the connection and what waits in it.
func (w *wire) close() {
	w.empty()
	unix.Close(w.fd)
}

// inbox is where packets are received; one is enough for all connections that one goroutine reads.
type inbox struct {
	data [proto.MaxMessage]byte
	oob  [unix.SizeofCmsghdr + 4*proto.MaxFDs + 64]byte
}

// receive reads one message. The descriptors belong to the caller. io.EOF: the peer is gone; EAGAIN: nothing there.
func (in *inbox) receive(fd int) (seq uint64, m proto.Message, fds []int, err error) {
	n, fds, err := sys.Receive(fd, in.data[:], in.oob[:], 0)
	if err != nil {
		return 0, nil, nil, err
	}
	seq, m, err = proto.Unmarshal(in.data[:n])
	if err != nil {
		sys.CloseAll(fds)
		return 0, nil, nil, err
	}
	return seq, m, fds, nil
}
