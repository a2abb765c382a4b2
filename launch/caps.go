// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"math/bits"
	"strings"

	"crishim.dev/internal/errs"
)

// CapSet is a set of capabilities: bit n is capability n of <linux/capability.h>.
type CapSet uint64

// capNames are the capabilities without CAP_, by number. Linux 5.9 added the last one and none has been added since (7.0).
const capNames = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE " +
	"NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT " +
	"SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG " +
	"WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"

// AllCaps are all capabilities that this package knows by name.
const AllCaps CapSet = 1<<41 - 1

// DefaultCaps are those of a container that asks for nothing: containerd 2's list.
const DefaultCaps CapSet = 1<<0 | 1<<1 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<13 | 1<<18 | 1<<27 | 1<<29 | 1<<31

const (
	capDACOverride   CapSet = 1 << 1
	capDACReadSearch CapSet = 1 << 2
	capSysAdmin      CapSet = 1 << 21
)

// ParseCap gives the set for one name: with or without "CAP_", in any case, or "ALL".
func ParseCap(name string) (CapSet, error) {
	n := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	if n == "ALL" {
		return AllCaps, nil
	}
	for i, c := range strings.Fields(capNames) {
		if c == n {
			return 1 << i, nil
		}
	}
	return 0, errs.Newf(errs.Invalid, "unknown capability %q", name)
}

// EditCaps applies CRI's add and drop lists to a set: ALL first, single names after, drops last.
func EditCaps(set CapSet, add, drop []string) (CapSet, error) {
	var added, dropped CapSet
	for i, list := range [][]string{add, drop} {
		for _, name := range list {
			c, err := ParseCap(name)
			switch {
			case err != nil:
				return 0, err
			case c == AllCaps && i == 0:
				set = AllCaps
			case c == AllCaps:
				set = 0
			case i == 0:
				added |= c
			default:
				dropped |= c
			}
		}
	}
	return (set | added) &^ dropped, nil
}

// Names lists the set as "CAP_…", by number.
func (s CapSet) Names() []string {
	names := make([]string, 0, bits.OnesCount64(uint64(s)))
	for i, n := range strings.Fields(capNames) {
		if s&(1<<i) != 0 {
			names = append(names, "CAP_"+n)
		}
	}
	return names
}
