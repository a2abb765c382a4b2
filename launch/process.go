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

// early is what is opened while the keeper's /proc can be reached.
type early struct {
	// label is the process's own attribute file of the LSM, if one is asked for.
	label    reg
	hasLabel bool
}

// beforeNamespaces does what needs the keeper's /proc.
func (p *prog) beforeNamespaces(d *Process, f Facts) early {
	p.label = "set umask"
	p.do(unix.SYS_UMASK, imm(0o022))
	p.label = "set oom_score_adj"
	o := p.at(nil, imm(atCWD), "/proc/self/oom_score_adj", unix.O_WRONLY)
	// EACCES: lower than this host allows after all.
	p.writeFile([]unix.Errno{unix.EACCES}, o.arg(), decimal(max(d.OOMScoreAdj, f.OOMScoreAdjMin)))
	p.close(o)
	p.label = "give the user its stdio"
	for i, given := range []bool{d.Stdin, d.Stdout, d.Stderr} {
		if given && !d.TTY && d.UID != 0 {
			p.do(unix.SYS_FCHOWN, p.stdioFDs[i], imm(uint64(d.UID)), imm(^uint64(0)))
		}
	}
	var e early
	attr := "exec"
	switch {
	case d.AppArmor != "":
		p.label, attr = "set AppArmor profile "+d.AppArmor, "apparmor/exec"
	case d.SELinux != "":
		p.label = "set SELinux label " + d.SELinux
	default:
		return e
	}
	e.label, e.hasLabel = p.at(nil, imm(atCWD), "/proc/thread-self/attr/"+attr, unix.O_WRONLY), true
	return e
}

// tail says how a program ends.
type tail struct {
	own early
	// second: a pid namespace was joined, which takes a second process. All but execve comes before it, because in that namespace
	// a process with CAP_SYS_PTRACE can reach it.
	second bool
	// console: the pty is also /dev/console.
	console bool
}

// process is everything between the change of root and execve, that included.
func (p *prog) process(d *Process, f Facts, t tail) {
	p.limits(d, f)
	p.stdio(d, t.console)
	if !t.second {
		p.session(d)
	}
	p.setLabel(d, t.own)
	filter := func() {
		p.closeAll(t.second)
		if d.Seccomp == nil {
			return
		}
		if t.second && d.Seccomp.Narrow {
			p.clonePID()
			p.session(d)
			t.second = false
		}
		p.seccomp(d.Seccomp)
	}
	// Without no_new_privs a filter takes CAP_SYS_ADMIN; with it, the filter need not let what comes before it through.
	if d.NoNewPrivileges {
		p.rights(d, f)
		filter()
	} else {
		filter()
		p.rights(d, f)
	}
	if t.second {
		p.clonePID()
		p.session(d)
	}
	p.exec(d)
}

// limits sets what a process inherits from its parent to what a container is to have.
func (p *prog) limits(d *Process, f Facts) {
	for _, l := range d.Rlimits {
		soft, hard := l.Soft, l.Hard
		if m, ok := f.Rlimits[l.Resource]; ok {
			hard = min(hard, m)
		}
		p.label = "set limit " + rlimitName(l.Resource)
		p.do(unix.SYS_PRLIMIT64, imm(0), imm(l.Resource), p.words(min(soft, hard), hard), imm(0))
	}
	p.label = "reset CPU affinity"
	all := make([]uint64, 16)
	for i := range all {
		all[i] = ^uint64(0)
	}
	p.do(unix.SYS_SCHED_SETAFFINITY, imm(0), imm(8*len(all)), p.words(all...))
	p.label = "reset scheduling"
	p.try([]unix.Errno{unix.EPERM}, unix.SYS_SCHED_SETSCHEDULER, imm(0), imm(0), p.words(0))
	p.try([]unix.Errno{unix.EPERM, unix.EACCES}, unix.SYS_SETPRIORITY, imm(unix.PRIO_PROCESS), imm(0), imm(0))
	p.label = "reset signals"
	for n := range 64 {
		if s := unix.Signal(n + 1); s != unix.SIGKILL && s != unix.SIGSTOP {
			p.do(unix.SYS_RT_SIGACTION, imm(n+1), p.words(0, 0, 0, 0), imm(0), imm(8))
		}
	}
	p.do(unix.SYS_RT_SIGPROCMASK, imm(unix.SIG_SETMASK), p.words(0), imm(0), imm(8))
	p.label = "make session keyring"
	p.try([]unix.Errno{unix.EACCES, unix.ENOSYS, unix.EPERM, unix.EDQUOT}, unix.SYS_KEYCTL, imm(unix.KEYCTL_JOIN_SESSION_KEYRING), imm(0))
}

// session makes a session of its own, with the pty as its controlling terminal.
func (p *prog) session(d *Process) {
	p.label = "make session"
	p.do(unix.SYS_SETSID)
	if d.TTY {
		p.label = "set controlling terminal"
		p.do(unix.SYS_IOCTL, imm(0), imm(unix.TIOCSCTTY), imm(0))
	}
}

// setLabel asks the LSM for the label of the program that will be executed.
func (p *prog) setLabel(d *Process, own early) {
	if !own.hasLabel {
		return
	}
	value := d.SELinux
	p.label = "set SELinux label " + d.SELinux
	if d.AppArmor != "" {
		p.label, value = "set AppArmor profile "+d.AppArmor, "exec "+d.AppArmor
	}
	p.writeFile(nil, own.label.arg(), value)
	p.close(own.label)
}

// closeAll marks everything but stdio close-on-exec, after closing what this program was given: before a second process
// appears where others can see it, nothing of the host may be open in it. The status socket stays until execve.
func (p *prog) closeAll(now bool) {
	p.label = "close descriptors"
	if now {
		for _, f := range p.used {
			p.do(unix.SYS_CLOSE, p.fd(f))
		}
	}
	p.do(unix.SYS_CLOSE_RANGE, imm(3), imm(uint64(^uint32(0))), imm(unix.CLOSE_RANGE_CLOEXEC))
}

func (p *prog) seccomp(s *Seccomp) {
	p.label = "install seccomp filter"
	code := p.bytes(s.Code)
	fprog := p.bytes(sockFprog(len(s.Code)/8, code.v))
	p.Relocs = append(p.Relocs, uint32(fprog.v)+8)
	p.do(unix.SYS_SECCOMP, imm(unix.SECCOMP_SET_MODE_FILTER), imm(s.Flags), fprog)
}

// exec executes the command: itself if it has a slash, else the first of PATH that can be executed.
func (p *prog) exec(d *Process) {
	env := lastWins(d.Env)
	argv, envp := p.vector(d.Args), p.vector(env)
	p.label = "exec " + quote(d.Args[0])
	if strings.Contains(d.Args[0], "/") {
		p.do(unix.SYS_EXECVE, p.str(d.Args[0]), argv, envp)
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
		op := p.try([]unix.Errno{unix.ENOENT, unix.ENOTDIR, unix.EACCES, unix.ELOOP}, unix.SYS_EXECVE, p.str(dir+"/"+d.Args[0]), argv, envp)
		op.Flags = proto.FlagKeepEACCES
	}
	p.do(int(proto.PseudoFail), imm(int(unix.ENOENT)))
}
