// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"slices"

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
// What the host has mounted (root file system, volumes, /dev) is put together in a first mount namespace, which belongs to the
// host's user namespace. The container's is a copy of that: therefore these mounts are locked in it, and the container's root can neither
// change their flags nor uncover what is below them. File systems whose instance depends on who mounts (proc, sysfs, devpts, mqueue, cgroup)
// are mounted in the copy. The kernel allows proc and sysfs because the keeper's own are complete and visible there.
func (p *launchee) inUserNS(d *Description, all []point) {
	outside, inside := hostMounts(all)
	p.joinCgroup(d.Cgroup)
	p.limits()
	p.privateMounts()
	p.step("mount the root file system")
	p.attachRoot(p.fd(d.Root))
	p.owner = d.IDBase
	p.mountAll(p.fd(d.Root), nil, outside)
	if holder(inside, d.Cwd) == nil {
		p.makeCwd(p.fd(d.Root), d.Cwd, outside)
	}
	p.owner = 0
	if d.ReadOnlyRoot {
		p.step("make the root file system read-only")
		p.setAttr(p.fd(d.Root), rdonly)
	}
	p.enterUserNS(d.UserNS)
	if d.PID == PIDOwn {
		p.cloneInto(unix.CLONE_NEWNS | unix.CLONE_NEWPID)
	} else {
		p.step("copy the mounts")
		p.do(unix.SYS_UNSHARE, imm(unix.CLONE_NEWNS))
	}
	p.openLabel()
	p.namespaces(d)
	p.privateMounts()
	p.step("mount the root file system")
	root := p.clone(imm(atCWD), "/r", true)
	var masks reg
	if len(d.MaskedPaths) > 0 {
		masks = p.masks(unix.S_IFREG)
		p.step("mount the root file system")
	}
	p.attachRoot(root.arg())
	p.mountAll(root.arg(), outside, inside)
	p.protect(root.arg(), masks, d)
	p.pivot(root.arg())
	p.close(root)
}

// hostMounts divides mounts into those that the host brings and those that depend on who mounts, with all inside them.
func hostMounts(all []point) (outside, inside []point) {
	for _, m := range all {
		if m.make != nil || slices.ContainsFunc(inside, func(h point) bool { return below(m.target, h.target) }) {
			inside = append(inside, m)
		} else {
			outside = append(outside, m)
		}
	}
	return outside, inside
}
