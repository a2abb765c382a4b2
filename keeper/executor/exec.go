// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/sys"
	"crishim.dev/proto"
)

// The executor: what runs in a child between clone and execve. The child is a plain fork of the zygote (zygote.go), which is one of a process
// with many threads, of which it has only one. It may therefore not use the Go runtime at all: every function here is nosplit and norace,
// allocates nothing, takes no lock and writes no pointer, since that might call the collector. All it needs lies in one private mapping.
//
// It is never a vfork: the parent's memory is not the child's to write, and a child that hangs in a mount must not hold up the parent.

// cloneArgs is the kernel's struct clone_args (CLONE_ARGS_SIZE_VER2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// cloneClearSighand is CLONE_CLEAR_SIGHAND (Linux 5.5): the child has no handlers, so signals may reach it at any time. Those that are ignored stay so.
const cloneClearSighand = 1 << 32

// ignorable are the signals that the keeper ignores, and those that the runtime leaves as it found them; it handles all others.
var ignorable = [...]uint8{
	uint8(unix.SIGHUP), uint8(unix.SIGINT), uint8(unix.SIGQUIT), uint8(unix.SIGTERM), uint8(unix.SIGPIPE),
	uint8(unix.SIGTSTP), uint8(unix.SIGTTIN), uint8(unix.SIGTTOU), uint8(unix.SIGCONT), 32, 33, 34,
}

// child is the child's memory.
type child struct {
	clone         cloneArgs
	pidfd, pidfd2 int32

	// Addresses in the mapped program.
	ops, numOps, data uintptr

	// fds are the program's descriptors by its index, -1 for none. Those that are there have the numbers from fds[FDReport] to lastFD.
	fds    [proto.FDPassed + proto.MaxPassed]int32
	lastFD uintptr
	nofile unix.Rlimit

	// end is the index of the op before which an aside (PseudoAside) ends; 0 for none. skip is how many ops are to be left out.
	end, skip uintptr
	pair      [2]int32

	regs   [proto.NumRegs]uintptr
	args   [6]uintptr
	eacces bool
	gate   [8]byte
	name   [16]byte

	ignored [len(ignorable)]uint8
	zero    sys.Sigaction
	mask    uint64

	// What reports are made of.
	note    Note
	iov     [2]uintptr
	msg     msghdr
	control control
}

// msghdr and control are the kernel's structs, with addresses that are no Go pointers.
type msghdr struct {
	name       uintptr
	nameLen    uint64
	iov        uintptr
	iovLen     uint64
	control    uintptr
	controlLen uint64
	flags      uint64
}

type control struct {
	length uint64
	level  int32
	typ    int32
	fd     int32
	_      int32
}

// enter makes the child its own: no descriptor, signal disposition, limit or name of the keeper is left; 0 to 2 stay occupied, by /dev/null, so
// that what the program opens doesn't get their numbers. Then it waits at the gate until it has been told of.
//
//go:nosplit
//go:norace
func (c *child) enter() {
	syscall.RawSyscall(unix.SYS_DUP3, 0, 2, 0)
	syscall.RawSyscall(unix.SYS_CLOSE_RANGE, 3, c.report()-1, 0)
	syscall.RawSyscall(unix.SYS_CLOSE_RANGE, c.lastFD+1, 1<<32-1, 0)
	syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(&c.name)), 0, 0, 0, 0)
	for i := uintptr(0); i < uintptr(len(c.ignored)); i++ {
		s := uintptr(*(*uint8)(unsafe.Add(unsafe.Pointer(&c.ignored), i)))
		syscall.RawSyscall6(unix.SYS_RT_SIGACTION, s, uintptr(unsafe.Pointer(&c.zero)), 0, 8, 0, 0)
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&c.mask)), 0, 8, 0, 0)
	syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&c.nofile)), 0, 0, 0)
	for {
		n, _, e := syscall.RawSyscall(unix.SYS_READ, c.report(), uintptr(unsafe.Pointer(&c.gate)), 8)
		if e == unix.EINTR {
			continue
		}
		if e != 0 || n == 0 {
			c.exit(1)
		}
		return
	}
}

// report is the child's end of its report socket.
//
//go:nosplit
//go:norace
func (c *child) report() uintptr { return uintptr(c.fds[proto.FDReport]) }

// pointer reads an address as a pointer. Storing addresses as numbers keeps the write barrier away.
//
//go:nosplit
//go:norace
func pointer(p *uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(p)) }

// run runs the program.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (c *child) run() {
	for i := uintptr(0); i < c.numOps; i++ {
		if i == c.end && i != 0 {
			c.exit(0)
		}
		o := (*proto.Op)(unsafe.Add(pointer(&c.ops), i*proto.OpSize))
		for a := 0; a < 6; a++ {
			v := uintptr(o.Arg[a])
			switch o.Kind[a] {
			case proto.Data:
				v += c.data
			case proto.Reg:
				v = c.regs[v%proto.NumRegs]
			case proto.FD:
				v = uintptr(*(*int32)(unsafe.Add(unsafe.Pointer(&c.fds), 4*v)))
			}
			c.args[a] = v
		}
		if skipped(o, c.args[5]) {
			if o.Result != proto.NoResult {
				c.regs[o.Result%proto.NumRegs] = ^uintptr(unix.EBADF - 1) // -EBADF
			}
			continue
		}
		r, e := c.do(o, i)
		if e != 0 {
			if !ignored(o, e) {
				c.fail(i, e)
			}
			if e == unix.EACCES && o.Flags&proto.FlagKeepEACCES != 0 {
				c.eacces = true
			}
			r = -uintptr(e)
		}
		i += c.skip
		c.skip = 0
		if o.Result != proto.NoResult {
			c.regs[o.Result%proto.NumRegs] = r
		}
	}
	c.fail(c.numOps, unix.ENOEXEC) // a program ends by execve, PseudoFail or PseudoExit
}

// skipped says whether o's condition does not hold.
//
//go:nosplit
//go:norace
func skipped(o *proto.Op, cond uintptr) bool {
	open := int(cond) >= 0
	return o.Flags&proto.FlagIf != 0 && !open || o.Flags&proto.FlagUnless != 0 && open
}

// do does one op with the arguments in c.args.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (c *child) do(o *proto.Op, index uintptr) (uintptr, syscall.Errno) {
	switch o.NR {
	case proto.PseudoStore32:
		*(*uint32)(unsafe.Add(pointer(&c.data), o.Arg[0])) = uint32(c.args[1])
	case proto.PseudoStore64:
		*(*uint64)(unsafe.Add(pointer(&c.data), o.Arg[0])) = uint64(c.args[1])
	case proto.PseudoClone:
		// clone(2), whose third argument receives the pidfd on all our architectures: seccomp filters refuse clone3.
		flags := c.args[0] | unix.CLONE_PARENT | unix.CLONE_PIDFD
		pid, _, e := syscall.RawSyscall6(unix.SYS_CLONE, flags, 0, uintptr(unsafe.Pointer(&c.pidfd2)), 0, 0, 0)
		if e != 0 || pid == 0 {
			return 0, e
		}
		c.tell(NoteCloned, index, uint32(pid), c.pidfd2)
		c.exit(0)
	case proto.PseudoAside:
		return c.aside(index)
	case proto.PseudoSend:
		if c.send(c.args[0], 0, index, 0, int32(c.args[1])) != 0 {
			c.exit(1)
		}
	case proto.PseudoReceive:
		return c.receive(c.args[0])
	case proto.PseudoReport:
		return 0, c.tell(NoteFD, index, uint32(c.args[0]), int32(c.args[1]))
	case proto.PseudoFail:
		e := syscall.Errno(c.args[0])
		if c.eacces {
			e = unix.EACCES
		}
		c.fail(index, e)
	case proto.PseudoExit:
		c.exit(c.args[0])
	default:
		r, _, e := syscall.RawSyscall6(uintptr(o.NR), c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
		return r, e
	}
	return 0, 0
}

// ignored says whether e does not fail the program.
//
//go:nosplit
//go:norace
func ignored(o *proto.Op, e syscall.Errno) bool {
	for i := 0; i < len(o.Ignore); i++ {
		if uintptr(o.Ignore[i]) == uintptr(e) {
			return true
		}
	}
	return false
}

// aside makes the process of a PseudoAside, and gives each its end of the socket between the two.
//
//go:nosplit
//go:norace
func (c *child) aside(index uintptr) (uintptr, syscall.Errno) {
	_, _, e := syscall.RawSyscall6(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0, uintptr(unsafe.Pointer(&c.pair)), 0, 0)
	if e != 0 {
		return 0, e
	}
	pid, _, e := syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_PARENT, 0, 0, 0, 0, 0)
	if e != 0 {
		return 0, e
	}
	own, other := c.pair[0], c.pair[1]
	if pid == 0 {
		own, other = other, own
		c.end = index + 1 + c.args[0]
	} else {
		c.tell(NoteAside, index, uint32(pid), -1)
		c.skip = c.args[0]
	}
	syscall.RawSyscall(unix.SYS_CLOSE, uintptr(other), 0, 0)
	return uintptr(own), 0
}

// receive waits for a packet and gives the descriptor that came with it.
//
//go:nosplit
//go:norace
func (c *child) receive(socket uintptr) (uintptr, syscall.Errno) {
	for {
		c.control.fd, c.msg.controlLen = -1, uint64(unsafe.Sizeof(c.control))
		n, _, e := syscall.RawSyscall(unix.SYS_RECVMSG, socket, uintptr(unsafe.Pointer(&c.msg)), unix.MSG_CMSG_CLOEXEC)
		if e == unix.EINTR {
			continue
		}
		if e != 0 || n == 0 {
			c.exit(1)
		}
		return uintptr(c.control.fd), 0
	}
}

// tell sends a note to the keeper, with a descriptor unless fd is negative.
//
//go:nosplit
//go:norace
func (c *child) tell(what uint32, index uintptr, value uint32, fd int32) syscall.Errno {
	return c.send(c.report(), what, index, value, fd)
}

// send sends a note through a socket, with a descriptor unless fd is negative.
//
//go:nosplit
//go:norace
func (c *child) send(socket uintptr, what uint32, index uintptr, value uint32, fd int32) syscall.Errno {
	c.note.What, c.note.Index, c.note.Value = what, uint32(index), value
	c.msg.controlLen = 0
	if fd >= 0 {
		c.control.fd = fd
		c.msg.controlLen = uint64(unsafe.Sizeof(c.control))
	}
	for {
		_, _, e := syscall.RawSyscall(unix.SYS_SENDMSG, socket, uintptr(unsafe.Pointer(&c.msg)), unix.MSG_NOSIGNAL)
		if e != unix.EINTR {
			return e
		}
	}
}

//go:nosplit
//go:norace
func (c *child) fail(index uintptr, e syscall.Errno) {
	c.tell(NoteFailed, index, uint32(e), -1)
	c.exit(1)
}

//go:nosplit
//go:norace
func (c *child) exit(status uintptr) {
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, status, 0, 0)
	}
}
