// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"encoding/binary"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// anywhere are the capabilities that let root into every directory.
const anywhere = capDACOverride | capDACReadSearch

// identity makes the process the user's, in its working directory. It keeps what the rest of the program needs.
//
// The directory is entered with the user's ids and root's way past permission bits: that finds one which only root can enter
// (as runc does, which tries as root first) as well as one which only the user can (NFS without root). By then no descriptor of the host is
// open (closeAll), and links in /proc are not followed: an image's working directory leads nowhere outside (CVE-2024-21626).
func (p *launchee) identity() {
	d, f := p.d, p.f
	granted := d.Caps & f.Caps
	p.step("drop capabilities")
	for c := range f.LastCap + 1 {
		if bit := CapSet(1) << c; (f.Caps&bit != 0 || p.userNS) && granted&bit == 0 {
			p.do(unix.SYS_PRCTL, imm(unix.PR_CAPBSET_DROP), imm(c), imm(0), imm(0), imm(0))
		}
	}
	p.do(unix.SYS_PRCTL, imm(unix.PR_SET_KEEPCAPS), imm(1), imm(0), imm(0), imm(0))
	p.step("set groups")
	groups := make([]byte, 0, 4*len(d.Groups))
	for _, g := range d.Groups {
		groups = binary.NativeEndian.AppendUint32(groups, g)
	}
	p.do(unix.SYS_SETGROUPS, imm(len(d.Groups)), p.bytes(groups))
	p.step("set group " + strconv.FormatUint(uint64(d.GID), 10))
	p.do(unix.SYS_SETGID, imm(uint64(d.GID)))
	p.step("set user " + strconv.FormatUint(uint64(d.UID), 10))
	p.do(unix.SYS_SETUID, imm(uint64(d.UID)))
	still := anywhere & f.Caps
	if d.Seccomp != nil && !d.NoNewPrivileges {
		still |= capSysAdmin & f.Caps
	}
	p.capset(still, still|granted, 0)
	cwd := d.Cwd
	if cwd == "" {
		cwd = "/"
	}
	p.step("set working directory " + cwd)
	dir := p.in(nil, imm(atCWD), cwd, unix.O_PATH|unix.O_DIRECTORY)
	p.do(unix.SYS_FCHDIR, dir.arg())
	p.close(dir)
}

// capabilities leaves the process those that it is to have.
func (p *launchee) capabilities() {
	granted := p.d.Caps & p.f.Caps
	ambient := p.d.Ambient & granted
	p.step("set capabilities")
	p.capset(granted, granted, ambient)
	p.do(unix.SYS_PRCTL, imm(unix.PR_CAP_AMBIENT), imm(unix.PR_CAP_AMBIENT_CLEAR_ALL), imm(0), imm(0), imm(0))
	for c := range p.f.LastCap + 1 {
		if ambient&(1<<c) != 0 {
			p.do(unix.SYS_PRCTL, imm(unix.PR_CAP_AMBIENT), imm(unix.PR_CAP_AMBIENT_RAISE), imm(c), imm(0), imm(0))
		}
	}
	if p.d.NoNewPrivileges {
		p.step("set no_new_privs")
		p.do(unix.SYS_PRCTL, imm(unix.PR_SET_NO_NEW_PRIVS), imm(1), imm(0), imm(0), imm(0))
	}
}

// capset sets the process's capability sets. For a user other than root, execve leaves it the ambient ones only.
func (p *launchee) capset(effective, permitted, inheritable CapSet) {
	low := func(s CapSet) uint64 { return uint64(s) & 0xffffffff }
	header := p.words(unix.LINUX_CAPABILITY_VERSION_3)
	data := p.words(low(effective)|low(permitted)<<32, low(inheritable)|uint64(effective>>32)<<32, uint64(permitted>>32)|uint64(inheritable>>32)<<32)
	p.do(unix.SYS_CAPSET, header, data)
}

// sockFprog is a struct sock_fprog with n instructions at the data offset code.
func sockFprog(n int, code uint64) []byte {
	b := binary.NativeEndian.AppendUint16(make([]byte, 0, 16), uint16(n))
	return binary.NativeEndian.AppendUint64(append(b, 0, 0, 0, 0, 0, 0), code)
}

// lastWins drops all but the last assignment of each variable.
func lastWins(env []string) []string {
	last := map[string]int{}
	for i, e := range env {
		name, _, _ := strings.Cut(e, "=")
		last[name] = i
	}
	out := make([]string, 0, len(last))
	for i, e := range env {
		if name, _, _ := strings.Cut(e, "="); last[name] == i {
			out = append(out, e)
		}
	}
	return out
}

func decimal(n int) string { return strconv.Itoa(n) }

func quote(s string) string { return strconv.Quote(s) }

// rlimitName is the usual name of RLIMIT_n.
func rlimitName(n int) string {
	names := strings.Fields("CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME")
	if n < 0 || n >= len(names) {
		return decimal(n)
	}
	return names[n]
}
