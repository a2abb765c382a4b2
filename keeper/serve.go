// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"golang.org/x/sys/unix"

	"crishim.dev/keeper/sys"
	"crishim.dev/proto"
)

// door accepts connections.
type door struct{ y *younger }

func (d door) Ready(uint32) {
	y := d.y
	for {
		fd, _, err := unix.Accept4(fdListener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err != nil {
			if err != unix.EAGAIN && err != unix.EINTR && err != unix.ECONNABORTED {
				y.log.failed("accept", err)
			}
			return
		}
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil || cred.Uid != 0 {
			unix.Close(fd)
			continue
		}
		c := &conn{y: y, wire: wire{fd: fd}}
		y.mu.Lock()
		y.conns[c] = struct{}{}
		y.mu.Unlock()
		if y.poll.Add(fd, unix.EPOLLIN, c) != nil {
			y.mu.Lock()
			c.closeLocked()
			y.mu.Unlock()
		}
	}
}

// conn is a connection to the daemon.
type conn struct {
	y *younger
	// wire and the rest are guarded by y.mu; only the poller's goroutine reads and closes.
	wire
	greeted bool
	broken  bool // an answer could not be sent; the poller's goroutine closes it
	closed  bool
}

func (c *conn) Ready(events uint32) {
	y := c.y
	for {
		seq, m, fds, err := y.in.receive(c.fd)
		y.mu.Lock()
		if events&unix.EPOLLOUT != 0 && c.flush() != nil {
			c.broken = true
		}
		if err == unix.EAGAIN && !c.broken { //nolint:errorlint // bare errno
			c.armLocked()
			y.mu.Unlock()
			return
		}
		if err != nil || c.broken || !c.greetLocked(m) {
			sys.CloseAll(fds)
			c.closeLocked()
			y.mu.Unlock()
			return
		}
		y.mu.Unlock()
		y.handle(&request{c: c, seq: seq, fds: fds}, m)
	}
}

func (c *conn) armLocked() {
	if len(c.out) > 0 {
		c.y.poll.Arm(c.fd, unix.EPOLLIN|unix.EPOLLOUT)
	} else {
		c.y.poll.Arm(c.fd, unix.EPOLLIN)
	}
}

// greetLocked answers Hello, which comes first, and refuses other versions by closing.
func (c *conn) greetLocked(m proto.Message) bool {
	h, ok := m.(*proto.Hello)
	if c.greeted {
		return !ok
	}
	if !ok {
		return false
	}
	c.greeted = true
	c.sendLocked(0, &proto.Hello{Version: proto.Version, Build: c.y.build})
	return h.Version == proto.Version
}

func (c *conn) closeLocked() {
	if !c.closed {
		c.closed = true
		c.y.poll.Del(c.fd)
		c.close()
		delete(c.y.conns, c)
	}
}

// sendLocked sends or queues a message. A connection that can't take it is closed by the poller's goroutine, and the daemon connects again.
func (c *conn) sendLocked(seq uint64, m proto.Message, fds ...int) {
	if c.closed || c.broken {
		return
	}
	if c.send(proto.Marshal(seq, m), fds) != nil {
		c.broken = true
		unix.Shutdown(c.fd, unix.SHUT_RDWR) //nolint:errcheck // wakes the poller
		return
	}
	if len(c.out) > 0 {
		c.armLocked()
	}
}

// broadcastLocked sends an event to every connection.
func (y *younger) broadcastLocked(m proto.Message) {
	for c := range y.conns {
		if c.greeted {
			c.sendLocked(0, m)
		}
	}
}

// ack answers a request that has no answer of its own, with descriptors.
func (y *younger) ack(c *conn, seq uint64, err error, fds ...int) {
	y.mu.Lock()
	defer y.mu.Unlock()
	c.ackLocked(seq, err, fds...)
}

func (c *conn) ackLocked(seq uint64, err error, fds ...int) {
	a := &proto.Ack{}
	if err != nil {
		a.Errno, a.Error = uint32(sys.Errno(err)), err.Error()
	}
	c.sendLocked(seq, a, fds...)
}

// request is one message that wants an answer. Whoever handles it closes the descriptors.
type request struct {
	c   *conn
	seq uint64
	fds []int
}

// take gives the caller one descriptor of the request, or -1.
func (r *request) take(i int) int {
	if i >= len(r.fds) {
		return -1
	}
	fd := r.fds[i]
	r.fds[i] = -1
	return fd
}

func (r *request) closeFDs() {
	for _, fd := range r.fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	r.fds = nil
}

// handle does what a message asks for. It runs in the poller's goroutine: what takes time goes elsewhere.
func (y *younger) handle(r *request, m proto.Message) {
	if s, ok := m.(*proto.Spawn); ok {
		y.spawn(r, s)
		return
	}
	defer r.closeFDs()
	y.mu.Lock()
	defer y.mu.Unlock()
	var err error
	switch m := m.(type) {
	case *proto.List:
		y.listLocked(r)
		return
	case *proto.Release:
		err = y.releaseLocked(r, m.ID)
	case *proto.Reopen:
		err = y.reopenLocked(r, m.ID)
	case *proto.Attach:
		err = y.attachLocked(r, m)
	case *proto.TTY:
		err = y.ttyLocked(r, m.ID)
	case *proto.Forget:
		err = y.forgetLocked(r, m.ID)
	case *proto.Upgrade:
		err = y.upgradeLocked(r)
	default:
		err = unix.EBADMSG
	}
	if err != errLater { //nolint:errorlint // a sentinel, never wrapped
		r.c.ackLocked(r.seq, err)
	}
}

// errLater says that the request will be answered by someone else, or has been.
var errLater error = unix.EINPROGRESS

// findLocked gives a process by its id.
func (y *younger) findLocked(id string) (*proc, error) {
	if r := y.records[id]; r != nil {
		return r.proc, nil
	}
	return nil, sys.At("find process "+id, unix.ENOENT)
}

// perListed bounds the processes of one packet, whose descriptors must fit too.
const perListed = 128

func (y *younger) listLocked(r *request) {
	l, fds := &proto.Listed{}, []int(nil)
	for _, rec := range y.records {
		if rec.PID == 0 || rec.Flags&proto.KeepRun != 0 || rec.proc.slot.failed() {
			continue
		}
		e := proto.Process{ID: rec.ID, PID: rec.PID, StartTime: rec.StartTime}
		if e.StartTime == 0 { // its launch is under way
			st, _ := sys.ReadStat(rec.PID)
			e.StartTime = st.Start
		}
		if s := rec.proc.slot; rec.proc.announced {
			e.Exited, e.Status, e.Time = true, s.exitStatus, s.exitTime
		} else {
			fds = append(fds, rec.fd(proto.HeldPIDFD, 0))
		}
		if l.Processes = append(l.Processes, e); len(l.Processes) == perListed {
			l.More = true
			r.c.sendLocked(r.seq, l, fds...)
			l, fds = &proto.Listed{}, nil
		}
	}
	r.c.sendLocked(r.seq, l, fds...)
}

func (y *younger) reopenLocked(r *request, id string) error {
	p, err := y.findLocked(id)
	if err != nil {
		return err
	}
	switch {
	case p.pump == nil:
		return sys.At("reopen log of "+id, unix.EAGAIN)
	case len(r.fds) != 1:
		return sys.At("reopen log of "+id, unix.EBADF)
	}
	c, seq := r.c, r.seq
	if err := p.pump.Reopen(r.take(0), func(err error) { y.ack(c, seq, sys.At("reopen log of "+id, err)) }); err != nil {
		return sys.At("reopen log of "+id, err)
	}
	return errLater
}

func (y *younger) attachLocked(r *request, m *proto.Attach) error {
	p, err := y.findLocked(m.ID)
	if err != nil {
		return err
	}
	if p.pump == nil {
		return sys.At("attach to "+m.ID, unix.EAGAIN)
	}
	in, next := -1, 0
	if m.Stdin {
		if in, err = y.stdinLocked(p.rec); err != nil {
			return sys.At("attach to stdin of "+m.ID, err)
		}
		defer unix.Close(in)
	}
	for i, want := range [2]bool{m.Stdout, m.Stderr} {
		if !want {
			continue
		}
		fd := r.take(next)
		next++
		if fd < 0 {
			return sys.At("attach to "+m.ID, unix.EBADF)
		}
		if err := p.pump.Attach(i, fd); err != nil {
			return sys.At("attach to "+m.ID, err)
		}
	}
	if in >= 0 {
		r.c.ackLocked(r.seq, nil, in)
		return errLater
	}
	return nil
}

// stdinLocked gives a client what it writes to: the pty's master, or an end of the FIFO of its own. A process with StdinOnce
// gives away the only write end, so that the end of the client is the end of input, however the client ends.
func (y *younger) stdinLocked(r *record) (fd int, err error) {
	if pty := r.fd(proto.HeldPTY, 0); pty >= 0 {
		return sys.Dup(pty)
	}
	held := r.fd(proto.HeldStdin, 0)
	if held < 0 {
		return -1, unix.EPIPE
	}
	if r.Flags&proto.KeepStdinOnce != 0 {
		fd, err := sys.Dup(held)
		if err == nil {
			y.keepLocked(r, func(k *proto.Keep) { k.Drop = []proto.Held{{Kind: proto.HeldStdin}} })
		}
		return fd, err
	}
	return unix.Openat(fdDir, r.ID+"/"+fifoNames[0], unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
}

func (y *younger) ttyLocked(r *request, id string) error {
	p, err := y.findLocked(id)
	if err != nil {
		return err
	}
	pty := p.rec.fd(proto.HeldPTY, 0)
	if pty < 0 {
		return sys.At("find terminal of "+id, unix.ENOTTY)
	}
	r.c.ackLocked(r.seq, nil, pty)
	return errLater
}

// forgetLocked ends the keeping of a process that has exited, or that still waits at its gate.
func (y *younger) forgetLocked(r *request, id string) error {
	rec := y.records[id]
	if rec == nil {
		if validID(id) {
			removeProcess(id)
		}
		return nil
	}
	p := rec.proc
	switch {
	case p.launch != nil && rec.Flags&proto.KeepGated != 0:
		p.forgets = append(p.forgets, *r)
		unix.PidfdSendSignal(rec.fd(proto.HeldPIDFD, 0), unix.SIGKILL, nil, 0) //nolint:errcheck // its end is awaited
		return errLater
	case p.launch != nil, p.slot.exited.Load() == 0:
		return sys.At("forget "+id, unix.EBUSY)
	}
	p.forgets = append(p.forgets, *r)
	if p.pump != nil {
		p.pump.Close()
	} else {
		y.forgottenLocked(p)
	}
	return errLater
}
