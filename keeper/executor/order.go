// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/sys"
	"crishim.dev/proto"
)

// Order is what the zygote is asked to start. Its descriptors are the program, the child's end of the report socket, its ends of the stdio that
// there is, and the passed ones.
type Order struct {
	flags  uint64
	cgroup int32 // index among the passed ones, or -1
	stdio  [3]bool
	passed int32
	size   int64 // of the program
	layout proto.Layout
	nofile unix.Rlimit
}

// Ends are the container's ends of its stdio, and of the report socket; -1 where there is none.
type Ends struct{ Report, Stdin, Stdout, Stderr int }

// Close closes those that are there.
func (e *Ends) Close() {
	for _, fd := range []*int{&e.Report, &e.Stdin, &e.Stdout, &e.Stderr} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// NewOrder checks a program and the request it came with. The program must be sealed: what has been checked is what runs.
func NewOrder(program int, e *Ends, passed []int, s *proto.Spawn, nofile unix.Rlimit) (*Order, []int, error) {
	if len(passed) > proto.MaxPassed {
		return nil, nil, sys.At("pass descriptors", unix.E2BIG)
	}
	o := &Order{flags: s.CloneFlags | unix.CLONE_PIDFD | cloneClearSighand, cgroup: s.Cgroup, passed: int32(len(passed)), nofile: nofile}
	const refused = unix.CLONE_VM | unix.CLONE_FILES | unix.CLONE_FS | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_VFORK | unix.CLONE_SETTLS | unix.CLONE_UNTRACED | 0xff
	if o.flags&refused != 0 {
		return nil, nil, sys.At("clone flags", unix.EINVAL)
	}
	o.flags |= unix.CLONE_PARENT // the zygote is not the parent of anything
	if s.Cgroup >= 0 {
		if int(s.Cgroup) >= len(passed) {
			return nil, nil, sys.At("cgroup", unix.EBADF)
		}
		o.flags |= unix.CLONE_INTO_CGROUP
	}
	var err error
	if o.size, o.layout, err = checkProgram(program, proto.FDPassed+len(passed)); err != nil {
		return nil, nil, err
	}
	fds := []int{program, e.Report}
	for i, fd := range [3]int{e.Stdin, e.Stdout, e.Stderr} {
		if o.stdio[i] = fd >= 0; o.stdio[i] {
			fds = append(fds, fd)
		}
	}
	return o, append(fds, passed...), nil
}

func checkProgram(fd, numFDs int) (size int64, l proto.Layout, err error) {
	const needed = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&needed != needed {
		return 0, l, sys.At("program is not sealed", unix.EPERM)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, l, sys.At("read program", err)
	}
	if st.Size < proto.HeaderSize || st.Size > 2*proto.MaxData {
		return 0, l, sys.At("check program", unix.E2BIG)
	}
	code, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return 0, l, sys.At("read program", err)
	}
	defer unix.Munmap(code) //nolint:errcheck // it is mapped
	if l, err = proto.Check(code, numFDs); err != nil {
		return 0, l, sys.At(err.Error(), unix.EINVAL)
	}
	return st.Size, l, nil
}

// bytesOf is the memory of a value that holds no pointers.
func bytesOf[T any](v *T) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)) }
