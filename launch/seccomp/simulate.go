// SPDX-License-Identifier: Apache-2.0

package seccomp

import (
	"encoding/binary"
	"fmt"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// call is a struct seccomp_data as far as filters look at it.
type call struct {
	nr, arch uint32
	args     [6]uint64
}

// simulate runs a filter. x/net/bpf loads words in network order, so that is how they are laid out here.
func simulate(vm *bpf.VM, c call) (uint32, error) {
	b := binary.BigEndian.AppendUint32(nil, c.nr)
	b = binary.BigEndian.AppendUint32(b, c.arch)
	b = append(b, make([]byte, 8)...) // instruction pointer
	for _, a := range c.args {
		b = binary.BigEndian.AppendUint32(b, uint32(a))
		b = binary.BigEndian.AppendUint32(b, uint32(a>>32))
	}
	ret, err := vm.Run(b)
	return uint32(ret), err
}

// narrow says whether the filter refuses one of the calls between it and execve that starting a process in an existing pid namespace takes.
func narrow(code []bpf.Instruction, native *arch.Info) (bool, error) {
	vm, err := bpf.NewVM(code)
	if err != nil {
		return false, fmt.Errorf("check seccomp filter: %w", err)
	}
	for name, args := range map[string][6]uint64{
		"clone":      {unix.CLONE_PARENT | unix.CLONE_PIDFD},
		"sendmsg":    {},
		"exit_group": {},
		"setsid":     {},
		"ioctl":      {0, unix.TIOCSCTTY},
	} {
		ret, err := simulate(vm, call{nr: uint32(native.SyscallNames[name]), arch: uint32(native.ID), args: args})
		if err != nil {
			return false, fmt.Errorf("check seccomp filter: %w", err)
		}
		if ret != retAllow && ret != retLog {
			return true, nil
		}
	}
	return false, nil
}
