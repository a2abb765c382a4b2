// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// standard lists the mounts of every container, in containerd's order.
func standard(d *Description, f Facts) []point {
	sys, cgroup := nosuid|nodev|noexec|rdonly, nosuid|nodev|noexec|rdonly
	if d.SysReadWrite {
		sys &^= rdonly
	}
	if d.CgroupReadWrite {
		cgroup &^= rdonly
	}
	fs := func(fstype string, attrs int, options ...option) func(p *prog) reg {
		return func(p *prog) reg { return p.newFS(fstype, attrs, options...) }
	}
	shm := point{target: "/dev/shm", fd: d.Shm}
	if d.Shm == NoFD {
		shm.make = fs("tmpfs", nosuid|nodev|noexec, owned(d, option{key: "mode", value: "1777"}, option{key: "size", value: "65536k"})...)
	}
	list := []point{
		{target: "/proc", fd: NoFD, make: func(p *prog) reg { return p.proc(d, f) }},
		{target: "/dev", fd: d.Dev},
		{target: "/dev/pts", fd: NoFD, make: fs("devpts", nosuid|noexec,
			option{key: "newinstance"}, option{key: "ptmxmode", value: "0666"}, option{key: "mode", value: "0620"}, option{key: "gid", value: "5"})},
		{target: "/dev/mqueue", fd: NoFD, make: fs("mqueue", nosuid|nodev|noexec)},
		shm,
		{target: "/sys", fd: NoFD, make: fs("sysfs", sys)},
	}
	return append(list, cgroupPoint(d, cgroup, f))
}

// owned adds the options of a tmpfs that belongs to the container's root.
func owned(d *Description, options ...option) []option {
	if d.IDBase == 0 {
		return options
	}
	id := strconv.FormatUint(uint64(d.IDBase), 10)
	return append(options, option{key: "uid", value: id}, option{key: "gid", value: id})
}

// proc mounts proc for the container's pid namespace.
//
// Where that was joined, the process itself is not in it, and must not be before execve. So the kernel is told, or, when it
// does not know the option yet, the mount is taken from a process that is there.
func (p *prog) proc(d *Description, f Facts) reg {
	if d.PID != PIDJoin {
		return p.newFS("proc", nosuid|nodev|noexec)
	}
	if f.ProcPIDNS {
		return p.newFS("proc", nosuid|nodev|noexec, option{key: "pidns", fd: p.fd(d.PIDNS)})
	}
	own := p.at(nil, imm(atCWD), "/proc/self/ns/mnt", unix.O_RDONLY)
	p.do(unix.SYS_SETNS, p.fd(d.PIDMount), imm(unix.CLONE_NEWNS))
	// What is masked in a user namespace is so for good: the kernel copies no mount without what is locked on it.
	m := p.clone(imm(atCWD), "/proc", d.UserNS != NoFD)
	p.do(unix.SYS_SETNS, own.arg(), imm(unix.CLONE_NEWNS))
	p.close(own)
	return m
}

// cgroupPoint is /sys/fs/cgroup: the unified hierarchy, or a tmpfs with a directory for each hierarchy and links for
// the controllers of those that have several.
func cgroupPoint(d *Description, attrs int, f Facts) point {
	pt := point{target: "/sys/fs/cgroup", fd: NoFD}
	if f.CgroupVersion != 1 {
		pt.make = func(p *prog) reg { return p.newFS("cgroup2", attrs) }
		return pt
	}
	pt.make = func(p *prog) reg {
		return p.newFS("tmpfs", attrs&^rdonly, owned(d, option{key: "mode", value: "755"})...)
	}
	pt.finish = func(p *prog, m reg) {
		for _, h := range f.Hierarchies {
			p.step("mount /sys/fs/cgroup/" + h.Dir)
			p.hierarchy(m.arg(), h, attrs)
		}
		p.step("mount /sys/fs/cgroup")
		if attrs&rdonly != 0 {
			p.setAttr(m.arg(), rdonly)
		}
	}
	return pt
}

// hierarchy mounts h in the directory dir. In a cgroup namespace its root is the process's own cgroup.
func (p *prog) hierarchy(dir arg, h Hierarchy, attrs int) {
	p.owned(func() { p.do(unix.SYS_MKDIRAT, dir, p.str(h.Dir), imm(0o755)) })
	var options []option
	if h.Name != "" {
		options = append(options, option{key: "name", value: h.Name})
	}
	for _, c := range h.Controllers {
		options = append(options, option{key: c})
		if c != h.Dir && strings.Contains(h.Dir, ",") {
			p.owned(func() { p.do(unix.SYS_SYMLINKAT, p.str(h.Dir), dir, p.str(c)) })
		}
	}
	t := p.at(nil, dir, h.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	m := p.newFS("cgroup", attrs, options...)
	p.attach(m.arg(), t.arg())
	p.close(m)
	p.close(t)
}

// masks is a small tmpfs, attached where the root file system will cover it: /null, a null device, and /empty, an empty directory. Clones of
// them hide paths, all from one file system.
func (p *prog) masks() reg {
	p.step("prepare masks")
	m := p.newFS("tmpfs", nosuid|noexec, option{key: "mode", value: "755"})
	p.do(unix.SYS_MKNODAT, m.arg(), p.str("null"), imm(unix.S_IFCHR|0o666), imm(unix.Mkdev(1, 3)))
	p.do(unix.SYS_FCHMODAT, m.arg(), p.str("null"), imm(0o666))
	p.do(unix.SYS_MKDIRAT, m.arg(), p.str("empty"), imm(0o755))
	p.attachRoot(m.arg())
	return m
}

// mask hides path below root, whatever it is, if it is there. Clones are made only where they are used: to close a mount that was never
// attached takes as long as ten calls.
func (p *prog) mask(root, masks arg, path string) {
	p.step("mask " + path)
	dir := p.in([]unix.Errno{unix.ENOENT, unix.ENOTDIR}, root, path, unix.O_PATH|unix.O_DIRECTORY)
	p.ifOpen(dir, func() {
		empty := p.clone(masks, "empty", false)
		p.setAttr(empty.arg(), rdonly|nodev)
		p.attach(empty.arg(), dir.arg())
		p.close(empty)
	})
	var file reg
	p.unless(dir, func() { file = p.in(missing, root, path, unix.O_PATH) })
	p.ifOpen(file, func() {
		null := p.clone(masks, "null", false)
		p.attach(null.arg(), file.arg())
		p.close(null)
	})
	p.close(file)
	p.close(dir)
}

// readOnly makes path below root read-only, with all that is mounted there, if it is there.
func (p *prog) readOnly(root arg, path string) {
	p.step("make " + path + " read-only")
	t := p.in(missing, root, path, unix.O_PATH)
	p.ifOpen(t, func() {
		m := p.clone(t.arg(), "", true)
		p.setAttr(m.arg(), rdonly)
		p.attach(m.arg(), t.arg())
		p.close(m)
	})
	p.close(t)
}
