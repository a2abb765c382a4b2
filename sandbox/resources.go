// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"cmp"
	"context"
	"fmt"
	"slices"

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
	// The configuration stays the request's: a repeated RunPodSandbox is compared with it.
	updated := r.with(func(r *record) {
		if overhead != nil {
			r.Overhead = overhead
		}
		if resources != nil {
			r.Resources = resources
		}
	})
	if err := m.resize(ctx, updated); err != nil {
		return fmt.Errorf("update pod sandbox %s: %w", id, err)
	}
	return m.put(updated)
}

// resize gives the pod's cgroup the limits of r.
func (m *Manager) resize(ctx context.Context, r *record) error {
	limits, err := sum(r.Overhead, r.Resources)
	if err != nil || limits == nil {
		return err
	}
	g, err := m.o.Cgroups.Open(r.Cgroup)
	if err != nil {
		return err
	}
	return g.Update(ctx, Resources(limits))
}

// defaultPeriod is the kernel's cpu.cfs_period_us.
const defaultPeriod = 100000

// sum is what a pod may use: its own overhead and its containers' resources. What has no limit in resources has none in the sum.
// The two must not ask for different values of what can't be added.
func sum(overhead, resources *cri.LinuxContainerResources) (*cri.LinuxContainerResources, error) {
	if overhead == nil || resources == nil {
		if resources == nil {
			return overhead, nil
		}
		return resources, nil
	}
	out := proto.CloneOf(resources)
	out.CpuShares += overhead.GetCpuShares()
	if out.CpuQuota > 0 {
		// The same share of time, in the period of the sum.
		period, own := cmp.Or(out.GetCpuPeriod(), defaultPeriod), cmp.Or(overhead.GetCpuPeriod(), defaultPeriod)
		out.CpuQuota += max(0, overhead.GetCpuQuota()) * period / own
	}
	if out.MemoryLimitInBytes > 0 {
		out.MemoryLimitInBytes += max(0, overhead.GetMemoryLimitInBytes())
	}
	if out.MemorySwapLimitInBytes > 0 {
		out.MemorySwapLimitInBytes += max(0, overhead.GetMemorySwapLimitInBytes())
	}
	for _, h := range overhead.GetHugepageLimits() {
		i := slices.IndexFunc(out.HugepageLimits, func(have *cri.HugepageLimit) bool { return have.GetPageSize() == h.GetPageSize() })
		if i < 0 {
			out.HugepageLimits = append(out.HugepageLimits, proto.CloneOf(h))
		} else {
			out.HugepageLimits[i].Limit += h.GetLimit()
		}
	}
	return out, addExact(out, overhead)
}

// addExact adds to out what must be the same in both where both say it.
func addExact(out, overhead *cri.LinuxContainerResources) error {
	for _, f := range []struct {
		name string
		own  string
		sum  *string
	}{{"cpuset_cpus", overhead.GetCpusetCpus(), &out.CpusetCpus}, {"cpuset_mems", overhead.GetCpusetMems(), &out.CpusetMems}} {
		if f.own != "" && *f.sum != "" && f.own != *f.sum {
			return errs.Newf(errs.Invalid, "overhead.%s: is %s, but that of resources is %s", f.name, f.own, *f.sum)
		}
		*f.sum = cmp.Or(*f.sum, f.own)
	}
	for name, v := range overhead.GetUnified() {
		if have, ok := out.GetUnified()[name]; ok && have != v {
			return errs.Newf(errs.Invalid, "overhead.unified[%q]: is %q, but that of resources is %q", name, v, have)
		}
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		out.Unified[name] = v
	}
	return nil
}

// Resources translates CRI's limits; nil stays nil. oom_score_adj is a process's, not a cgroup's.
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
