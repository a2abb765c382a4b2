// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"golang.org/x/sys/unix"

	"crishim.dev/proto"
)

// prog writes the calls that launch programs are made of.
type prog struct {
	*code
	// owner gets the mount points that are made.
	owner uint32
}

func newProg() *prog { return &prog{code: newCode()} }

// Mount attributes of the standard mounts.
const (
	nosuid = unix.MOUNT_ATTR_NOSUID
	nodev  = unix.MOUNT_ATTR_NODEV
	noexec = unix.MOUNT_ATTR_NOEXEC
	rdonly = unix.MOUNT_ATTR_RDONLY
)

// mountAttrSize is the size of struct mount_attr.
const mountAttrSize = 32

// option is a mount option: key=value, a descriptor, or else a flag.
type option struct {
	key, value string
	fd         arg
}

// Lists of errnos, named for what they stand for.
var (
	missing = []unix.Errno{unix.ENOENT}
	exists  = []unix.Errno{unix.EEXIST}
)

// at is openat(dir, path, flags|O_CLOEXEC).
func (p *prog) at(ignore []unix.Errno, dir arg, path string, flags int) reg {
	return p.open(ignore, unix.SYS_OPENAT, dir, p.str(path), imm(flags|unix.O_CLOEXEC), imm(0))
}

// in opens path inside root as openat2 does with RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS.
func (p *prog) in(ignore []unix.Errno, root arg, path string, flags int) reg {
	how := p.words(uint64(flags|unix.O_CLOEXEC), 0, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	return p.open(ignore, unix.SYS_OPENAT2, root, p.str(path), how, imm(unix.SizeofOpenHow))
}

// newFS makes a detached mount of a new file system instance, whose source is shown as its type.
func (p *prog) newFS(fstype string, attrs int, options ...option) reg {
	fs := p.open(nil, unix.SYS_FSOPEN, p.str(fstype), imm(unix.FSOPEN_CLOEXEC))
	for _, o := range append([]option{{key: "source", value: fstype}}, options...) {
		switch {
		case o.fd.kind == proto.FD:
			p.do(unix.SYS_FSCONFIG, fs.arg(), imm(unix.FSCONFIG_SET_FD), p.str(o.key), imm(0), o.fd)
		case o.value != "":
			p.do(unix.SYS_FSCONFIG, fs.arg(), imm(unix.FSCONFIG_SET_STRING), p.str(o.key), p.str(o.value), imm(0))
		default:
			p.do(unix.SYS_FSCONFIG, fs.arg(), imm(unix.FSCONFIG_SET_FLAG), p.str(o.key), imm(0), imm(0))
		}
	}
	p.do(unix.SYS_FSCONFIG, fs.arg(), imm(unix.FSCONFIG_CMD_CREATE), imm(0), imm(0), imm(0))
	m := p.open(nil, unix.SYS_FSMOUNT, fs.arg(), imm(unix.FSMOUNT_CLOEXEC), imm(attrs))
	p.close(fs)
	return m
}

// clone makes a detached bind mount of path below dir ("": of dir itself).
func (p *prog) clone(dir arg, path string, recursive bool) reg {
	flags := unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_NO_AUTOMOUNT
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	} else {
		flags |= unix.AT_SYMLINK_NOFOLLOW
	}
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return p.open(nil, unix.SYS_OPEN_TREE, dir, p.str(path), imm(flags))
}

// attach moves the detached mount m to the open target t.
func (p *prog) attach(m, t arg) {
	p.do(unix.SYS_MOVE_MOUNT, m, p.str(""), t, p.str(""), imm(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// setAttr adds attributes to the mount m.
func (p *prog) setAttr(m arg, attrs int) {
	p.do(unix.SYS_MOUNT_SETATTR, m, p.str(""), imm(unix.AT_EMPTY_PATH), p.words(uint64(attrs), 0, 0, 0), imm(mountAttrSize))
}

// writeFile writes value to the open file f, in one call.
func (p *prog) writeFile(ignore []unix.Errno, f arg, value string) {
	p.try(ignore, unix.SYS_WRITE, f, p.str(value), imm(len(value)))
}

// privateMounts cuts the mount namespace off from the one it was copied from.
func (p *prog) privateMounts() {
	p.step("make mounts private")
	p.do(unix.SYS_MOUNT, imm(0), p.str("/"), imm(0), imm(unix.MS_REC|unix.MS_PRIVATE), imm(0))
}

// pivot makes the mount root, attached at /r, the root of the mount namespace and lets go of everything else.
func (p *prog) pivot(root arg) {
	p.step("change root")
	p.do(unix.SYS_FCHDIR, root)
	p.do(unix.SYS_PIVOT_ROOT, p.str("."), p.str("."))
	p.do(unix.SYS_UMOUNT2, p.str("."), imm(unix.MNT_DETACH))
	p.do(unix.SYS_CHDIR, p.str("/"))
}

// attachRoot attaches the mount root at the keeper's /r.
func (p *prog) attachRoot(root arg) {
	p.do(unix.SYS_MOVE_MOUNT, root, p.str(""), imm(atCWD), p.str("/r"), imm(unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// atCWD is AT_FDCWD as an argument.
const atCWD = ^uint64(99)

// joinCgroup puts the process into its v1 cgroups; v2's is part of the clone.
func (p *prog) joinCgroup(c Cgroup) {
	p.step("join cgroup")
	if c.Dir != NoFD {
		p.fd(c.Dir) // used by the clone, open until closeAll
	}
	for _, f := range c.Procs {
		p.writeFile(nil, p.fd(f), "0")
	}
}

// join enters a namespace.
func (p *prog) join(f FD, kind int, label string) {
	if f == NoFD {
		return
	}
	p.step(label)
	p.do(unix.SYS_SETNS, p.fd(f), imm(kind))
}
