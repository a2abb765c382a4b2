// SPDX-License-Identifier: Apache-2.0

// Package stats turns what cgroups and network devices count into CRI's statistics and metrics.
//
// Nothing is sampled: every answer is read when it is asked for. The one thing kept is the last CPU reading of each object,
// since usage_nano_cores is the rate between two of them. Whose group is whose, and what a writable layer takes, the caller says;
// no disk is touched here.
//
// Neighbours: cgroup reads the groups; server answers with what this package makes.
package stats

import (
	"errors"
	"fmt"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/cgroup"
	"crishim.dev/internal/errs"
)

// Container says what to measure of a running container.
type Container struct {
	Attributes *cri.ContainerAttributes
	// Cgroup is the container's path as cgroup.Manager gave it.
	Cgroup string
	// PID is the first process, for metrics; 0 if there is none.
	PID int
	// Image, Resources (those in force) and StartedAt are for metrics.
	Image     string
	Resources *cri.LinuxContainerResources
	StartedAt time.Time
}

// Pod says what to measure of a pod.
type Pod struct {
	Attributes *cri.PodSandboxAttributes
	// Cgroup is the pod's path as cgroup.Manager gave it.
	Cgroup string
	// NetNS is where the network namespace is pinned; empty for a pod on the host's network, which has no counters of its own.
	NetNS string
	// Containers are the running ones.
	Containers []Container
}

// Options of a Meter.
type Options struct {
	Cgroups *cgroup.Manager
	// WritableLayer says what a container's writable layer takes. It must answer from memory: one slow answer delays every listing.
	// A nil answer is left out. Nil: no layer is reported.
	WritableLayer func(containerID string) *cri.FilesystemUsage
}

// Meter measures. Safe for concurrent use.
type Meter struct {
	o       Options
	rates   rates
	network network
	// The metrics, in the order in which they are listed; fixed.
	ofContainers []definition
	ofLinks      []linkDefinition
}

// New makes a Meter.
func New(o Options) *Meter {
	return &Meter{o: o, ofContainers: containerMetrics(), ofLinks: networkMetrics()}
}

// Close gives back what the Meter holds.
func (m *Meter) Close() error { return m.network.Close() }

// Container measures a container; errs.NotFound if its group is gone.
func (m *Meter) Container(c Container) (*cri.ContainerStats, error) {
	s, err := m.read(c.Cgroup)
	if err != nil {
		return nil, fmt.Errorf("measure container %s: %w", c.Attributes.GetId(), err)
	}
	at := s.Time.UnixNano()
	out := &cri.ContainerStats{
		Attributes: c.Attributes, Cpu: m.cpu(c.Attributes.GetId(), s), Memory: memory(s), Swap: swap(s), Io: io(s),
		WritableLayer: m.layer(c, at),
	}
	return out, nil
}

// Pod measures a pod and its containers, leaving out those that have ended meanwhile; errs.NotFound if its group is gone.
func (m *Meter) Pod(p Pod) (*cri.PodSandboxStats, error) {
	s, err := m.read(p.Cgroup)
	if err != nil {
		return nil, fmt.Errorf("measure pod %s: %w", p.Attributes.GetId(), err)
	}
	at := s.Time.UnixNano()
	linux := &cri.LinuxPodSandboxStats{
		Cpu: m.cpu(p.Attributes.GetId(), s), Memory: memory(s), Io: io(s),
		Process: &cri.ProcessUsage{Timestamp: at, ProcessCount: number(s.Tasks)},
	}
	if linux.Network, err = m.usage(p.NetNS, at); err != nil {
		return nil, fmt.Errorf("measure pod %s: %w", p.Attributes.GetId(), err)
	}
	for _, c := range p.Containers {
		cs, err := m.Container(c)
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		linux.Containers = append(linux.Containers, cs)
	}
	return &cri.PodSandboxStats{Attributes: p.Attributes, Linux: linux}, nil
}

func (m *Meter) read(path string) (cgroup.Stats, error) {
	g, err := m.o.Cgroups.Open(path)
	if err != nil {
		return cgroup.Stats{}, err
	}
	return g.Stats()
}

func (m *Meter) layer(c Container, at int64) *cri.FilesystemUsage {
	if m.o.WritableLayer == nil {
		return nil
	}
	u := m.o.WritableLayer(c.Attributes.GetId())
	if u != nil && u.GetTimestamp() == 0 {
		u.Timestamp = at
	}
	return u
}

func (m *Meter) cpu(id string, s cgroup.Stats) *cri.CpuUsage {
	u := &cri.CpuUsage{Timestamp: s.Time.UnixNano(), UsageCoreNanoSeconds: number(s.CPU), Psi: pressure(s.Pressure.CPU)}
	if rate, ok := m.rates.next(id, s.Time, s.CPU); ok {
		u.UsageNanoCores = number(rate)
	}
	return u
}

// noLimit is how cgroup says that there is none.
const noLimit = ^uint64(0)

// memory reports what is available only where there is a limit.
func memory(s cgroup.Stats) *cri.MemoryUsage {
	m := s.Memory
	u := &cri.MemoryUsage{
		Timestamp: s.Time.UnixNano(), WorkingSetBytes: number(m.WorkingSet), UsageBytes: number(m.Usage), RssBytes: number(m.RSS),
		PageFaults: number(m.PageFaults), MajorPageFaults: number(m.MajorPageFaults), Psi: pressure(s.Pressure.Memory),
	}
	if m.Limit != noLimit {
		u.AvailableBytes = number(m.Limit - min(m.Limit, m.WorkingSet))
	}
	return u
}

func swap(s cgroup.Stats) *cri.SwapUsage {
	if s.Swap == nil {
		return nil
	}
	u := &cri.SwapUsage{Timestamp: s.Time.UnixNano(), SwapUsageBytes: number(s.Swap.Usage)}
	if s.Swap.Limit != noLimit {
		u.SwapAvailableBytes = number(s.Swap.Limit - min(s.Swap.Limit, s.Swap.Usage))
	}
	return u
}

func io(s cgroup.Stats) *cri.IoUsage {
	if s.Pressure.IO == nil {
		return nil
	}
	return &cri.IoUsage{Timestamp: s.Time.UnixNano(), Psi: pressure(s.Pressure.IO)}
}

// pressure fills in both halves where the kernel has one, as older kernels do for the CPU: consumers read both.
func pressure(p *cgroup.Pressure) *cri.PsiStats {
	if p == nil {
		return nil
	}
	half := func(s *cgroup.Stall) *cri.PsiData {
		if s == nil {
			return &cri.PsiData{}
		}
		return &cri.PsiData{Total: s.Total, Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &cri.PsiStats{Full: half(p.Full), Some: half(p.Some)}
}

func number(v uint64) *cri.UInt64Value { return &cri.UInt64Value{Value: v} }
