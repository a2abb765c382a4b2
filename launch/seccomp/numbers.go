// SPDX-License-Identifier: Apache-2.0

package seccomp

import (
	"slices"
	"strings"

	"github.com/elastic/go-seccomp-bpf/arch"
)

// x32Calls are those that x32 has numbers of its own for, from 512 on in this order (Linux arch/x86/entry/syscalls/syscall_64.tbl).
const x32Calls = "rt_sigaction rt_sigreturn ioctl readv writev recvfrom sendmsg recvmsg execve ptrace rt_sigpending rt_sigtimedwait " +
	"rt_sigqueueinfo sigaltstack timer_create mq_notify kexec_load waitid set_robust_list get_robust_list vmsplice move_pages preadv " +
	"pwritev rt_tgsigqueueinfo recvmmsg sendmmsg process_vm_readv process_vm_writev setsockopt getsockopt io_setup io_submit execveat " +
	"preadv2 pwritev2"

// x32Lacks are those that only the 64-bit ABI of x86-64 has.
const x32Lacks = " _sysctl create_module epoll_ctl_old epoll_wait_old get_kernel_syms get_thread_area map_shadow_stack nfsservctl query_module " +
	"set_thread_area uselib vserver "

// number is the number that a call has in seccomp's eyes on an architecture; false where there is none. It is that of our tables,
// where those are right.
func number(info *arch.Info, name string) (uint32, bool) {
	n, ok := info.SyscallNames[name]
	switch info {
	case arch.X32:
		if i := slices.Index(strings.Fields(x32Calls), name); i >= 0 {
			n, ok = 512+i, true
		} else if strings.Contains(x32Lacks, " "+name+" ") {
			return 0, false
		}
	case arch.AARCH64:
		if name == "newfstatat" {
			n, ok = info.SyscallNames["fstatat"] // the tables have it by another name
		} else if n >= 403 && n <= 423 && ok {
			return 0, false // only 32-bit architectures have a second call for 64-bit times
		}
	}
	return uint32(n) | uint32(info.SeccompMask), ok
}
