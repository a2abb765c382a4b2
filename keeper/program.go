// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"crishim.dev/proto"
)

// program is a launch program in memory, with the child's block before it.
type program struct {
	child *child
	block []byte
	code  []byte
}

// mapProgram maps and checks a program. It must be sealed: what has been checked is what runs, and the mapping stays whole.
func mapProgram(fd, numFDs int) (*program, error) {
	const needed = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&needed != needed {
		return nil, at("map program", unix.EPERM)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, at("map program", err)
	}
	if st.Size < proto.HeaderSize || st.Size > 2*proto.MaxData || numFDs > maxChildFDs {
		return nil, at("check program", unix.E2BIG)
	}
	code, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return nil, at("map program", err)
	}
	p := &program{code: code}
	layout, err := proto.Check(code, numFDs)
	if err != nil {
		p.unmap()
		return nil, &stageError{err.Error(), unix.EINVAL}
	}
	p.block, err = unix.Mmap(-1, 0, int(unsafe.Sizeof(child{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		p.unmap()
		return nil, at("map child", err)
	}
	base := unsafe.Pointer(&code[0])
	data := unsafe.Add(base, layout.Data)
	for i := range layout.NumRelocs {
		word := (*uint64)(unsafe.Add(base, layout.Data+int(*(*uint32)(unsafe.Add(base, layout.Relocs+4*i)))))
		*word += uint64(uintptr(data))
	}
	p.child = (*child)(unsafe.Pointer(&p.block[0]))
	p.child.ops, p.child.numOps, p.child.data = unsafe.Add(base, layout.Ops), uintptr(layout.NumOps), data
	return p, nil
}

func (p *program) unmap() {
	unix.Munmap(p.code) //nolint:errcheck // it is mapped
	if p.block != nil {
		unix.Munmap(p.block) //nolint:errcheck // it is mapped
	}
}

// fill makes the child's block ready for fork.
func (c *child) fill(e *ends, passed []int, s *proto.Spawn, nofile unix.Rlimit) error {
	c.clone = cloneArgs{flags: s.CloneFlags | unix.CLONE_PIDFD | cloneClearSighand, pidfd: uint64(uintptr(unsafe.Pointer(&c.pidfd)))}
	if c.clone.flags&(unix.CLONE_VM|unix.CLONE_FILES|unix.CLONE_FS|unix.CLONE_SIGHAND|unix.CLONE_THREAD|unix.CLONE_PARENT|unix.CLONE_VFORK|unix.CLONE_SETTLS|unix.CLONE_UNTRACED|0xff) != 0 {
		return at("clone flags", unix.EINVAL)
	}
	if s.Cgroup >= 0 {
		if int(s.Cgroup) >= len(passed) {
			return at("cgroup", unix.EBADF)
		}
		c.clone.flags |= unix.CLONE_INTO_CGROUP
		c.clone.cgroup = uint64(passed[s.Cgroup])
	}
	c.nofile, c.ignored = nofile, ignorable
	c.report = uintptr(e.report)
	for i, fd := range append([]int{e.report, e.stdin, e.stdout, e.stderr}, passed...) {
		c.fds[i] = int32(fd)
		if fd < 0 {
			continue
		}
		at := c.numKeep
		for ; at > 0 && c.keep[at-1] > int32(fd); at-- {
			c.keep[at] = c.keep[at-1]
		}
		c.keep[at] = int32(fd)
		c.numKeep++
	}
	c.iov = [2]uintptr{uintptr(unsafe.Pointer(&c.note)), noteSize}
	c.control = control{length: unix.SizeofCmsghdr + 4, level: unix.SOL_SOCKET, typ: unix.SCM_RIGHTS}
	c.msg = msghdr{iov: uintptr(unsafe.Pointer(&c.iov)), iovLen: 1, control: uintptr(unsafe.Pointer(&c.control))}
	return nil
}
