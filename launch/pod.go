// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/proto"
)

// maxHostname is the kernel's __NEW_UTS_LEN.
const maxHostname = 64

// Pod compiles the making of a pod's namespaces. The process ends by itself, with status 0 (proto.Spawn.Run); the namespaces
// live on in the descriptors that it reports, in the order that PodDescription gives.
func Pod(d *PodDescription, f Facts) (*Plan, error) {
	if len(d.Hostname) > maxHostname {
		return nil, errs.Newf(errs.Invalid, "host name %q: longer than %d characters", d.Hostname, maxHostname)
	}
	for name, value := range d.Sysctls {
		if err := ValidSysctl(name, value, d.HostNet, d.HostIPC); err != nil {
			return nil, err
		}
	}
	p := newProg()
	var flags uint64
	for _, ns := range []struct {
		host bool
		flag uint64
	}{{d.HostNet, unix.CLONE_NEWNET}, {d.HostIPC, unix.CLONE_NEWIPC}, {d.HostUTS, unix.CLONE_NEWUTS}} {
		if !ns.host {
			flags |= ns.flag
		}
	}
	if d.UserNS != NoFD {
		p.enterUserNS(d.UserNS)
		p.step("make namespaces")
		p.do(unix.SYS_UNSHARE, imm(flags))
		flags = 0
	}
	if !d.HostUTS && d.Hostname != "" {
		p.step("set host name")
		p.do(unix.SYS_SETHOSTNAME, p.str(d.Hostname), imm(len(d.Hostname)))
	}
	p.sysctls(d.Sysctls)
	p.reportNamespaces(d)
	p.step("end")
	p.do(int(proto.PseudoExit), imm(0))
	return p.plan(flags, Cgroup{Dir: NoFD}), nil
}

// sysctls writes through the keeper's /proc/sys, which shows each process the values of its own namespaces.
func (p *prog) sysctls(values map[string]string) {
	if len(values) == 0 {
		return
	}
	p.step("open /proc/sys")
	root := p.at(nil, imm(atCWD), "/proc/sys", unix.O_PATH|unix.O_DIRECTORY)
	how := p.words(unix.O_WRONLY|unix.O_CLOEXEC, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS|unix.RESOLVE_NO_XDEV)
	for _, name := range slices.Sorted(maps.Keys(values)) {
		p.step("set sysctl " + name)
		f := p.open(nil, unix.SYS_OPENAT2, root.arg(), p.str(sysctlPath(name)), how, imm(unix.SizeofOpenHow))
		p.writeFile(nil, f.arg(), values[name])
		p.close(f)
	}
	p.close(root)
}

func (p *prog) reportNamespaces(d *PodDescription) {
	report := func(r reg) {
		p.do(int(proto.PseudoReport), imm(proto.TagReturn), r.arg())
		p.close(r)
	}
	if !d.HostNet {
		p.step("open netlink socket")
		report(p.open(nil, unix.SYS_SOCKET, imm(unix.AF_NETLINK), imm(unix.SOCK_RAW|unix.SOCK_CLOEXEC), imm(unix.NETLINK_ROUTE)))
	}
	for _, ns := range []struct {
		host bool
		name string
	}{{d.HostNet, "net"}, {d.HostIPC, "ipc"}, {d.HostUTS, "uts"}} {
		if !ns.host {
			p.step("open " + ns.name + " namespace")
			report(p.at(nil, imm(atCWD), "/proc/self/ns/"+ns.name, unix.O_RDONLY))
		}
	}
}
