// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

const (
	// nobody is the user and group of a pod's first process.
	nobody = 65534
	// initOOMScoreAdj makes it the last process of its pod to be killed: its end would be everyone's.
	initOOMScoreAdj = -998
)

// PodInit compiles the start of a pod's first process. It has nothing that a process which shares its pid namespace, and
// may trace it, could make use of: an empty root, no user, no rights, no descriptors, and none of the host's namespaces. On kernels without
// Facts.ProcPIDNS its root has /proc, from where the pod's containers get theirs.
func PodInit(d *PodInitDescription, f Facts) (*Plan, error) {
	if d.Binary == NoFD {
		return nil, errs.Newf(errs.Invalid, "no binary")
	}
	p := newLaunchee(&Process{UID: nobody, GID: nobody, OOMScoreAdj: initOOMScoreAdj, NoNewPrivileges: true, Seccomp: d.Seccomp}, f)
	p.before()
	p.joinCgroup(d.Cgroup)
	flags := uint64(unix.CLONE_NEWNS | unix.CLONE_NEWPID)
	p.limits()
	if d.UserNS != NoFD {
		p.userNS = true
		p.enterUserNS(d.UserNS)
		p.cloneInto(flags)
		flags = 0
	}
	p.cgroupNS(&Description{})
	p.join(d.NetNS, unix.CLONE_NEWNET, "join network namespace")
	p.join(d.IPCNS, unix.CLONE_NEWIPC, "join ipc namespace")
	p.join(d.UTSNS, unix.CLONE_NEWUTS, "join uts namespace")
	p.privateMounts()
	p.step("mount an empty root")
	root := p.newFS("tmpfs", nosuid|nodev|noexec, option{key: "mode", value: "555"}, option{key: "nr_inodes", value: "3"}, option{key: "size", value: "4k"})
	p.attachRoot(root.arg())
	if !f.ProcPIDNS {
		p.step("mount /proc")
		p.do(unix.SYS_MKDIRAT, root.arg(), p.str("proc"), imm(0o555))
		t, proc := p.at(nil, root.arg(), "proc", unix.O_PATH), p.newFS("proc", nosuid|nodev|noexec)
		p.attach(proc.arg(), t.arg())
		p.close(proc)
		p.close(t)
	}
	p.setAttr(root.arg(), rdonly)
	p.pivot(root.arg())
	p.close(root)
	p.fresh()
	p.session()
	p.closeAll(d.Binary)
	for i := range 3 {
		p.try([]unix.Errno{unix.EBADF}, unix.SYS_CLOSE, imm(i))
	}
	p.identity()
	p.restrict()
	p.step("exec the pod's init")
	p.do(unix.SYS_EXECVEAT, p.fd(d.Binary), p.str(""), p.vector([]string{"init"}), p.vector(nil), imm(unix.AT_EMPTY_PATH))
	return p.plan(flags, d.Cgroup), nil
}
