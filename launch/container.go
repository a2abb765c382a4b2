// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"path"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// Container compiles the start of a container.
//
// The order is the kernel's and security's: the cgroup first, so that the cgroup namespace is rooted there and all memory is
// charged; namespaces before the mounts that show them (sysfs, mqueue, proc); the root is changed when nothing outside
// is needed any more; then rights go away step by step, those that the next step needs last.
func Container(d *Description, f Facts) (*Plan, error) {
	if err := d.check(f); err != nil {
		return nil, err
	}
	all, err := points(d, f)
	if err != nil {
		return nil, err
	}
	p := newLaunchee(&d.Process, f)
	p.second, p.console = d.PID == PIDJoin, true
	p.holdStdio()
	p.before()
	if d.UserNS != NoFD {
		p.userNS = true
		p.inUserNS(d, all)
		p.run()
		return p.plan(unix.CLONE_NEWNS, d.Cgroup), nil
	}
	flags := uint64(unix.CLONE_NEWNS)
	if d.PID == PIDOwn {
		flags |= unix.CLONE_NEWPID
	}
	p.openLabel()
	p.joinCgroup(d.Cgroup)
	p.cgroupNS(d)
	p.joinPod(d)
	p.joinPIDNS(d)
	p.privateMounts()
	p.files(d, all)
	p.pivot(p.fd(d.Root))
	p.limits()
	p.run()
	return p.plan(flags, d.Cgroup), nil
}

// cgroupNS makes a cgroup namespace whose root is the process's cgroup.
func (p *launchee) cgroupNS(d *Description) {
	if !d.HostCgroupNS {
		p.step("make cgroup namespace")
		p.do(unix.SYS_UNSHARE, imm(unix.CLONE_NEWCGROUP))
	}
}

// joinPod enters the namespaces of the pod.
func (p *launchee) joinPod(d *Description) {
	p.join(d.NetNS, unix.CLONE_NEWNET, "join network namespace")
	p.join(d.IPCNS, unix.CLONE_NEWIPC, "join ipc namespace")
	p.join(d.UTSNS, unix.CLONE_NEWUTS, "join uts namespace")
}

func (p *launchee) joinPIDNS(d *Description) {
	if d.PID == PIDJoin {
		// From here on children are of that namespace; the process itself stays in the keeper's.
		p.join(d.PIDNS, unix.CLONE_NEWPID, "join pid namespace")
	}
}

func (d *Description) check(f Facts) error {
	switch {
	case d.Root == NoFD:
		return errs.Newf(errs.Invalid, "no root file system")
	case d.PID == PIDJoin && d.PIDNS == NoFD:
		return errs.Newf(errs.Invalid, "no pid namespace to join")
	case d.PID == PIDJoin && d.PIDMount == NoFD && !f.ProcPIDNS:
		return errs.Newf(errs.Invalid, "no mount of proc for the pid namespace")
	case d.UserNS != NoFD && (d.NetNS == NoFD || d.IPCNS == NoFD || d.PID == PIDHost):
		return errs.Newf(errs.Invalid, "user namespace with the host's network, ipc or pid namespace")
	}
	dev := d.Dev != NoFD
	for _, m := range d.Mounts {
		dev = dev || path.Clean(m.Target) == "/dev"
	}
	if !dev {
		return errs.Newf(errs.Invalid, "no /dev")
	}
	return d.Process.check()
}

// files puts the container's mounts together, at the keeper's /r.
func (p *launchee) files(d *Description, all []point) {
	var masks reg
	if len(d.MaskedPaths) > 0 {
		masks = p.masks()
	}
	root := p.fd(d.Root)
	p.step("mount the root file system")
	p.attachRoot(root)
	p.mountAll(root, nil, all)
	p.makeCwd(root, d.Cwd, all)
	p.protect(root, masks, d)
	if d.ReadOnlyRoot {
		p.step("make the root file system read-only")
		p.setAttr(root, rdonly)
	}
}

// makeCwd makes the working directory where it lies in a volume.
func (p *launchee) makeCwd(root arg, cwd string, all []point) {
	cwd = path.Clean(cwd)
	if !path.IsAbs(cwd) {
		return
	}
	if from := madeInside(all, cwd, false); from >= 0 {
		p.step("make working directory " + cwd)
		// What can't be made may be there all the same, where only the user can look (NFS): chdir will tell.
		p.makePath(root, parts(cwd), from, false, []unix.Errno{unix.EEXIST, unix.EACCES, unix.EROFS})
	}
}

// protect makes paths read-only and masks others; masks is used up.
func (p *launchee) protect(root arg, masks reg, d *Description) {
	for _, path := range d.ReadOnlyPaths {
		p.readOnly(root, path)
	}
	for _, path := range d.MaskedPaths {
		p.mask(root, masks.arg(), path)
	}
	if len(d.MaskedPaths) > 0 {
		p.close(masks)
	}
}
