// SPDX-License-Identifier: Apache-2.0

package launch

import "crishim.dev/internal/kernel"

// Facts is what programs depend on besides their description. FromKernel fills it.
type Facts struct {
	// Caps is the capability bounding set of the daemon and the keeper: what can be granted at most.
	Caps CapSet
	// LastCap is the kernel's highest capability.
	LastCap int
	// OOMScoreAdjMin is the lowest oom_score_adj that may be set here: -1000 with CAP_SYS_RESOURCE, else the own one.
	OOMScoreAdjMin int
	// Rlimits are the hard limits that can't be exceeded here, by resource; empty with CAP_SYS_RESOURCE.
	Rlimits map[int]uint64
	// ProcPIDNS says that proc can be mounted for any pid namespace ("pidns=", Linux 6.17). Before, it is that of the process which
	// mounts: setns does not count.
	ProcPIDNS bool
	// AppArmor and SELinux say that the kernel enforces such labels.
	AppArmor, SELinux bool
	// CgroupVersion is 1 or 2.
	CgroupVersion int
	// Hierarchies are the cgroup v1 hierarchies, in the order in which the host has them.
	Hierarchies []Hierarchy
}

// Hierarchy is one cgroup v1 hierarchy.
type Hierarchy struct {
	// Dir is its directory's name below /sys/fs/cgroup: "cpu,cpuacct".
	Dir string
	// Controllers are its controllers, or none for a named one.
	Controllers []string
	// Name is that of a named hierarchy: "systemd".
	Name string
}

// FromKernel picks what programs depend on.
func FromKernel(k kernel.Facts) Facts {
	f := Facts{
		Caps: CapSet(k.Caps), LastCap: k.LastCap, OOMScoreAdjMin: k.OOMScoreAdjMin, Rlimits: k.Rlimits,
		ProcPIDNS: k.Features.ProcPIDNS, AppArmor: k.AppArmor, SELinux: k.SELinux, CgroupVersion: k.CgroupVersion,
	}
	for _, h := range k.Hierarchies {
		f.Hierarchies = append(f.Hierarchies, Hierarchy(h))
	}
	return f
}
