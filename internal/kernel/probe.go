// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// probeFeatures asks for each feature with arguments that can't take effect.
func probeFeatures() Features {
	actions := strings.Fields(firstLine("/proc/sys/kernel/seccomp/actions_avail"))
	return Features{
		LowerdirPlus:    TakesOption("overlay", "lowerdir+", "/"),
		ProcPIDNS:       TakesOption("proc", "pidns", "/proc/self/ns/pid"),
		MemfdExec:       probeMemfdExec(),
		MountSetattr:    !errors.Is(unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}), unix.ENOSYS),
		CloneIntoCgroup: probeCloneIntoCgroup(),
		Seccomp:         len(actions) > 0,
		SeccompActions:  actions,
	}
}

// TakesOption says whether a file system knows an option; nothing is mounted. One that is behind the older interface takes whatever it is
// offered, and looks at it later (overlay before Linux 6.5): what it takes says nothing.
func TakesOption(fstype, key, value string) bool {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fs)
	return unix.FsconfigSetFlag(fs, "no-such-option") != nil && unix.FsconfigSetString(fs, key, value) == nil
}

func probeMemfdExec() bool {
	fd, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}
