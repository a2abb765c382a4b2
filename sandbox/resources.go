// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/cgroup"
	"crishim.dev/internal/errs"
)

// Update sets the pod's own overhead and the sum of its containers' resources, and resizes its cgroup to both together; nil leaves
// one as it is.
func (m *Manager) Update(ctx context.Context, id ID, overhead, resources *cri.LinuxContainerResources) error {
	unlock, err := m.locks.Lock(ctx, string(id))
	if err != nil {
		return err
	}
	defer unlock()
	r := m.current(id)
	switch {
	case r == nil || r.State == Creating:
		return errs.Newf(errs.NotFound, "update pod sandbox %s: no such sandbox", id)
	case r.State != Ready:
		return errs.Newf(errs.Precondition, "update pod sandbox %s: it is %s", id, r.State)
	}
	// The configuration stays the request's: a repeated RunPodSandbox is compared with it. What is in force is the cgroup's.
	linux := r.Config.GetLinux()
	if overhead == nil {
		overhead = linux.GetOverhead()
	}
	if resources == nil {
		resources = linux.GetResources()
	}
	g, err := m.o.Cgroups.Open(r.Cgroup)
	if err == nil {
		err = g.Update(ctx, Resources(sum(overhead, resources)))
	}
	if err != nil {
		return fmt.Errorf("update pod sandbox %s: %w", id, err)
	}
	return nil
}

// sum adds what can be added (shares, quota, memory); the rest is taken from resources.
func sum(overhead, resources *cri.LinuxContainerResources) *cri.LinuxContainerResources {
	if overhead == nil || resources == nil {
		if resources == nil {
			return overhead
		}
		return resources
	}
	out := proto.CloneOf(resources)
	out.CpuShares += overhead.GetCpuShares()
	if out.CpuQuota > 0 {
		out.CpuQuota += overhead.GetCpuQuota()
	}
	if out.MemoryLimitInBytes > 0 {
		out.MemoryLimitInBytes += overhead.GetMemoryLimitInBytes()
	}
	return out
}

// Resources translates CRI's limits; nil stays nil. oom_score_adj is not a cgroup's and is left out.
func Resources(r *cri.LinuxContainerResources) *cgroup.Resources {
	if r == nil {
		return nil
	}
	out := &cgroup.Resources{
		CPUShares: uint64(max(0, r.GetCpuShares())), CPUQuota: r.GetCpuQuota(), CPUPeriod: uint64(max(0, r.GetCpuPeriod())),
		CPUs: r.GetCpusetCpus(), Mems: r.GetCpusetMems(),
		Memory: r.GetMemoryLimitInBytes(), MemorySwap: r.GetMemorySwapLimitInBytes(), Unified: r.GetUnified(),
	}
	for _, h := range r.GetHugepageLimits() {
		if out.Hugepages == nil {
			out.Hugepages = map[string]uint64{}
		}
		out.Hugepages[h.GetPageSize()] = h.GetLimit()
	}
	return out
}
