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
		LowerdirPlus:    probeOption("overlay", "lowerdir+", "/"),
		ProcPIDNS:       probeOption("proc", "pidns", "/proc/self/ns/pid"),
		MemfdExec:       probeMemfdExec(),
		MountSetattr:    !errors.Is(unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}), unix.ENOSYS),
		CloneIntoCgroup: probeCloneIntoCgroup(),
		Seccomp:         len(actions) > 0,
		SeccompActions:  actions,
	}
}

// probeOption offers a file system one option; nothing is mounted.
func probeOption(fstype, key, value string) bool {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fs)
	return unix.FsconfigSetString(fs, key, value) == nil
}

func probeMemfdExec() bool {
	fd, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}
