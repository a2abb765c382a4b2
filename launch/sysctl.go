// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"slices"
	"strings"

	"crishim.dev/internal/errs"
)

// ipcSysctls are those that each ipc namespace has for itself (Linux ipc/ipc_sysctl.c, ipc/mq_sysctl.c).
const ipcSysctls = " kernel/shmall kernel/shmmax kernel/shmmni kernel/shm_rmid_forced kernel/shm_next_id " +
	"kernel/msgmax kernel/msgmnb kernel/msgmni kernel/msg_next_id kernel/sem kernel/sem_next_id " +
	"fs/mqueue/queues_max fs/mqueue/msg_max fs/mqueue/msgsize_max fs/mqueue/msg_default fs/mqueue/msgsize_default "

// Bounds of what a sysctl may be; the kernel's tables have nothing longer than a few dozen characters (lists of ports aside).
const (
	maxSysctlName  = 256
	maxSysctlValue = 4096
)

// sysctlPath is name below /proc/sys. As for sysctl(8), the first separator decides: in "net.ipv4.conf.eth0/1.mtu" and
// "net/ipv4/conf/eth0.1/mtu" the other one is a dot in a component.
func sysctlPath(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '/' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}

// ValidSysctl says whether a pod may set name to value: only what belongs to a namespace that the pod has for itself.
// The error is errs.Invalid.
func ValidSysctl(name, value string, hostNet, hostIPC bool) error {
	path := sysctlPath(name)
	components := strings.Split(path, "/")
	if len(name) > maxSysctlName || !wellFormed(components) {
		return errs.Newf(errs.Invalid, "sysctl %q: malformed name", name)
	}
	if len(value) > maxSysctlValue || value == "" || strings.ContainsFunc(value, func(r rune) bool { return (r < ' ' && r != '\t') || r > '~' }) {
		return errs.Newf(errs.Invalid, "sysctl %q: malformed value", name)
	}
	switch {
	case components[0] == "net" || path == "kernel/domainname":
		if hostNet {
			return errs.Newf(errs.Invalid, "sysctl %q: not with the host's network", name)
		}
	case strings.Contains(ipcSysctls, " "+path+" "):
		if hostIPC {
			return errs.Newf(errs.Invalid, "sysctl %q: not with the host's ipc namespace", name)
		}
	default:
		return errs.Newf(errs.Invalid, "sysctl %q: does not belong to a namespace of the pod", name)
	}
	return nil
}

// wellFormed says whether the components name a sysctl and nothing else. Only those of an interface (the fourth on) may
// have capitals, dots and the like.
func wellFormed(components []string) bool {
	if len(components) < 2 {
		return false
	}
	for i, c := range components {
		if c == "" || c[0] == '.' {
			return false
		}
		odd := func(r rune) bool {
			plain := r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' || r == '-'
			ofInterface := i >= 3 && (r >= 'A' && r <= 'Z' || strings.ContainsRune(".:@+", r))
			return !plain && !ofInterface
		}
		if slices.ContainsFunc([]rune(c), odd) {
			return false
		}
	}
	return true
}
