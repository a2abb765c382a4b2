// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"crishim.dev/proto"
)

// order is what the zygote is asked to start. Its descriptors are the program, the child's end of the report socket, its ends of the stdio that
// there is, and the passed ones.
type order struct {
	flags  uint64
	cgroup int32 // index among the passed ones, or -1
	stdio  [3]bool
	passed int32
	size   int64 // of the program
	layout proto.Layout
	nofile unix.Rlimit
}

// newOrder checks a program and the request it came with. The program must be sealed: what has been checked is what runs.
func newOrder(program int, e *ends, passed []int, s *proto.Spawn, nofile unix.Rlimit) (*order, []int, error) {
	if len(passed) > proto.MaxPassed {
		return nil, nil, at("pass descriptors", unix.E2BIG)
	}
	o := &order{flags: s.CloneFlags | unix.CLONE_PIDFD | cloneClearSighand, cgroup: s.Cgroup, passed: int32(len(passed)), nofile: nofile}
	const refused = unix.CLONE_VM | unix.CLONE_FILES | unix.CLONE_FS | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_VFORK | unix.CLONE_SETTLS | unix.CLONE_UNTRACED | 0xff
	if o.flags&refused != 0 {
		return nil, nil, at("clone flags", unix.EINVAL)
	}
	o.flags |= unix.CLONE_PARENT // the zygote is not the parent of anything
	if s.Cgroup >= 0 {
		if int(s.Cgroup) >= len(passed) {
			return nil, nil, at("cgroup", unix.EBADF)
		}
		o.flags |= unix.CLONE_INTO_CGROUP
	}
	var err error
	if o.size, o.layout, err = checkProgram(program, proto.FDPassed+len(passed)); err != nil {
		return nil, nil, err
	}
	fds := []int{program, e.report}
	for i, fd := range [3]int{e.stdin, e.stdout, e.stderr} {
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
		return 0, l, at("program is not sealed", unix.EPERM)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, l, at("read program", err)
	}
	if st.Size < proto.HeaderSize || st.Size > 2*proto.MaxData {
		return 0, l, at("check program", unix.E2BIG)
	}
	code, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return 0, l, at("read program", err)
	}
	defer unix.Munmap(code) //nolint:errcheck // it is mapped
	if l, err = proto.Check(code, numFDs); err != nil {
		return 0, l, &stageError{err.Error(), unix.EINVAL}
	}
	return st.Size, l, nil
}

// bytesOf is the memory of a value that holds no pointers.
func bytesOf[T any](v *T) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)) }
