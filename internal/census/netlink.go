// SPDX-License-Identifier: Apache-2.0

package census

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// conn is a netlink socket.
type conn struct {
	fd  int
	seq uint32
}

// dial opens a netlink socket in the network namespace ns, or in the caller's. A socket belongs to the namespace in which it
// was made for good, so the thread is back in its own before dial returns; a thread that can't go back ends with its goroutine.
func dial(ns string, family int) (*conn, error) {
	if ns == "" {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, family)
		return &conn{fd: fd}, os.NewSyscallError("socket", err)
	}
	type result struct {
		c   *conn
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		own, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- result{nil, err}
			return
		}
		defer own.Close()
		target, err := os.Open(ns)
		if err != nil {
			done <- result{nil, err}
			return
		}
		defer target.Close()
		if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, fmt.Errorf("enter %s: %w", ns, err)}
			return
		}
		c, err := dial("", family)
		if unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- result{c, err}
	}()
	r := <-done
	return r.c, r.err
}

func (c *conn) Close() { _ = unix.Close(c.fd) }

// message is a netlink message without its header.
type message struct {
	kind uint16
	data []byte
}

// errInterrupted: the tables changed during a dump.
var errInterrupted = errors.New("dump interrupted")

// dump asks for a whole table; body follows the header. What the kernel lacks (a protocol not built in) is empty.
func (c *conn) dump(kind uint16, body []byte) ([]message, error) {
	for range 100 {
		msgs, err := c.dumpOnce(kind, body)
		switch {
		case errors.Is(err, errInterrupted):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL):
			return nil, nil
		}
		return msgs, err
	}
	return nil, fmt.Errorf("dump netlink table %#x: it never stopped changing", kind)
}

func (c *conn) dumpOnce(kind uint16, body []byte) (msgs []message, err error) {
	c.seq++
	req := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	req = binary.NativeEndian.AppendUint16(req, kind)
	req = binary.NativeEndian.AppendUint16(req, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	req = binary.NativeEndian.AppendUint32(req, c.seq)
	req = append(binary.NativeEndian.AppendUint32(req, 0), body...)
	if err := unix.Sendto(c.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	interrupted := false
	for {
		buf := make([]byte, 1<<17)
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("recvfrom", err)
		}
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size, flags := int(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint16(b[6:])
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				return nil, fmt.Errorf("parse netlink message: length %d of %d", size, len(b))
			}
			m := message{kind: binary.NativeEndian.Uint16(b[4:]), data: b[unix.NLMSG_HDRLEN:size]}
			interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
			mine := binary.NativeEndian.Uint32(b[8:]) == c.seq
			b = b[min(len(b), (size+3)&^3):]
			switch {
			case !mine: // the rest of an earlier dump that failed
			case m.kind == unix.NLMSG_DONE && interrupted:
				return nil, errInterrupted
			case m.kind == unix.NLMSG_DONE:
				return msgs, nil
			case m.kind == unix.NLMSG_ERROR:
				return nil, fmt.Errorf("dump netlink table %#x: %w", kind, unix.Errno(-int32(binary.NativeEndian.Uint32(m.data))))
			default:
				msgs = append(msgs, m)
			}
		}
	}
}

// attrs splits attributes by number; of repeated ones the last stands. Flag bits of the number are dropped.
func attrs(b []byte) map[uint16][]byte {
	m := map[uint16][]byte{}
	eachAttr(b, func(kind uint16, data []byte) { m[kind] = data })
	return m
}

func eachAttr(b []byte, f func(kind uint16, data []byte)) {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&0x3fff, b[4:size])
		b = b[min(len(b), (size+3)&^3):]
	}
}

// attr is one attribute ready to send.
func attr(kind uint16, data []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(data)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), data...)
	return append(b, make([]byte, (4-len(data)%4)%4)...)
}

// text is a NUL-terminated string.
func text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// u32 is a number in the host's byte order; absent ones are 0.
func u32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}
