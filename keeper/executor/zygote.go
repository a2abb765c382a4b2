// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/sys"
	"crishim.dev/proto"
)

// The zygote is a child of the younger, forked when that one was new and small, which does nothing but clone: each child is made from its few pages and three
// descriptors (CLONE_PARENT: the younger's child all the same), where a fork of the younger itself would copy page tables, then copy
// pages on both sides, and take and drop a reference of every descriptor of every container. It runs by the executor's rules.
//
// It ends when the younger's end of its socket is gone. If it ends before that, the launch under way fails for another try, and the next one
// begins with a new zygote.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

// zygoteName is the zygote's name (comm), by which an elder knows the one of a dead younger.
const zygoteName = "shim-zygote"

// NamedZygote goes by the name. A child that was killed before it changed it is taken for one too: to an elder that child is nobody, since its
// launch has not happened.
func NamedZygote(pid int32) bool {
	st, err := sys.ReadStat(pid)
	return err == nil && st.Comm == zygoteName
}

const (
	zygoteSocket = 3 // its only descriptor above /dev/null
	maxOrderFDs  = 5 + proto.MaxPassed
)

// zygote is the zygote's memory, a private mapping.
type zygote struct {
	name  [16]byte
	order Order
	iov   [2]uintptr
	msg   msghdr
	in    struct {
		length     uint64
		level, typ int32
		fds        [maxOrderFDs + 1]int32
	}
	answer answer
	out    control
	child  child
}

// answer is what becomes of an order; with the pidfd if there is a process.
type answer struct{ pid, errno int32 }

// Nursery is the younger's end. Safe for concurrent use.
type Nursery struct {
	// mu lets one order through at a time, and guards fd.
	mu sync.Mutex
	fd int // -1: there is no zygote
	// pids are the zygote and the one before, which may not have been reaped.
	pids [2]atomic.Int32
}

// CloneError is the kernel's refusal of the process itself.
type CloneError struct{ Errno syscall.Errno }

func (e *CloneError) Error() string { return "clone: " + e.Errno.Error() }

// Knows says whether pid is a zygote of this younger.
func (n *Nursery) Knows(pid int32) bool { return n.pids[0].Load() == pid || n.pids[1].Load() == pid }

// Start makes the first zygote. It is as small as the process is then.
func (n *Nursery) Start() error {
	n.fd = -1
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return sys.At("make zygote's socket", err)
	}
	defer unix.Close(pair[1])
	m, err := unix.Mmap(-1, 0, int(unsafe.Sizeof(zygote{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		unix.Close(pair[0])
		return sys.At("map zygote", err)
	}
	defer unix.Munmap(m)
	z := (*zygote)(unsafe.Pointer(&m[0]))
	z.prepare()
	pid, e := fork(z, uintptr(pair[1]))
	if e != 0 {
		unix.Close(pair[0])
		return sys.At("fork zygote", e)
	}
	n.fd = pair[0]
	n.pids[1].Store(n.pids[0].Load())
	n.pids[0].Store(int32(pid))
	return nil
}

// Place has an order carried out. EAGAIN: the zygote has died over it.
func (n *Nursery) Place(o *Order, fds []int) (pid, pidfd int, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fd < 0 {
		if err := n.Start(); err != nil {
			return 0, -1, err
		}
	}
	err = sys.Retry(func() error { return unix.Sendmsg(n.fd, bytesOf(o), unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL) })
	var a answer
	var got int
	var received []int
	if err == nil {
		var oob [64]byte
		got, received, err = sys.Receive(n.fd, bytesOf(&a), oob[:], unix.MSG_WAITALL)
	}
	if err != nil || got != int(unsafe.Sizeof(a)) || a.errno == 0 && len(received) != 1 {
		sys.CloseAll(received)
		unix.Close(n.fd)
		n.fd = -1
		return 0, -1, sys.At("the zygote has ended", unix.EAGAIN)
	}
	if a.errno != 0 {
		sys.CloseAll(received)
		return 0, -1, &CloneError{syscall.Errno(a.errno)}
	}
	return int(a.pid), received[0], nil
}

// prepare fills in what never changes. Addresses stay valid in the zygote, whose memory is a copy.
func (z *zygote) prepare() {
	copy(z.name[:], zygoteName)
	z.iov = [2]uintptr{}
	c := &z.child
	copy(c.name[:], "shim-keeper")
	c.ignored = ignorable
	c.iov = [2]uintptr{uintptr(unsafe.Pointer(&c.note)), noteSize}
	c.control = control{length: unix.SizeofCmsghdr + 4, level: unix.SOL_SOCKET, typ: unix.SCM_RIGHTS}
	c.msg = msghdr{iov: uintptr(unsafe.Pointer(&c.iov)), iovLen: 1, control: uintptr(unsafe.Pointer(&c.control))}
	z.out = c.control
}

// fork makes the zygote, in which it never returns.
//
//go:noinline
//go:norace
//go:nocheckptr
func fork(z *zygote, socket uintptr) (int, syscall.Errno) {
	z.child.clone.flags = cloneClearSighand
	beforeFork()
	pid, _, e := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&z.child.clone)), unsafe.Sizeof(z.child.clone), 0)
	if e != 0 || pid != 0 {
		afterFork()
		return int(pid), e
	}
	syscall.RawSyscall(unix.SYS_DUP3, 0, 2, 0)
	syscall.RawSyscall(unix.SYS_DUP3, socket, zygoteSocket, 0)
	z.dropFDs()
	syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(&z.name)), 0, 0, 0, 0)
	z.serve()
	return 0, 0
}

// serve carries out orders. Signals stay blocked, as they were for the fork.
//
//go:nosplit
//go:norace
func (z *zygote) serve() {
	for {
		z.iov[0], z.iov[1] = uintptr(unsafe.Pointer(&z.order)), unsafe.Sizeof(z.order)
		z.msg.iov, z.msg.iovLen = uintptr(unsafe.Pointer(&z.iov)), 1
		z.msg.control, z.msg.controlLen = uintptr(unsafe.Pointer(&z.in)), uint64(unsafe.Sizeof(z.in))
		n, _, e := syscall.RawSyscall(unix.SYS_RECVMSG, zygoteSocket, uintptr(unsafe.Pointer(&z.msg)), unix.MSG_CMSG_CLOEXEC)
		if e == unix.EINTR {
			continue
		}
		if e != 0 || n != unsafe.Sizeof(z.order) {
			z.child.exit(0)
		}
		z.answer.pid = 0
		z.answer.errno = int32(z.start())
		z.reply()
		z.dropFDs()
	}
}

//go:nosplit
//go:norace
func (z *zygote) dropFDs() {
	syscall.RawSyscall(unix.SYS_CLOSE_RANGE, zygoteSocket+1, 1<<32-1, 0)
}

// reply sends the answer, with the pidfd.
//
//go:nosplit
//go:norace
func (z *zygote) reply() {
	z.iov[0], z.iov[1] = uintptr(unsafe.Pointer(&z.answer)), unsafe.Sizeof(z.answer)
	z.msg.control, z.msg.controlLen = uintptr(unsafe.Pointer(&z.out)), 0
	if z.answer.errno == 0 {
		z.out.fd = z.child.pidfd
		z.msg.controlLen = uint64(unsafe.Sizeof(z.out))
	}
	for {
		_, _, e := syscall.RawSyscall(unix.SYS_SENDMSG, zygoteSocket, uintptr(unsafe.Pointer(&z.msg)), unix.MSG_NOSIGNAL)
		if e != unix.EINTR {
			return
		}
	}
}

// start maps the program and makes the child.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (z *zygote) start() syscall.Errno {
	c, o := &z.child, &z.order
	if e := z.takeFDs(); e != 0 {
		return e
	}
	base, _, e := syscall.RawSyscall6(unix.SYS_MMAP, 0, uintptr(o.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE, uintptr(z.in.fds[0]), 0)
	if e != 0 {
		return e
	}
	c.ops, c.numOps, c.data = base+uintptr(o.layout.Ops), uintptr(o.layout.NumOps), base+uintptr(o.layout.Data)
	relocs := base + uintptr(o.layout.Relocs)
	for i := uintptr(0); i < uintptr(o.layout.NumRelocs); i++ {
		word := (*uint64)(unsafe.Add(pointer(&c.data), *(*uint32)(unsafe.Add(pointer(&relocs), 4*i))))
		*word += uint64(c.data)
	}
	c.nofile = o.nofile
	c.clone.flags = o.flags
	c.clone.pidfd = uint64(uintptr(unsafe.Pointer(&c.pidfd)))
	pid, _, e := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&c.clone)), unsafe.Sizeof(c.clone), 0)
	if e == 0 && pid == 0 {
		c.enter()
		c.run()
	}
	syscall.RawSyscall(unix.SYS_MUNMAP, base, uintptr(o.size), 0)
	z.answer.pid = int32(pid)
	return e
}

// takeFDs numbers the received descriptors for the program. The kernel gives the lowest free numbers in order, and nothing else is open.
//
//go:nosplit
//go:norace
func (z *zygote) takeFDs() syscall.Errno {
	c, o := &z.child, &z.order
	want := int32(2) + o.passed
	for i := 0; i < len(o.stdio); i++ {
		if o.stdio[i] {
			want++
		}
	}
	got := int32(0)
	if z.msg.controlLen >= unix.SizeofCmsghdr {
		got = int32((z.in.length - unix.SizeofCmsghdr) / 4)
	}
	if got != want || z.in.fds[0] != zygoteSocket+1 {
		return unix.EMFILE
	}
	next := int32(zygoteSocket + 2)
	c.fds[proto.FDReport] = next
	for i := uintptr(0); i < 3; i++ {
		fd := int32(-1)
		if *(*bool)(unsafe.Add(unsafe.Pointer(&o.stdio), i)) {
			next++
			fd = next
		}
		*(*int32)(unsafe.Add(unsafe.Pointer(&c.fds), 4*(proto.FDStdin+i))) = fd
	}
	c.clone.cgroup = 0
	if o.cgroup >= 0 {
		c.clone.cgroup = uint64(next + 1 + o.cgroup)
	}
	for i := uintptr(0); i < uintptr(o.passed); i++ {
		next++
		*(*int32)(unsafe.Add(unsafe.Pointer(&c.fds), 4*(proto.FDPassed+i))) = next
	}
	c.lastFD = uintptr(next)
	return 0
}
