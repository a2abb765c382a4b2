// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sigaction is the kernel's struct; the fields after handler stay zero for SIG_DFL and SIG_IGN.
type Sigaction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

// What a signal may do.
const (
	SigDefault = 0
	SigIgnore  = 1
)

// SetSignal changes what a signal does behind the back of the Go runtime, for the whole process. os/signal would bring
// package os with it and a goroutine that is never needed.
func SetSignal(sig syscall.Signal, handler uintptr) {
	act := Sigaction{handler: handler}
	syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
}
