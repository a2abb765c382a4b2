// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"os"

	"crishim.dev/proto"
)

// FD is an index into the descriptors that the caller passes with the program, or NoFD. Its zero value is the first descriptor.
type FD int

// NoFD is no descriptor.
const NoFD FD = -1

// FDList collects the descriptors of a program. It owns none of them.
type FDList struct{ Files []*os.File }

// Add appends f and returns its index; NoFD for nil.
func (l *FDList) Add(f *os.File) FD {
	if f == nil {
		return NoFD
	}
	l.Files = append(l.Files, f)
	return FD(len(l.Files) - 1)
}

// Plan is what the keeper is asked to do.
type Plan struct {
	Program *proto.Program
	// CloneFlags are the CLONE_NEW* flags of the first clone.
	CloneFlags uint64
	// Cgroup is the index of the cgroup v2 directory for CLONE_INTO_CGROUP, or -1.
	Cgroup int
}

// Description is a container's first process and all that surrounds it.
type Description struct {
	Process
	Cgroup

	// NetNS, IPCNS and UTSNS are the pod's; NoFD leaves the keeper's, which are the host's.
	NetNS, IPCNS, UTSNS FD
	// PID says which pid namespace; PIDNS is the one to join with PIDJoin.
	PID   PIDMode
	PIDNS FD
	// PIDMount is the mount namespace of a process in PIDNS (the pod's init, the target's first process), where proc is mounted. Only
	// used, and then needed, with PIDJoin where Facts.ProcPIDNS is false.
	PIDMount FD
	// UserNS is the pod's user namespace, or NoFD. NetNS, IPCNS, UTSNS and PIDNS then belong to it, Root and volumes are id-mapped, Dev
	// and what Targets lists belong to IDBase, and ids in this description are those inside.
	UserNS FD
	// HostCgroupNS leaves the process in the keeper's cgroup namespace; else it gets its own, rooted at its cgroup.
	HostCgroupNS bool

	// Root is the detached mount of the root file system. It is used up: one descriptor, one launch.
	Root FD
	// ReadOnlyRoot makes the root file system read-only once all mount points exist.
	ReadOnlyRoot bool
	// Dev is a detached tmpfs with the contents of DevNodes: the container's /dev. Not used (NoFD is fine) when Mounts has /dev.
	Dev FD
	// Shm is a detached clone of the pod's /dev/shm (the host's, with host IPC). NoFD: a tmpfs of its own, 64 MiB.
	Shm FD
	// SysReadWrite and CgroupReadWrite leave /sys and /sys/fs/cgroup writable (privileged containers).
	SysReadWrite, CgroupReadWrite bool
	// Mounts are the volumes. One with the target of a standard mount replaces it; one on /dev also those below /dev.
	Mounts []Mount
	// MaskedPaths are hidden under /dev/null or an empty directory, ReadOnlyPaths made read-only; missing ones are skipped.
	MaskedPaths, ReadOnlyPaths []string
}

// Process is who runs what, and with which rights. Container and Exec share it.
type Process struct {
	// Args is the command; without a slash its first word is looked for in Env's PATH.
	Args []string
	Env  []string
	// Cwd is absolute; empty is "/". Container makes it where it is missing (see Targets).
	Cwd string

	UID, GID uint32
	Groups   []uint32
	// IDBase is what id 0 of the user namespace is on the host; 0 without one.
	IDBase uint32
	// Caps are granted as far as the host has them (Facts.Caps): bounding, permitted and effective. For a user other than
	// root execve clears the last two, as it does under every runtime; Ambient ones survive it and must be in Caps.
	Caps, Ambient   CapSet
	NoNewPrivileges bool
	// Seccomp is nil for unconfined.
	Seccomp *Seccomp
	// AppArmor is the name of a loaded profile, SELinux a process label; empty: none.
	AppArmor, SELinux string

	// OOMScoreAdj is raised to the lowest value that this host allows (Facts.OOMScoreAdjMin).
	OOMScoreAdj int
	// Rlimits are set as far as the host allows (Facts.Rlimits).
	Rlimits []Rlimit

	// TTY makes a pty whose master goes to the keeper; Stdin, Stdout and Stderr, which say that the keeper made a FIFO
	// for that stream, are then ignored. A stream with neither is /dev/null.
	TTY                   bool
	Stdin, Stdout, Stderr bool
}

// Seccomp is a compiled filter; launch/seccomp makes it.
type Seccomp struct {
	// Code is an array of struct sock_filter.
	Code []byte
	// Flags are SECCOMP_FILTER_FLAG_* bits.
	Flags uint64
	// Narrow says that the filter refuses one of the calls that are made between it and execve when a pid namespace is
	// joined (clone, setsid, sendmsg, exit_group, ioctl). It is then installed after them, where a process with CAP_SYS_PTRACE in
	// that namespace could come first.
	Narrow bool
}

// Rlimit is one resource limit (RLIMIT_*).
type Rlimit struct {
	Resource   int
	Soft, Hard uint64
}

// Cgroup says how the process gets into its cgroup, in each hierarchy of the host (cgroup.Group.Files).
type Cgroup struct {
	// Procs are files of the v1 hierarchies into which the process writes "0".
	Procs []FD
	// Dir is the directory in the v2 hierarchy, a hybrid host's too, or NoFD.
	Dir FD
}

// PIDMode says which pid namespace a container has.
type PIDMode int

// The modes.
const (
	// PIDOwn is a new one.
	PIDOwn PIDMode = iota
	// PIDJoin is an existing one: the pod's or another container's.
	PIDJoin
	// PIDHost is the keeper's, which is the host's.
	PIDHost
)

// Mount is a volume: a detached mount that the caller has made and given its attributes.
type Mount struct {
	// Target is absolute, in the container.
	Target string
	// FD is used up: one descriptor, one launch.
	FD FD
	// File says that the volume is not a directory.
	File bool
}

// Target is a mount point (or working directory) that must exist in the root file system before the launch.
type Target struct {
	Path string
	File bool
}

// ExecDescription is another process in a container that runs.
type ExecDescription struct {
	Process
	Cgroup
	// PIDFD is the container's first process, whose namespaces are joined.
	PIDFD FD
	// HostPID, HostNet, HostIPC, HostUTS and HostCgroupNS say that the container has the host's and there is nothing to join.
	HostPID, HostNet, HostIPC, HostUTS, HostCgroupNS bool
	// UserNS says that the container has a user namespace of its own.
	UserNS bool
	// Stdio are the caller's ends of the streams that Stdin, Stdout and Stderr announce: the keeper makes no FIFOs for an exec. With
	// TTY they are not used, and the pty's master is returned to the caller.
	Stdio [3]FD
}

// PodDescription is a pod's namespaces. The program reports descriptors in this order, leaving out what the host's stands for:
// a NETLINK_ROUTE socket opened in the network namespace, then the net, ipc and uts namespaces.
type PodDescription struct {
	HostNet, HostIPC, HostUTS bool
	// Hostname is set unless empty or HostUTS.
	Hostname string
	// Sysctls must pass ValidSysctl; they are written in the order of their names.
	Sysctls map[string]string
	// UserNS owns the new namespaces; NoFD: the host's.
	UserNS FD
}

// PodInitDescription is the first process of a pod with a shared pid namespace.
type PodInitDescription struct {
	Cgroup
	// NetNS, IPCNS, UTSNS and UserNS are the pod's, so that the process has no access to any of the host's.
	NetNS, IPCNS, UTSNS, UserNS FD
	// Binary is a memfd with the contents of InitELF.
	Binary FD
	// Seccomp is optional; launch/seccomp's default profile lets the process through.
	Seccomp *Seccomp
}
