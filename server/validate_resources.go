// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"regexp"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var (
	pageSize    = regexp.MustCompile(`^[1-9][0-9]{0,3}[KMG]B$`)
	unifiedName = regexp.MustCompile(`^[a-z_]{1,32}(\.[a-zA-Z0-9_]{1,32})+$`)
)

// resources checks limits: their range, and that they don't contradict each other. 0 is "not specified" throughout.
func (f *fields) resources(field string, r *cri.LinuxContainerResources) {
	if r == nil {
		return
	}
	// kernel/sched/core.c: min_cfs_quota_period is 1 ms, max_cfs_quota_period 1 s.
	if p := r.GetCpuPeriod(); p != 0 && (p < 1000 || p > 1000000) {
		f.bad(field+".cpu_period", "%d is not within 1000 to 1000000", p)
	}
	if q := r.GetCpuQuota(); q < -1 || q > 0 && q < 1000 {
		f.bad(field+".cpu_quota", "%d is neither -1 nor at least 1000", q)
	}
	if s := r.GetCpuShares(); s < 0 {
		f.bad(field+".cpu_shares", "%d is negative", s)
	}
	f.memory(field, r)
	if o := r.GetOomScoreAdj(); o < -1000 || o > 1000 {
		f.bad(field+".oom_score_adj", "%d is not within -1000 to 1000", o)
	}
	for _, l := range []struct{ name, v string }{{"cpuset_cpus", r.GetCpusetCpus()}, {"cpuset_mems", r.GetCpusetMems()}} {
		if l.v != "" && (len(l.v) > maxPath || !cpuList.MatchString(l.v)) {
			f.bad(field+"."+l.name, "%q is no list of numbers and ranges", l.v)
		}
	}
	f.hugepages(field+".hugepage_limits", r.GetHugepageLimits())
	for k, v := range r.GetUnified() {
		at := fmt.Sprintf("%s.unified[%q]", field, k)
		if !unifiedName.MatchString(k) {
			f.bad(at, "is no cgroup file")
		}
		if strings.HasPrefix(k, "cgroup.") {
			f.bad(at, "is the runtime's own")
		}
		if v == "" {
			f.bad(at, "is empty")
		}
		f.text(at, v)
	}
}

// podResources are those of a pod's cgroup.
func (f *fields) podResources(field string, r *cri.LinuxContainerResources) {
	f.resources(field, r)
	f.absent(field+".oom_score_adj", r.GetOomScoreAdj() != 0, "a pod has no process of its own")
}

func (f *fields) memory(field string, r *cri.LinuxContainerResources) {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if limit < -1 {
		f.bad(field+".memory_limit_in_bytes", "%d is negative", limit)
	}
	if swap < -1 {
		f.bad(field+".memory_swap_limit_in_bytes", "%d is negative", swap)
	}
	// The swap limit counts memory and swap together.
	if swap > 0 && (limit < 0 || swap < limit) {
		f.bad(field+".memory_swap_limit_in_bytes", "%d is less than memory_limit_in_bytes", swap)
	}
}

func (f *fields) hugepages(field string, limits []*cri.HugepageLimit) {
	seen := map[string]bool{}
	for i, h := range limits {
		at := fmt.Sprintf("%s[%d].page_size", field, i)
		if !pageSize.MatchString(h.GetPageSize()) {
			f.bad(at, "%q is not of the form 2MB or 1GB", h.GetPageSize())
		}
		if seen[h.GetPageSize()] {
			f.bad(at, "%q is there twice", h.GetPageSize())
		}
		seen[h.GetPageSize()] = true
	}
}
