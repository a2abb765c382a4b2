// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"golang.org/x/sys/unix"

	"crishim.dev/proto"
)

// UserNS compiles the making of a user namespace, which the program reports. The process has to be held at its gate (proto.Spawn.Hold and Run) until its
// uid_map and gid_map are written.
func UserNS() *Plan {
	p := newProg()
	p.step("open user namespace")
	ns := p.at(nil, imm(atCWD), "/proc/self/ns/user", unix.O_RDONLY)
	p.do(int(proto.PseudoReport), imm(proto.TagReturn), ns.arg())
	p.step("end")
	p.do(int(proto.PseudoExit), imm(0))
	return p.plan(unix.CLONE_NEWUSER, Cgroup{Dir: NoFD})
}

// enterUserNS joins a user namespace and becomes its root.
func (p *prog) enterUserNS(f FD) {
	p.join(f, unix.CLONE_NEWUSER, "join user namespace")
	p.becomeRoot()
}

// becomeRoot takes the ids of the root of the user namespace that was joined.
func (p *prog) becomeRoot() {
	p.step("become root of the user namespace")
	p.do(unix.SYS_SETGROUPS, imm(0), imm(0))
	p.do(unix.SYS_SETGID, imm(0))
	p.do(unix.SYS_SETUID, imm(0))
}

// cloneInto goes on in a second process, whose new namespaces belong to the user namespace.
func (p *launchee) cloneInto(flags uint64) {
	p.step("clone into the user namespace")
	p.do(int(proto.PseudoClone), imm(flags))
}

// inUserNS is what Container does up to the change of root, in a user namespace.
//
// Everything that the container is given (root file system, volumes, /dev, proc, sysfs, cgroups, with what is masked or read-only in them)
// is put together by the host's root, in a first mount namespace, which belongs to the host's user namespace. The container's is a copy of that:
// therefore these mounts are locked in it, and the container's root can neither change their flags nor uncover what is below them, nor
// get at what is masked by a mount of its own, since the kernel allows none of proc and sysfs that would show more than the locked ones.
// Only devpts, whose files belong to the user namespace of who mounts it, and the terminal on /dev/console are mounted in the copy.
//
// A new pid namespace has to belong to the user namespace, and proc is that of who mounts it. So the mounts are made by a process aside,
// which gets the pid namespace from the container's first process and joins it. That one waits meanwhile, without the rights to do
// anything in the first mount namespace, but in it, so that it can copy it.
func (p *launchee) inUserNS(d *Description, all []point) {
	given, own := divide(all)
	p.joinCgroup(d.Cgroup)
	p.limits()
	p.joinPod(d)
	p.privateMounts()
	var maker reg
	if d.PID == PIDOwn {
		maker = p.makeAside(d, given)
	} else {
		p.give(d, given)
	}
	p.enterUserNS(d.UserNS)
	if d.PID == PIDOwn {
		p.cloneInto(unix.CLONE_NEWPID)
		p.awaitMounts(maker)
	}
	p.openLabel()
	p.cgroupNS(d)
	p.step("copy the mounts")
	p.do(unix.SYS_UNSHARE, imm(unix.CLONE_NEWNS))
	p.joinPIDNS(d)
	p.step("mount the root file system")
	root := p.clone(imm(atCWD), "/r", true)
	p.attachRoot(root.arg())
	p.mountAll(root.arg(), given, own)
	p.pivot(root.arg())
	p.close(root)
}

// give makes the mounts that the container is given; all that is made for them belongs to its root.
func (p *launchee) give(d *Description, given []point) {
	p.cgroupNS(d) // where the cgroup file systems are mounted decides what their root is
	p.owner = d.IDBase
	p.files(d, given)
	p.owner = 0
}

// makeAside is give in a process aside, in the pid namespace that awaitMounts sends.
func (p *launchee) makeAside(d *Description, given []point) (maker reg) {
	p.step("make mounts aside")
	return p.aside(func(first reg) {
		p.step("join the container's pid namespace")
		ns := p.open(nil, int(proto.PseudoReceive), first.arg())
		p.do(unix.SYS_SETNS, ns.arg(), imm(unix.CLONE_NEWPID))
		p.close(ns)
		inside := p.aside(func(reg) {
			p.give(d, given)
			p.step("make mounts aside")
			p.do(int(proto.PseudoSend), first.arg(), imm(^uint64(0)))
		})
		p.inUse[inside] = false // each process ends with it
	})
}

// awaitMounts sends the process's pid namespace to the maker of its mounts and waits until they are there.
func (p *launchee) awaitMounts(maker reg) {
	p.step("wait for the mounts")
	ns := p.at(nil, imm(atCWD), "/proc/self/ns/pid", unix.O_RDONLY)
	p.do(int(proto.PseudoSend), maker.arg(), ns.arg())
	p.close(ns)
	p.do(int(proto.PseudoReceive), maker.arg())
	p.close(maker)
}

// divide parts the mounts that the host's root makes from those that the container's own has to: devpts, with all inside it.
func divide(all []point) (given, own []point) {
	for _, m := range all {
		if devpts := "/dev/pts"; m.target == devpts && m.make != nil || below(m.target, devpts) && len(own) > 0 {
			own = append(own, m)
		} else {
			given = append(given, m)
		}
	}
	return given, own
}
