// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"math"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cloneArgs is struct clone_args as of Linux 5.7, which appended cgroup.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// probeCloneIntoCgroup clones into a cgroup that can't exist: EBADF where the flag is known, EINVAL or E2BIG where it is not.
func probeCloneIntoCgroup() bool {
	args := cloneArgs{flags: unix.CLONE_INTO_CGROUP, exitSignal: uint64(unix.SIGCHLD), cgroup: math.MaxInt32}
	_, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	return errno == unix.EBADF
}
