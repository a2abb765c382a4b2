// SPDX-License-Identifier: Apache-2.0

// Package client is the daemon's side of the keeper protocol.
//
// A Client holds one connection and makes a new one for ever when that one ends, starting the keeper pair if there is none.
// Requests under way are sent again on the next connection: every request is named by the process's id, and the keeper lets a
// repeated one join the first. Exits that happened meanwhile are asked for after each connect, so none is missed; some come twice.
//
// Neighbours: proto has the messages, keeper is the other end, launch writes the programs.
package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/proto"
)

// Options say where the keeper is.
type Options struct {
	// Socket is the path of the keeper's socket.
	Socket string
	// Start starts the keeper pair; it is called when nobody answers, and must be harmless when one runs. Nil: never.
	Start func(context.Context) error
	Log   *slog.Logger
}

// Client speaks to the keeper pair. Safe for concurrent use.
type Client struct {
	o     Options
	exits *exitQueue
	made  chan struct{}
	stop  context.CancelFunc
	done  chan struct{}

	// mu guards what follows.
	mu      sync.Mutex
	conn    *net.UnixConn // nil while there is none
	seq     uint64
	calls   map[uint64]*call
	closed  bool
	build   string        // of the keeper, from its Hello
	next    chan struct{} // closed at the next connection
	lastErr error
}

// call is a request under way.
type call struct {
	msg   proto.Message
	fds   []int      // duplicates, sent again if need be
	reply chan reply // nil: nobody waits
	part  reply      // of a Listed in several packets
}

// reply is an answer. Descriptors belong to whoever takes it.
type reply struct {
	msg   proto.Message
	procs []proto.Process
	fds   []int
	err   error
	next  <-chan struct{} // closed at the connection after the one that brought the answer
}

// New connects to the keeper, starting it if nobody answers. It gives up when ctx ends; after that, the client connects again by itself.
func New(ctx context.Context, o Options) (*Client, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	c := &Client{o: o, exits: newExitQueue(), made: make(chan struct{}, 1), stop: stop, done: make(chan struct{}), calls: map[uint64]*call{}, next: make(chan struct{})}
	first := c.next
	go c.run(run)
	select {
	case <-first:
		return c, nil
	case <-ctx.Done():
		err := context.Cause(ctx)
		c.mu.Lock()
		if c.lastErr != nil {
			err = c.lastErr
		}
		c.mu.Unlock()
		_ = c.Close()
		return nil, errs.Newf(errs.Unavailable, "connect to keeper %s: %w", o.Socket, err)
	}
}

// Close ends the connection; requests under way fail. The keeper and what it keeps go on.
func (c *Client) Close() error {
	c.stop()
	c.mu.Lock()
	c.closed = true
	if c.conn != nil {
		_ = c.conn.Close()
	}
	c.mu.Unlock()
	<-c.done
	return nil
}

// Exits gives the processes that ended, also those that did while there was no connection; some come twice. It is closed by Close.
func (c *Client) Exits() <-chan proto.Exited { return c.exits.out }

// Connections has an element after each connection that was made since it was looked at last. The keepers at the other end may be others, that
// know nothing of what the ones before kept: when both end at once.
func (c *Client) Connections() <-chan struct{} { return c.made }

// Build is the version of the keeper that answered last.
func (c *Client) Build() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.build
}

// Bounds of the wait between attempts to connect.
const (
	minRetry = 2 * time.Millisecond
	maxRetry = 200 * time.Millisecond
)

// run is the client's goroutine: it connects, reads until the connection ends, and begins again.
func (c *Client) run(ctx context.Context) {
	defer close(c.done)
	defer c.exits.close()
	for wait := minRetry; ctx.Err() == nil; {
		conn, build, err := c.dial(ctx)
		if err == nil {
			wait = minRetry
			err = c.serve(conn, build)
		}
		if ctx.Err() != nil {
			break
		}
		c.mu.Lock()
		c.lastErr = err
		c.mu.Unlock()
		c.o.Log.Debug("keeper connection ended", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, maxRetry)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for seq := range c.calls {
		c.finishLocked(seq, reply{err: errs.Newf(errs.Unavailable, "keeper client is closed")})
	}
}

// dial makes a connection and exchanges greetings.
func (c *Client) dial(ctx context.Context) (*net.UnixConn, string, error) {
	conn, err := connect(c.o.Socket)
	if c.o.Start != nil && (errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT)) {
		if err := c.o.Start(ctx); err != nil {
			return nil, "", fmt.Errorf("start keeper: %w", err)
		}
		conn, err = connect(c.o.Socket)
	}
	if err != nil {
		return nil, "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	build, err := greet(conn)
	if err != nil {
		return nil, "", errors.Join(err, conn.Close())
	}
	return conn, build, nil
}

// connect dials a socket, whose path may be longer than an address holds.
func connect(path string) (*net.UnixConn, error) {
	if len(path) >= len(unix.RawSockaddrUnix{}.Path) {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		path = "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + filepath.Base(path)
	}
	return net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
}

func greet(conn *net.UnixConn) (build string, err error) {
	if _, err := conn.Write(proto.Marshal(0, &proto.Hello{Version: proto.Version})); err != nil {
		return "", fmt.Errorf("greet keeper: %w", err)
	}
	b := make([]byte, 4096)
	n, err := conn.Read(b)
	if err != nil {
		return "", fmt.Errorf("greet keeper: %w", err)
	}
	_, m, err := proto.Unmarshal(b[:n])
	if err != nil {
		return "", fmt.Errorf("greet keeper: %w", err)
	}
	h, ok := m.(*proto.Hello)
	if !ok || h.Version != proto.Version {
		return "", fmt.Errorf("greet keeper: it speaks another version than %d: %+v", proto.Version, m)
	}
	return h.Build, nil
}

// serve uses a connection until it ends.
func (c *Client) serve(conn *net.UnixConn, build string) error {
	defer conn.Close()
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.conn, c.build = conn, build
	close(c.next)
	c.next = make(chan struct{})
	for seq, k := range c.calls {
		closeAll(k.part.fds)
		k.part = reply{}
		if k.reply == nil {
			delete(c.calls, seq) // an earlier connection's question; this one's comes next
			continue
		}
		c.sendLocked(seq, k)
	}
	// What ended while there was no connection.
	c.startLocked(&call{msg: &proto.List{}})
	c.mu.Unlock()
	select {
	case c.made <- struct{}{}:
	default:
	}
	err := c.read(conn)
	c.mu.Lock()
	c.conn = nil
	c.mu.Unlock()
	return err
}

func (c *Client) read(conn *net.UnixConn) error {
	b, oob := make([]byte, proto.MaxMessage), make([]byte, unix.CmsgSpace(4*proto.MaxFDs))
	for {
		n, oobn, flags, _, err := conn.ReadMsgUnix(b, oob)
		if err != nil {
			return err
		}
		fds, err := rights(oob[:oobn])
		if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
			err = unix.EMSGSIZE
		}
		if err != nil {
			closeAll(fds)
			return fmt.Errorf("read from keeper: %w", err)
		}
		seq, m, err := proto.Unmarshal(b[:n])
		if err != nil {
			closeAll(fds)
			return fmt.Errorf("read from keeper: %w", err)
		}
		c.deliver(seq, m, fds)
	}
}

func rights(oob []byte) ([]int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range msgs {
		if f, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, f...)
		}
	}
	return fds, nil
}

// deliver gives a message to whom it is for.
func (c *Client) deliver(seq uint64, m proto.Message, fds []int) {
	if e, ok := m.(*proto.Exited); ok {
		c.exits.push(*e)
		closeAll(fds)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.calls[seq]
	if k == nil {
		closeAll(fds)
		return
	}
	l, ok := m.(*proto.Listed)
	if !ok {
		c.finishLocked(seq, reply{msg: m, fds: fds})
		return
	}
	for _, p := range l.Processes {
		if p.Exited {
			c.exits.push(proto.Exited{ID: p.ID, Status: p.Status, Time: p.Time})
		}
	}
	k.part.procs, k.part.fds = append(k.part.procs, l.Processes...), append(k.part.fds, fds...)
	if !l.More {
		whole := k.part
		whole.msg, k.part = l, reply{}
		c.finishLocked(seq, whole)
	}
}

// finishLocked ends a call; a part of another answer than r is dropped. An answer that nobody waits for any more is closed by whoever gave up.
func (c *Client) finishLocked(seq uint64, r reply) {
	k := c.calls[seq]
	delete(c.calls, seq)
	closeAll(k.fds)
	closeAll(k.part.fds)
	if k.reply == nil {
		closeAll(r.fds)
		return
	}
	r.next = c.next
	k.reply <- r
}

func (c *Client) startLocked(k *call) uint64 {
	c.seq++
	c.calls[c.seq] = k
	c.sendLocked(c.seq, k)
	return c.seq
}

// sendLocked sends a request if there is a connection. An error shows as the connection's end to its reader.
func (c *Client) sendLocked(seq uint64, k *call) {
	if c.conn == nil {
		return
	}
	var oob []byte
	if len(k.fds) > 0 {
		oob = unix.UnixRights(k.fds...)
	}
	if _, _, err := c.conn.WriteMsgUnix(proto.Marshal(seq, k.msg), oob, nil); err != nil {
		_ = c.conn.Close()
	}
}

// ask makes a request and waits for the answer. The files are duplicated: the caller may close its own at any time.
func (c *Client) ask(ctx context.Context, m proto.Message, files ...*os.File) (reply, error) {
	k := &call{msg: m, reply: make(chan reply, 1)}
	for _, f := range files {
		// Fd makes the description blocking, which is what a container's end has to be.
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			closeAll(k.fds)
			return reply{}, fmt.Errorf("pass %s to the keeper: %w", f.Name(), err)
		}
		k.fds = append(k.fds, fd)
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		closeAll(k.fds)
		return reply{}, errs.Newf(errs.Unavailable, "keeper client is closed")
	}
	seq := c.startLocked(k)
	c.mu.Unlock()
	select {
	case r := <-k.reply:
		return r, r.refusal()
	case <-ctx.Done():
		c.mu.Lock()
		if c.calls[seq] == k {
			c.finishLocked(seq, reply{})
		}
		c.mu.Unlock()
		r := <-k.reply
		closeAll(r.fds)
		return reply{}, context.Cause(ctx)
	}
}

// refusal is the error of an Ack, or of the call itself.
func (r *reply) refusal() error {
	if r.err != nil {
		return r.err
	}
	a, ok := r.msg.(*proto.Ack)
	if !ok || a.Errno == 0 {
		return nil
	}
	err := &refusal{errno: syscall.Errno(a.Errno), text: a.Error}
	closeAll(r.fds)
	switch err.errno {
	case unix.ENOENT:
		return errs.As(errs.NotFound, err)
	case unix.EINVAL, unix.EBADF, unix.E2BIG, unix.EPERM:
		return errs.As(errs.Invalid, err)
	case unix.EBUSY, unix.EPIPE, unix.ENOTTY:
		return errs.As(errs.Precondition, err)
	case unix.EAGAIN:
		return errs.As(errs.Unavailable, err)
	case unix.ENOSPC, unix.EMFILE, unix.ENFILE, unix.ENOMEM:
		return errs.As(errs.Exhausted, err)
	default:
		return err
	}
}

// refusal is the keeper's own error.
type refusal struct {
	errno syscall.Errno
	text  string
}

func (e *refusal) Error() string { return "keeper: " + e.text }
func (e *refusal) Unwrap() error { return e.errno }

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
