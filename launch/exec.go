// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/proto"
)

// Exec compiles the start of another process in a running container.
//
// The container's root comes with its mount namespace. It is hostile by now: what is opened in it goes through openat2.
func Exec(d *ExecDescription, f Facts) (*Plan, error) {
	if d.PIDFD == NoFD {
		return nil, errs.Newf(errs.Invalid, "no process to join")
	}
	if err := d.Process.check(); err != nil {
		return nil, err
	}
	p := newLaunchee(&d.Process, f)
	p.second, p.userNS, p.master = !d.HostPID, d.UserNS, proto.TagReturn
	for i, f := range d.Stdio {
		if given := []bool{d.Stdin, d.Stdout, d.Stderr}[i]; given && !d.TTY {
			p.stdioFDs[i] = p.fd(f)
		}
	}
	p.holdStdio()
	p.before()
	p.openLabel()
	p.joinCgroup(d.Cgroup)
	p.limits()
	flags := unix.CLONE_NEWNS
	for _, ns := range []struct {
		host bool
		flag int
	}{
		{d.HostNet, unix.CLONE_NEWNET},
		{d.HostIPC, unix.CLONE_NEWIPC},
		{d.HostUTS, unix.CLONE_NEWUTS},
		{d.HostPID, unix.CLONE_NEWPID},
		{d.HostCgroupNS, unix.CLONE_NEWCGROUP},
		{!d.UserNS, unix.CLONE_NEWUSER},
	} {
		if !ns.host {
			flags |= ns.flag
		}
	}
	p.step("join the container's namespaces")
	p.do(unix.SYS_SETNS, p.fd(d.PIDFD), imm(flags))
	if d.UserNS {
		p.becomeRoot()
	}
	p.run()
	return p.plan(0, d.Cgroup), nil
}
