// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crishim.dev/proto"
)

// signature is how Dump shows a call. Each letter of args is one argument: s string, d decimal, x hexadecimal, w octal mode, o open
// flags, n namespaces, m mount attributes, D device, E errno, v and e argument and environment vectors, h open_how, a mount_attr,
// l rlimit, c capability sets, g groups, f filter, * any other pointer.
type signature struct {
	nr         uint32
	name, args string
}

// signatures lists the calls that programs make.
func signatures() []signature {
	return []signature{
		{unix.SYS_CAPSET, "capset", "*c"},
		{unix.SYS_CHDIR, "chdir", "s"},
		{unix.SYS_CLOSE, "close", "d"},
		{unix.SYS_CLOSE_RANGE, "close_range", "dxx"},
		{unix.SYS_DUP3, "dup3", "ddx"},
		{unix.SYS_EXECVE, "execve", "sve"},
		{unix.SYS_EXECVEAT, "execveat", "dsvex"},
		{unix.SYS_FCHDIR, "fchdir", "d"},
		{unix.SYS_FCHMODAT, "fchmodat", "dsw"},
		{unix.SYS_FCHOWN, "fchown", "ddd"},
		{unix.SYS_FSCONFIG, "fsconfig", "ddssd"},
		{unix.SYS_FSMOUNT, "fsmount", "dxm"},
		{unix.SYS_FSOPEN, "fsopen", "sx"},
		{unix.SYS_IOCTL, "ioctl", "dx*"},
		{unix.SYS_KEYCTL, "keyctl", "xs"},
		{unix.SYS_MKDIRAT, "mkdirat", "dsw"},
		{unix.SYS_MKNODAT, "mknodat", "dswD"},
		{unix.SYS_MOUNT, "mount", "sssxs"},
		{unix.SYS_MOUNT_SETATTR, "mount_setattr", "dsxad"},
		{unix.SYS_MOVE_MOUNT, "move_mount", "dsdsx"},
		{unix.SYS_OPENAT, "openat", "dsow"},
		{unix.SYS_OPENAT2, "openat2", "dshd"},
		{unix.SYS_OPEN_TREE, "open_tree", "dsx"},
		{unix.SYS_PIVOT_ROOT, "pivot_root", "ss"},
		{unix.SYS_PRCTL, "prctl", "ddddd"},
		{unix.SYS_PRLIMIT64, "prlimit", "ddl*"},
		{unix.SYS_RT_SIGACTION, "rt_sigaction", "d**d"},
		{unix.SYS_RT_SIGPROCMASK, "rt_sigprocmask", "d**d"},
		{unix.SYS_SCHED_SETAFFINITY, "sched_setaffinity", "dd*"},
		{unix.SYS_SCHED_SETSCHEDULER, "sched_setscheduler", "dd*"},
		{unix.SYS_SECCOMP, "seccomp", "xxf"},
		{unix.SYS_SETFSGID, "setfsgid", "d"},
		{unix.SYS_SETFSUID, "setfsuid", "d"},
		{unix.SYS_SETGID, "setgid", "d"},
		{unix.SYS_SETGROUPS, "setgroups", "dg"},
		{unix.SYS_SETHOSTNAME, "sethostname", "sd"},
		{unix.SYS_SETNS, "setns", "dn"},
		{unix.SYS_SETPRIORITY, "setpriority", "ddd"},
		{unix.SYS_SETSID, "setsid", ""},
		{unix.SYS_SETUID, "setuid", "d"},
		{unix.SYS_SOCKET, "socket", "dxd"},
		{unix.SYS_SYMLINKAT, "symlinkat", "sds"},
		{unix.SYS_UMASK, "umask", "w"},
		{unix.SYS_UMOUNT2, "umount2", "sx"},
		{unix.SYS_UNSHARE, "unshare", "n"},
		{unix.SYS_WRITE, "write", "dsd"},
		{proto.PseudoStore32, "STORE32", "*d"},
		{proto.PseudoStore64, "STORE64", "*d"},
		{proto.PseudoClone, "CLONE", "n"},
		{proto.PseudoReport, "REPORT", "dd"},
		{proto.PseudoFail, "FAIL", "E"},
		{proto.PseudoExit, "EXIT", "d"},
		{proto.PseudoAside, "ASIDE", "d"},
		{proto.PseudoSend, "SEND", "dd"},
		{proto.PseudoReceive, "RECEIVE", "d"},
	}
}

func signatureOf(nr uint32) signature {
	for _, s := range signatures() {
		if s.nr == nr {
			return s
		}
	}
	return signature{nr, "syscall_" + strconv.Itoa(int(nr)), "xxxxxx"}
}

// Names of flags, each preceded by its value; a value of several bits comes before its parts.
const (
	namespaceNames = "0x20000 mnt 0x2000000 cgroup 0x4000000 uts 0x8000000 ipc 0x10000000 user 0x20000000 pid 0x40000000 net"
	attrNames      = "1 ro 2 nosuid 4 nodev 8 noexec"
	resolveNames   = "8 BENEATH 16 IN_ROOT 2 NO_MAGICLINKS 4 NO_SYMLINKS 1 NO_XDEV"
)

func flagNames(v uint64, names string) string {
	var out []string
	list := strings.Fields(names)
	for i := 0; i < len(list); i += 2 {
		if bit, err := strconv.ParseUint(list[i], 0, 64); err == nil && v&bit == bit {
			out = append(out, list[i+1])
			v &^= bit
		}
	}
	if v != 0 || len(out) == 0 {
		out = append(out, fmt.Sprintf("%#x", v))
	}
	return strings.Join(out, "|")
}

// openFlags names the flags of openat: their numbers depend on the architecture.
func openFlags(v uint64) string {
	out := []string{[]string{"RDONLY", "WRONLY", "RDWR", "3"}[v&3]}
	for _, f := range []struct {
		bit  uint64
		name string
	}{
		{unix.O_PATH, "PATH"}, {unix.O_DIRECTORY, "DIRECTORY"}, {unix.O_NOFOLLOW, "NOFOLLOW"}, {unix.O_NOCTTY, "NOCTTY"}, {unix.O_CLOEXEC, "CLOEXEC"},
	} {
		if v&f.bit != 0 {
			out = append(out, f.name)
			v &^= f.bit
		}
	}
	if v &^= 3; v != 0 {
		out = append(out, fmt.Sprintf("%#x", v))
	}
	return strings.Join(out, "|")
}
