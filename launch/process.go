// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/proto"
)

// defaultPath is searched when the environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// check refuses what can't be passed to execve.
func (d *Process) check() error {
	if len(d.Args) == 0 || d.Args[0] == "" {
		return errs.Newf(errs.Invalid, "no command")
	}
	if d.Cwd != "" && !path.IsAbs(d.Cwd) {
		return errs.Newf(errs.Invalid, "working directory %q: not an absolute path", d.Cwd)
	}
	if strings.ContainsRune(d.Cwd, 0) || slices.ContainsFunc(d.Args, func(s string) bool { return strings.ContainsRune(s, 0) }) {
		return errs.Newf(errs.Invalid, "NUL character in the command or its working directory")
	}
	for _, e := range d.Env {
		if name, _, _ := strings.Cut(e, "="); strings.ContainsRune(e, 0) || name == "" {
			return errs.Newf(errs.Invalid, "environment variable %q: empty name or NUL character", strings.ReplaceAll(name, "\x00", "?"))
		}
	}
	return nil
}

// launchee writes the part of a program that makes the process what its description says.
type launchee struct {
	*prog
	d *Process
	f Facts
	// second: a pid namespace was joined, which takes a second process. All but execve comes before it, because in that namespace
	// a process with CAP_SYS_PTRACE can reach it.
	second bool
	// console: the pty is also /dev/console.
	console bool
	// stdioFDs are the descriptors that become 0, 1 and 2.
	stdioFDs [3]arg
	// master is the tag under which a pty's master is reported.
	master int
	// userNS: a user namespace was joined, which gave the process all capabilities.
	userNS bool
	// label is the process's own attribute file of the LSM, if one is asked for.
	label    reg
	hasLabel bool
}

func newLaunchee(d *Process, f Facts) *launchee {
	return &launchee{
		prog: newProg(), d: d, f: f, stdioFDs: [3]arg{std(proto.FDStdin), std(proto.FDStdout), std(proto.FDStderr)}, master: proto.TagPTY,
	}
}

// before does what needs the keeper's /proc, or rights over the keeper's files.
func (p *launchee) before() {
	p.step("set umask")
	p.do(unix.SYS_UMASK, imm(0o022))
	p.step("set oom_score_adj")
	o := p.at(nil, imm(atCWD), "/proc/self/oom_score_adj", unix.O_WRONLY)
	// EACCES: lower than this host allows after all.
	p.writeFile([]unix.Errno{unix.EACCES}, o.arg(), decimal(max(p.d.OOMScoreAdj, p.f.OOMScoreAdjMin)))
	p.close(o)
	p.step("give the user its stdio")
	for i, given := range []bool{p.d.Stdin, p.d.Stdout, p.d.Stderr} {
		if given && !p.d.TTY && p.d.IDBase+p.d.UID != 0 {
			p.do(unix.SYS_FCHOWN, p.stdioFDs[i], imm(uint64(p.d.IDBase)+uint64(p.d.UID)), imm(^uint64(0)))
		}
	}
}

// openLabel opens the process's attribute file of the LSM, if there is to be a label: the keeper's /proc will be out of reach.
func (p *launchee) openLabel() {
	if step, file, _ := p.lsm(); file != "" {
		p.step(step)
		p.label, p.hasLabel = p.at(nil, imm(atCWD), "/proc/thread-self/attr/"+file, unix.O_WRONLY), true
	}
}

// lsm says which file takes the process's label, and what is written there; empty without a label.
func (p *launchee) lsm() (step, file, value string) {
	switch {
	case p.d.AppArmor != "":
		return "set AppArmor profile " + p.d.AppArmor, "apparmor/exec", "exec " + p.d.AppArmor
	case p.d.SELinux != "":
		return "set SELinux label " + p.d.SELinux, "exec", p.d.SELinux
	}
	return "", "", ""
}

// run is everything between the change of root and execve, that included.
func (p *launchee) run() {
	p.fresh()
	p.stdio()
	if !p.second {
		p.session()
	}
	p.setLabel()
	p.closeAll(NoFD)
	p.identity()
	p.restrict()
	if p.second {
		p.split()
	}
	p.exec()
}

// restrict installs the seccomp filter and takes the last rights away. A filter takes no_new_privs or CAP_SYS_ADMIN; after it come as
// few calls as can be, so that profiles need not let through what the program itself does not use.
func (p *launchee) restrict() {
	if p.d.NoNewPrivileges {
		p.capabilities()
	}
	if p.d.Seccomp != nil {
		if p.second && p.d.Seccomp.Narrow {
			p.split()
		}
		p.seccomp(p.d.Seccomp)
	}
	if !p.d.NoNewPrivileges {
		p.capabilities()
	}
}

// split goes on in a second process, in the pid namespace that was joined.
func (p *launchee) split() {
	p.step("clone into the pid namespace")
	p.do(int(proto.PseudoClone), imm(0))
	p.session()
	p.second = false
}

// limits sets what takes rights in the host's user namespace.
func (p *launchee) limits() {
	for _, l := range p.d.Rlimits {
		soft, hard := l.Soft, l.Hard
		if m, ok := p.f.Rlimits[l.Resource]; ok {
			hard = min(hard, m)
		}
		p.step("set limit " + rlimitName(l.Resource))
		p.do(unix.SYS_PRLIMIT64, imm(0), imm(l.Resource), p.words(min(soft, hard), hard), imm(0))
	}
	p.step("reset CPU affinity")
	all := make([]uint64, 16)
	for i := range all {
		all[i] = ^uint64(0)
	}
	p.do(unix.SYS_SCHED_SETAFFINITY, imm(0), imm(8*len(all)), p.words(all...))
	p.step("reset scheduling")
	p.try([]unix.Errno{unix.EPERM}, unix.SYS_SCHED_SETSCHEDULER, imm(0), imm(0), p.words(0))
	p.try([]unix.Errno{unix.EPERM, unix.EACCES}, unix.SYS_SETPRIORITY, imm(unix.PRIO_PROCESS), imm(0), imm(0))
}

// fresh leaves nothing of what else a process inherits from its parent.
func (p *launchee) fresh() {
	p.step("reset signals")
	for n := range 64 {
		if s := unix.Signal(n + 1); s != unix.SIGKILL && s != unix.SIGSTOP {
			p.do(unix.SYS_RT_SIGACTION, imm(n+1), p.words(0, 0, 0, 0), imm(0), imm(8))
		}
	}
	p.do(unix.SYS_RT_SIGPROCMASK, imm(unix.SIG_SETMASK), p.words(0), imm(0), imm(8))
	p.step("make session keyring")
	p.try([]unix.Errno{unix.EACCES, unix.ENOSYS, unix.EPERM, unix.EDQUOT}, unix.SYS_KEYCTL, imm(unix.KEYCTL_JOIN_SESSION_KEYRING), imm(0))
}

// session makes a session of its own, with the pty as its controlling terminal.
func (p *launchee) session() {
	p.step("make session")
	p.do(unix.SYS_SETSID)
	if p.d.TTY {
		p.step("set controlling terminal")
		p.do(unix.SYS_IOCTL, imm(0), imm(unix.TIOCSCTTY), imm(0))
	}
}

// setLabel asks the LSM for the label of the program that will be executed.
func (p *launchee) setLabel() {
	if !p.hasLabel {
		return
	}
	step, _, value := p.lsm()
	p.step(step)
	p.writeFile(nil, p.label.arg(), value)
	p.close(p.label)
}

// closeAll closes all that the program was given and everything else at execve: an image's paths must not lead to it by
// way of /proc/self/fd, and a second process must not hold it where others can see it. The status socket stays until execve.
func (p *launchee) closeAll(except FD) {
	p.step("close descriptors")
	for _, f := range p.used {
		if f != except {
			p.do(unix.SYS_CLOSE, p.fd(f))
		}
	}
	p.do(unix.SYS_CLOSE_RANGE, imm(3), imm(uint64(^uint32(0))), imm(unix.CLOSE_RANGE_CLOEXEC))
}

func (p *launchee) seccomp(s *Seccomp) {
	p.step("install seccomp filter")
	code := p.bytes(s.Code)
	fprog := p.bytes(sockFprog(len(s.Code)/8, code.v))
	p.Relocs = append(p.Relocs, uint32(fprog.v)+8)
	p.do(unix.SYS_SECCOMP, imm(unix.SECCOMP_SET_MODE_FILTER), imm(s.Flags), fprog)
}

// exec executes the command: itself if it has a slash, else the first of PATH that can be executed.
func (p *launchee) exec() {
	env := lastWins(p.d.Env)
	argv, envp := p.vector(p.d.Args), p.vector(env)
	p.step("exec " + quote(p.d.Args[0]))
	if strings.Contains(p.d.Args[0], "/") {
		p.do(unix.SYS_EXECVE, p.str(p.d.Args[0]), argv, envp)
		return
	}
	search := defaultPath
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			search = v
		}
	}
	for dir := range strings.SplitSeq(search, ":") {
		if dir == "" {
			dir = "."
		}
		op := p.try([]unix.Errno{unix.ENOENT, unix.ENOTDIR, unix.EACCES, unix.ELOOP}, unix.SYS_EXECVE, p.str(dir+"/"+p.d.Args[0]), argv, envp)
		op.Flags = proto.FlagKeepEACCES
	}
	p.do(int(proto.PseudoFail), imm(int(unix.ENOENT)))
}
