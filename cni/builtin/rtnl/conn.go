// SPDX-License-Identifier: Apache-2.0

// Package rtnl is a small rtnetlink client over a socket that somebody else may have opened.
//
// A netlink socket belongs for ever to the network namespace it was opened in, whoever holds it. The keeper opens one inside each pod
// and passes it to the daemon, which configures the pod through it without ever entering the namespace. vishvananda/netlink can't
// take a foreign descriptor, so this package has its own request loop and uses that project's nl package for the message formats.
// Several requests travel in one datagram: the kernel executes them in order and acknowledges each.
//
// What it is not: a general client. Bridges, traffic control and listings outside the hot path use vishvananda/netlink.
package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// bufferSize is what one receive takes. The kernel cuts dumps into pieces of at most that; a single answer is far smaller, as statistics are
// not asked for.
const bufferSize = 8 << 10

// Conn is a NETLINK_ROUTE socket. Safe for concurrent use; requests are executed one batch at a time.
type Conn struct {
	file *os.File
	raw  syscall.RawConn
	own  bool

	mu  sync.Mutex // guards what is below, and the socket's conversation
	seq uint32
	buf []byte
}

// Error is a refusal by the kernel.
type Error struct {
	What  string     // what was asked for, as "verb noun"
	Errno unix.Errno // why not
	Text  string     // the kernel's own words, where it has some (extended acknowledgement)
}

func (e *Error) Error() string {
	if e.Text != "" {
		return fmt.Sprintf("%s: %v (%s)", e.What, e.Errno, e.Text)
	}
	return fmt.Sprintf("%s: %v", e.What, e.Errno)
}

// Unwrap gives the errno, so that errors.Is(err, unix.ENODEV) works.
func (e *Error) Unwrap() error { return e.Errno }

// Open opens a socket in this process's own network namespace.
func Open() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	c, err := Wrap(os.NewFile(uintptr(fd), "netlink"))
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	c.own = true
	return c, nil
}

// Wrap uses a NETLINK_ROUTE socket opened by somebody else. It stays theirs: Close does not close it.
func Wrap(f *os.File) (*Conn, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("use netlink socket: %w", err)
	}
	c := &Conn{file: f, raw: raw, buf: make([]byte, bufferSize)}
	var inner error
	err = raw.Control(func(fd uintptr) {
		for _, opt := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK, unix.NETLINK_GET_STRICT_CHK} {
			if inner = unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, opt, 1); inner != nil {
				return
			}
		}
	})
	if err := errors.Join(err, inner); err != nil {
		return nil, fmt.Errorf("use netlink socket: %w", err)
	}
	return c, nil
}

// Close closes a socket made by Open.
func (c *Conn) Close() error {
	if !c.own {
		return nil
	}
	return c.file.Close()
}

// Request is one message to the kernel. What says in an error what it was for.
type Request struct {
	What  string
	msg   *nl.NetlinkRequest
	allow unix.Errno
}

func newRequest(what string, typ, flags int, data ...nl.NetlinkRequestData) Request {
	msg := nl.NewNetlinkRequest(typ, flags)
	for _, d := range data {
		msg.AddData(d)
	}
	return Request{What: what, msg: msg}
}

// Allow makes errno count as success: EEXIST for something that may be there already, ENODEV for something that may be gone.
func (r Request) Allow(errno unix.Errno) Request {
	r.allow = errno
	return r
}

// Do sends the requests as one datagram and waits for all acknowledgements. Every request is executed, also after one that failed;
// the first failure is returned, as *Error.
func (c *Conn) Do(reqs ...Request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []byte
	first := c.seq + 1
	for _, r := range reqs {
		c.seq++
		r.msg.Seq = c.seq
		r.msg.Flags |= unix.NLM_F_ACK
		out = append(out, r.msg.Serialize()...)
	}
	var failed error
	failedAt, left := len(reqs), len(reqs)
	err := c.talk(out, func(m *syscall.NetlinkMessage) bool {
		i := int(m.Header.Seq - first)
		if i < 0 || i >= len(reqs) || m.Header.Type != unix.NLMSG_ERROR {
			return false
		}
		left--
		if e := ackError(m); e != nil && e.Errno != reqs[i].allow && i < failedAt {
			e.What = reqs[i].What
			failed, failedAt = e, i
		}
		return left == 0
	})
	if err != nil {
		return fmt.Errorf("%s: %w", reqs[0].What, err)
	}
	return failed
}

// anyType is for answers whose type has changed between kernels.
const anyType = 0

// query sends one request and collects the payloads of type typ: one for a plain get, all for a dump.
func (c *Conn) query(r Request, typ uint16) ([][]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	r.msg.Seq = c.seq
	var out [][]byte
	var failed error
	err := c.talk(r.msg.Serialize(), func(m *syscall.NetlinkMessage) bool {
		if m.Header.Seq != r.msg.Seq {
			return false
		}
		switch m.Header.Type {
		case unix.NLMSG_ERROR, unix.NLMSG_DONE:
			if e := ackError(m); e != nil {
				e.What = r.What
				failed = e
			}
			return true
		default:
			if m.Header.Type == typ || typ == anyType {
				out = append(out, append([]byte(nil), m.Data...))
			}
		}
		return m.Header.Flags&unix.NLM_F_MULTI == 0
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.What, err)
	}
	return out, failed
}

// talk sends out and hands each answer to take until that says it was the last. rtnetlink works in the sender's own context: when
// sendto returns the acknowledgements are queued, so no receive ever waits and a missing answer is an error, not a hang.
func (c *Conn) talk(out []byte, take func(*syscall.NetlinkMessage) bool) error {
	var inner error
	err := c.raw.Control(func(fd uintptr) {
		inner = unix.Sendto(int(fd), out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		for last := false; inner == nil && !last; {
			last, inner = c.receive(int(fd), take)
		}
	})
	return errors.Join(err, inner)
}

func (c *Conn) receive(fd int, take func(*syscall.NetlinkMessage) bool) (bool, error) {
	n, _, flags, from, err := unix.Recvmsg(fd, c.buf, nil, unix.MSG_DONTWAIT)
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("receive netlink answer: %w", err)
	}
	if flags&unix.MSG_TRUNC != 0 {
		return false, errors.New("receive netlink answer: larger than the buffer")
	}
	if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
		return false, nil // not from the kernel
	}
	msgs, err := syscall.ParseNetlinkMessage(c.buf[:n])
	if err != nil {
		return false, fmt.Errorf("parse netlink answer: %w", err)
	}
	for i := range msgs {
		if take(&msgs[i]) {
			return true, nil
		}
	}
	return false, nil
}

// ackError reads an NLMSG_ERROR or NLMSG_DONE; nil when it says success.
func ackError(m *syscall.NetlinkMessage) *Error {
	if len(m.Data) < 4 {
		return nil
	}
	code := int32(binary.NativeEndian.Uint32(m.Data))
	if code == 0 {
		return nil
	}
	e := &Error{Errno: unix.Errno(-code)}
	rest := m.Data[4:]
	if m.Header.Type == unix.NLMSG_ERROR {
		rest = rest[min(len(rest), unix.SizeofNlMsghdr):] // NETLINK_CAP_ACK: the header of the request, not its body
	}
	if m.Header.Flags&unix.NLM_F_ACK_TLVS == 0 {
		return e
	}
	attrs, err := nl.ParseRouteAttr(rest)
	if err != nil {
		return e
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.NLMSGERR_ATTR_MSG {
			e.Text = nl.BytesToString(a.Value)
		}
	}
	return e
}
