// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"crishim.dev/internal/errs"
)

// Resources are limits in the terms of CRI's LinuxContainerResources. A zero field is left as it is.
type Resources struct {
	// CPUShares is 2 to 262144; version 2 gets the weight that means the same.
	CPUShares uint64
	// CPUQuota is in microseconds a period; negative: no limit. CPUPeriod is 1000 to 1000000 microseconds.
	CPUQuota  int64
	CPUPeriod uint64
	// CPUs and Mems are lists such as "0-3,6".
	CPUs, Mems string
	// Memory is in bytes; MemorySwap is memory and swap together, in bytes. -1: no limit.
	Memory, MemorySwap int64
	// Pids is how many tasks there may be; -1: no limit.
	Pids int64
	// Hugepages are limits in bytes by page size ("2MB").
	Hugepages map[string]uint64
	// Unified are values of version 2 control files, applied last.
	Unified map[string]string
	// Devices is what may be opened and made.
	Devices *Devices
}

// check refuses what the kernel would refuse or silently bend, naming the field as CRI does.
func (r *Resources) check(version int) error {
	bad := func(field string, v any, want string) error {
		return errs.Newf(errs.Invalid, "check %s: %v is not %s", field, v, want)
	}
	switch {
	case r.CPUShares != 0 && (r.CPUShares < 2 || r.CPUShares > 262144):
		return bad("cpu_shares", r.CPUShares, "from 2 to 262144")
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000):
		return bad("cpu_period", r.CPUPeriod, "from 1000 to 1000000 microseconds")
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return bad("cpu_quota", r.CPUQuota, "at least 1000 microseconds, or negative for none")
	case r.Memory < -1:
		return bad("memory_limit_in_bytes", r.Memory, "a size, or -1 for none")
	case r.MemorySwap < -1:
		return bad("memory_swap_limit_in_bytes", r.MemorySwap, "a size, or -1 for none")
	case r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return bad("memory_swap_limit_in_bytes", r.MemorySwap, "at least memory_limit_in_bytes, which it includes")
	case r.MemorySwap > 0 && r.Memory == -1:
		return bad("memory_swap_limit_in_bytes", r.MemorySwap, "-1, although there is no memory limit")
	case r.Pids < -1:
		return bad("pids_limit", r.Pids, "a number, or -1 for none")
	case !isList(r.CPUs):
		return bad("cpuset_cpus", strconv.Quote(r.CPUs), "a list like 0-3,6")
	case !isList(r.Mems):
		return bad("cpuset_mems", strconv.Quote(r.Mems), "a list like 0-3,6")
	}
	for size := range r.Hugepages {
		if !isPageSize(size) {
			return bad("hugepage_limits", strconv.Quote(size), "a page size like 2MB")
		}
	}
	if err := r.Devices.check(); err != nil {
		return err
	}
	return r.checkUnified(version)
}

// checkUnified lets through control files of controllers only. The cgroup.* files start and kill processes and hand control
// down; a limit on descendants is the one of them that is a resource.
func (r *Resources) checkUnified(version int) error {
	for _, k := range slices.Sorted(maps.Keys(r.Unified)) {
		controller, name, ok := strings.Cut(k, ".")
		switch {
		case strings.ContainsAny(k, "/\x00\n ") || !ok || controller == "" || name == "" || strings.Contains(k, ".."):
			return errs.Newf(errs.Invalid, "check unified: %q is not the name of a cgroup v2 control file", k)
		case controller == "cgroup" && !strings.HasPrefix(name, "max."):
			return errs.Newf(errs.Invalid, "check unified: %q is not a resource", k)
		case version == 1:
			return errs.Newf(errs.Invalid, "check unified: %q needs cgroup v2, and this host has v1", k)
		}
	}
	return nil
}

// isList accepts the List Format of cpuset(7), and the empty string.
func isList(s string) bool {
	if s == "" {
		return true
	}
	for part := range strings.SplitSeq(s, ",") {
		first, last, ranged := strings.Cut(part, "-")
		a, err := strconv.ParseUint(first, 10, 31)
		if err != nil {
			return false
		}
		if b, err := strconv.ParseUint(last, 10, 31); ranged && (err != nil || b < a) {
			return false
		}
	}
	return true
}

func isPageSize(s string) bool {
	n := strings.TrimRight(s, "KMGB")
	_, err := strconv.ParseUint(n, 10, 32)
	return err == nil && slices.Contains([]string{"KB", "MB", "GB"}, s[len(n):])
}

// weight converts version 1 shares to a version 2 weight: a quadratic in the logarithm through 2 → 1, 1024 → 100 (the two
// defaults) and 262144 → 10000. The linear map that was used before gave a container with one CPU's request 39, less than
// half of what a system service has (opencontainers/cgroups, since v0.0.5; KEP-2254).
func weight(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

// limit writes a number as version 2 control files take it.
func limit(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}
