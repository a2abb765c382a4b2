// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// capSysResource is the number of CAP_SYS_RESOURCE.
const capSysResource = unix.CAP_SYS_RESOURCE

// Facts is what Probe finds. It does not change while the machine runs.
type Facts struct {
	// Release is uname's: "6.18.44-fc".
	Release      string
	Major, Minor int
	// Caps are the capabilities that this process has and can pass on: bit n is capability n.
	Caps uint64
	// LastCap is the highest capability that the kernel knows.
	LastCap int
	// OOMScoreAdjMin is the lowest oom_score_adj that this process may give its children.
	OOMScoreAdjMin int
	// Rlimits are the hard limits that it can't exceed, by resource; empty with CAP_SYS_RESOURCE.
	Rlimits map[int]uint64
	// CgroupVersion is 2 when /sys/fs/cgroup is the unified hierarchy; else 1, and Hierarchies has its v1 hierarchies.
	CgroupVersion int
	Hierarchies   []Hierarchy
	// AppArmor and SELinux say that the module is active.
	AppArmor, SELinux bool
	Features          Features
}

// Features are what kernels that we support may lack.
type Features struct {
	// LowerdirPlus: overlay takes its lower layers one by one ("lowerdir+", Linux 6.7).
	LowerdirPlus bool
	// ProcPIDNS: proc can be mounted for a pid namespace that is named ("pidns", Linux 6.17).
	ProcPIDNS bool
	// MemfdExec: memfd_create takes MFD_EXEC (Linux 6.3).
	MemfdExec bool
	// MountSetattr: mount_setattr, which recursive read-only and id-mapped mounts need (Linux 5.12).
	MountSetattr bool
	// CloneIntoCgroup: clone3 puts a child into a v2 cgroup (Linux 5.7).
	CloneIntoCgroup bool
	// Seccomp: filters can be installed, with the actions of SeccompActions.
	Seccomp        bool
	SeccompActions []string
}

// AtLeast says whether the kernel's version is major.minor or later.
func (f *Facts) AtLeast(major, minor int) bool {
	return f.Major > major || f.Major == major && f.Minor >= minor
}

// Probe looks at this host.
func Probe() (Facts, error) {
	var f Facts
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return f, fmt.Errorf("read kernel version: %w", err)
	}
	var err error
	f.Release = unix.ByteSliceToString(u.Release[:])
	if f.Major, f.Minor, err = ParseRelease(f.Release); err != nil {
		return f, err
	}
	if err := f.rights(); err != nil {
		return f, err
	}
	if err := f.cgroups(); err != nil {
		return f, err
	}
	f.AppArmor = strings.HasPrefix(firstLine("/sys/module/apparmor/parameters/enabled"), "Y")
	_, err = os.Stat("/sys/fs/selinux/enforce")
	f.SELinux = err == nil
	f.Features = probeFeatures()
	return f, nil
}

// rights fills in what this process may do.
func (f *Facts) rights() error {
	status, err := os.Open("/proc/self/status")
	if err != nil {
		return fmt.Errorf("read own status: %w", err)
	}
	defer status.Close()
	if f.Caps, err = ParseCaps(status); err != nil {
		return err
	}
	last := firstLine("/proc/sys/kernel/cap_last_cap")
	if _, err := fmt.Sscanf(last, "%d", &f.LastCap); err != nil {
		return fmt.Errorf("parse cap_last_cap %q: %w", last, err)
	}
	f.OOMScoreAdjMin, f.Rlimits = -1000, map[int]uint64{}
	if f.Caps&(1<<capSysResource) != 0 {
		return nil
	}
	adj := firstLine("/proc/self/oom_score_adj")
	if _, err := fmt.Sscanf(adj, "%d", &f.OOMScoreAdjMin); err != nil {
		return fmt.Errorf("parse oom_score_adj %q: %w", adj, err)
	}
	for resource := range unix.RLIMIT_RTTIME + 1 {
		var l unix.Rlimit
		if err := unix.Getrlimit(resource, &l); err != nil {
			return fmt.Errorf("read limit %d: %w", resource, err)
		}
		f.Rlimits[resource] = l.Max
	}
	return nil
}

func (f *Facts) cgroups() error {
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil {
		return fmt.Errorf("look at /sys/fs/cgroup: %w", err)
	}
	if f.CgroupVersion = 1; fs.Type == unix.CGROUP2_SUPER_MAGIC {
		f.CgroupVersion = 2
		return nil
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	defer mounts.Close()
	f.Hierarchies, err = ParseHierarchies(mounts)
	return err
}

// firstLine is the first line of a small file, or empty.
func firstLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}
