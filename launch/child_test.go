// SPDX-License-Identifier: Apache-2.0

package launch_test

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"

	"crishim.dev/proto"
)

// What the child writes to its report socket, as words.
const (
	reportFail = 1 + iota
	reportPID
	reportFD
)

// cloneArgs is struct clone_args as far as CLONE_INTO_CGROUP needs it.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// msghdr is struct msghdr with addresses that are numbers: a forked child writes no pointers, which may call the collector.
type msghdr struct {
	name, nameLen, iov, iovLen, control, controlLen, flags uintptr
}

// child is the state of a forked child. Everything is allocated before the fork.
type child struct {
	ops  []proto.Op
	data uintptr
	fds  []uintptr
	regs [proto.NumRegs]uintptr
	// words, iov, hdr and control make a message with a descriptor.
	words   [3]uint64
	iov     [2]uintptr
	hdr     msghdr
	control [24]byte
	pidfd   int32
	pair    [2]int32
	end     int
	skip    int
	kept    bool
	mask    uint64
}

// load prepares the program in mem for execution.
func (c *child) load(mem []byte, l proto.Layout, o order) {
	c.ops = unsafe.Slice((*proto.Op)(unsafe.Pointer(&mem[l.Ops])), l.NumOps)
	if l.DataLen > 0 {
		c.data = uintptr(unsafe.Pointer(&mem[l.Data]))
	}
	ne := binary.NativeEndian
	for i := range l.NumRelocs {
		w := mem[l.Data+int(ne.Uint32(mem[l.Relocs+4*i:])):]
		ne.PutUint64(w, ne.Uint64(w)+uint64(c.data))
	}
	c.fds = make([]uintptr, proto.FDPassed+o.Files)
	for i, fd := range o.Std {
		c.fds[proto.FDStdin+i] = uintptr(fd)
	}
	for i := range o.Files {
		c.fds[proto.FDPassed+i] = uintptr(o.First + i)
	}
	c.mask = ^uint64(0)
}

// spawn forks with all signals blocked and runs the program in the child, where nothing may call the runtime: that may have been about to
// stop this goroutine.
//
//go:nosplit
//go:noinline
//go:norace
func (c *child) spawn(args *cloneArgs) (uintptr, unix.Errno) {
	c.iov = [2]uintptr{uintptr(unsafe.Pointer(&c.words)), unsafe.Sizeof(c.words)}
	c.hdr = msghdr{iov: uintptr(unsafe.Pointer(&c.iov)), iovLen: 1}
	var old uint64
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_BLOCK, uintptr(unsafe.Pointer(&c.mask)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if errno != 0 || pid != 0 {
		unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
		return pid, errno
	}
	for i := 0; i < len(c.ops); i++ {
		if i == c.end && i > 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
		c.skip = 0
		c.step(i)
		i += c.skip
	}
	c.stop(len(c.ops), unix.ENOEXEC)
	return 0, 0
}

//go:nosplit
//go:norace
func (c *child) step(i int) {
	op := &c.ops[i]
	var a [6]uintptr
	for k := range a {
		v := uintptr(op.Arg[k])
		switch op.Kind[k] {
		case proto.Imm:
		case proto.Data:
			v += c.data
		case proto.Reg:
			v = c.regs[v]
		case proto.FD:
			v = c.fds[v]
		}
		a[k] = v
	}
	if open := int(a[5]) >= 0; op.Flags&proto.FlagIf != 0 && !open || op.Flags&proto.FlagUnless != 0 && open {
		if op.Result != proto.NoResult {
			c.regs[op.Result] = ^uintptr(unix.EBADF - 1)
		}
		return
	}
	r, errno := c.call(i, op.NR, &a)
	if errno != 0 {
		ignored := false
		for _, e := range op.Ignore {
			ignored = ignored || unix.Errno(e) == errno
		}
		if !ignored {
			c.stop(i, errno)
		}
		if op.Flags&proto.FlagKeepEACCES != 0 && errno == unix.EACCES {
			c.kept = true
		}
		r = -uintptr(errno)
	}
	if op.Result != proto.NoResult {
		c.regs[op.Result] = r
	}
}

//go:nosplit
//go:norace
func (c *child) call(i int, nr uint32, a *[6]uintptr) (uintptr, unix.Errno) {
	switch nr {
	case proto.PseudoClone:
		flags := a[0] | unix.CLONE_PARENT | unix.CLONE_PIDFD
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, flags, 0, uintptr(unsafe.Pointer(&c.pidfd)), 0, 0, 0)
		if errno != 0 || pid == 0 {
			return 0, errno
		}
		c.report(reportPID, uint64(pid), 0, -1)
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	case proto.PseudoAside:
		unix.RawSyscall6(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0, uintptr(unsafe.Pointer(&c.pair)), 0, 0)
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_PARENT, 0, 0, 0, 0, 0)
		if errno != 0 {
			return 0, errno
		}
		mine := 0
		if pid == 0 {
			mine, c.end = 1, i+1+int(a[0])
		} else {
			c.skip = int(a[0])
		}
		unix.RawSyscall(unix.SYS_CLOSE, uintptr(c.pair[1-mine]), 0, 0)
		return uintptr(c.pair[mine]), 0
	case proto.PseudoSend:
		return 0, c.send(a[0], int32(a[1]))
	case proto.PseudoReceive:
		c.hdr.control, c.hdr.controlLen = uintptr(unsafe.Pointer(&c.control)), unsafe.Sizeof(c.control)
		n, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, a[0], uintptr(unsafe.Pointer(&c.hdr)), unix.MSG_CMSG_CLOEXEC)
		if n == 0 || errno != 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 112, 0, 0)
		}
		return uintptr(*(*int32)(unsafe.Pointer(&c.control[16]))), 0
	case proto.PseudoReport:
		return 0, c.report(reportFD, uint64(a[0]), 0, int32(a[1]))
	case proto.PseudoFail:
		if c.kept {
			return 0, unix.EACCES
		}
		return 0, unix.Errno(a[0])
	case proto.PseudoExit:
		unix.RawSyscall(unix.SYS_EXIT_GROUP, a[0], 0, 0)
	}
	r, _, errno := unix.RawSyscall6(uintptr(nr), a[0], a[1], a[2], a[3], a[4], a[5])
	return r, errno
}

// report sends three words, and fd unless it is -1.
//
//go:nosplit
//go:norace
func (c *child) report(kind, v, w uint64, fd int32) unix.Errno {
	c.words[0], c.words[1], c.words[2] = kind, v, w
	return c.send(c.fds[proto.FDReport], fd)
}

// send sends the words through a socket.
//
//go:nosplit
//go:norace
func (c *child) send(socket uintptr, fd int32) unix.Errno {
	c.hdr.control, c.hdr.controlLen = 0, 0
	if fd >= 0 {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&c.control))
		h.Len, h.Level, h.Type = 20, unix.SOL_SOCKET, unix.SCM_RIGHTS
		*(*int32)(unsafe.Pointer(&c.control[16])) = fd
		c.hdr.control, c.hdr.controlLen = uintptr(unsafe.Pointer(&c.control)), unsafe.Sizeof(c.control)
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, socket, uintptr(unsafe.Pointer(&c.hdr)), unix.MSG_NOSIGNAL)
	return errno
}

//go:nosplit
//go:norace
func (c *child) stop(op int, errno unix.Errno) {
	c.report(reportFail, uint64(op), uint64(errno), -1)
	unix.RawSyscall(unix.SYS_EXIT_GROUP, 111, 0, 0)
}
