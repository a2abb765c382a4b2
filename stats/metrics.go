// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/cgroup"
	"crishim.dev/internal/errs"
)

// baseLabels come first in every metric; the same as the kubelet's own collector gives.
func baseLabels() []string { return []string{"container", "id", "image", "name", "namespace", "pod"} }

// Descriptors names every metric that Metrics gives: what the kubelet's built-in collector exports.
func (m *Meter) Descriptors() []*cri.MetricDescriptor {
	var out []*cri.MetricDescriptor
	describe := func(name, help string, labels []string) {
		out = append(out, &cri.MetricDescriptor{Name: name, Help: help, LabelKeys: append(baseLabels(), labels...)})
	}
	for _, d := range m.ofContainers {
		describe(d.name, d.help, d.labels)
	}
	for _, d := range m.ofLinks {
		describe(d.name, d.help, []string{"interface"})
	}
	return out
}

// Metrics measures a pod's network and its containers in full; errs.NotFound if the pod's network namespace is gone. Timestamps
// are 0: everything is read now.
func (m *Meter) Metrics(p Pod) (*cri.PodSandboxMetrics, error) {
	out := &cri.PodSandboxMetrics{PodSandboxId: p.Attributes.GetId()}
	if p.NetNS != "" {
		links, err := m.network.links(p.NetNS)
		if err != nil {
			return nil, fmt.Errorf("measure pod %s: %w", p.Attributes.GetId(), err)
		}
		md := p.Attributes.GetMetadata()
		base := []string{"POD", p.Cgroup, "", p.Attributes.GetId(), md.GetNamespace(), md.GetName()}
		for _, l := range links {
			for _, d := range m.ofLinks {
				out.Metrics = append(out.Metrics, metric(d.name, cri.MetricType_COUNTER, d.value(l), base, l.Name))
			}
		}
	}
	for _, c := range p.Containers {
		values, err := m.container(p, c)
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("measure container %s: %w", c.Attributes.GetId(), err)
		}
		out.ContainerMetrics = append(out.ContainerMetrics, &cri.ContainerMetrics{ContainerId: c.Attributes.GetId(), Metrics: values})
	}
	return out, nil
}

// sample is what a container's metrics are made from.
type sample struct {
	Container
	cgroup.Detail
	processes
	disk
	now time.Time
}

func (m *Meter) container(p Pod, c Container) ([]*cri.Metric, error) {
	g, err := m.o.Cgroups.Open(c.Cgroup)
	if err != nil {
		return nil, err
	}
	s := sample{Container: c, now: time.Now()}
	if s.Detail, err = g.Detail(); err != nil {
		return nil, err
	}
	pids, err := g.PIDs()
	if err != nil {
		return nil, err
	}
	s.processes = inspect(pids, c.PID)
	s.disk = diskOf(m.layer(c, s.now.UnixNano()))
	md := p.Attributes.GetMetadata()
	base := []string{c.Attributes.GetMetadata().GetName(), c.Cgroup, c.Image, c.Attributes.GetId(), md.GetNamespace(), md.GetName()}
	var out []*cri.Metric
	for _, d := range m.ofContainers {
		for _, v := range d.values(&s) {
			out = append(out, metric(d.name, d.kind, v.v, base, v.labels...))
		}
	}
	return out, nil
}

func metric(name string, kind cri.MetricType, v uint64, base []string, labels ...string) *cri.Metric {
	values := append(append(make([]string, 0, len(base)+len(labels)), base...), labels...)
	return &cri.Metric{Name: name, MetricType: kind, LabelValues: values, Value: number(v)}
}

// value is one value of a metric with what distinguishes it from the metric's others.
type value struct {
	v      uint64
	labels []string
}

func one(v uint64) []value { return []value{{v: v}} }

// seconds: CRI's metrics are whole numbers.
func seconds(ns uint64) []value { return one(ns / uint64(time.Second)) }

// definition is a metric of a container.
type definition struct {
	name, help string
	kind       cri.MetricType
	labels     []string
	values     func(*sample) []value
}

const (
	counter = cri.MetricType_COUNTER
	gauge   = cri.MetricType_GAUGE
)

// containerMetrics are in the order in which they are listed.
func containerMetrics() []definition {
	var all []definition
	for _, part := range [][]definition{cpuMetrics(), memoryMetrics(), diskMetrics(), pressureMetrics(), processMetrics(), specMetrics()} {
		all = append(all, part...)
	}
	return all
}

func cpuMetrics() []definition {
	return []definition{
		{"container_cpu_usage_seconds_total", "Cumulative CPU time consumed, in seconds.", counter, nil, func(s *sample) []value { return seconds(s.CPU) }},
		{"container_cpu_user_seconds_total", "Cumulative CPU time consumed in user mode, in seconds.", counter, nil, func(s *sample) []value { return seconds(s.User) }},
		{"container_cpu_system_seconds_total", "Cumulative CPU time consumed in the kernel, in seconds.", counter, nil, func(s *sample) []value { return seconds(s.System) }},
		{"container_cpu_cfs_periods_total", "Number of elapsed enforcement periods of the CPU quota.", counter, nil, func(s *sample) []value { return one(s.Periods) }},
		{"container_cpu_cfs_throttled_periods_total", "Number of enforcement periods in which the container was throttled.", counter, nil,
			func(s *sample) []value { return one(s.ThrottledPeriods) }},
		{"container_cpu_cfs_throttled_seconds_total", "Total time for which the container was throttled, in seconds.", counter, nil,
			func(s *sample) []value { return seconds(s.Throttled) }},
	}
}

func memoryMetrics() []definition {
	bytes := func(name, help string, f func(*sample) uint64) definition {
		return definition{name, help, gauge, nil, func(s *sample) []value { return one(f(s)) }}
	}
	return []definition{
		bytes("container_memory_usage_bytes", "Memory in use, in bytes, whenever it was last accessed.", func(s *sample) uint64 { return s.Memory.Usage }),
		bytes("container_memory_working_set_bytes", "Working set, in bytes.", func(s *sample) uint64 { return s.Memory.WorkingSet }),
		bytes("container_memory_max_usage_bytes", "Highest memory use recorded, in bytes.", func(s *sample) uint64 { return s.MaxUsage }),
		bytes("container_memory_rss", "Anonymous memory, in bytes.", func(s *sample) uint64 { return s.Memory.RSS }),
		bytes("container_memory_cache", "Page cache, in bytes.", func(s *sample) uint64 { return s.Memory.Cache }),
		bytes("container_memory_mapped_file", "Memory-mapped files, in bytes.", func(s *sample) uint64 { return s.Memory.MappedFile }),
		bytes("container_memory_kernel_usage", "Kernel memory allocated, in bytes.", func(s *sample) uint64 { return s.Kernel }),
		bytes("container_memory_swap", "Swap in use, in bytes.", func(s *sample) uint64 {
			if s.Swap == nil {
				return 0
			}
			return s.Swap.Usage
		}),
		{"container_memory_failcnt", "Number of times the memory limit was hit.", counter, nil, func(s *sample) []value { return one(s.Failures) }},
		{"container_memory_failures_total", "Cumulative count of page faults.", counter, []string{"failure_type", "scope"}, func(s *sample) []value {
			return []value{
				{s.Memory.PageFaults, []string{"pgfault", "container"}}, {s.Memory.PageFaults, []string{"pgfault", "hierarchy"}},
				{s.Memory.MajorPageFaults, []string{"pgmajfault", "container"}}, {s.Memory.MajorPageFaults, []string{"pgmajfault", "hierarchy"}},
			}
		}},
		{"container_oom_events_total", "Count of processes ended for lack of memory.", counter, nil, func(s *sample) []value { return one(s.OOMKills) }},
		{"container_hugetlb_usage_bytes", "Huge pages in use, in bytes.", gauge, []string{"pagesize"}, func(s *sample) []value {
			return each(s.Hugepages, func(h cgroup.Hugepages) value { return value{h.Usage, []string{h.Size}} })
		}},
		{"container_hugetlb_max_usage_bytes", "Highest use of huge pages recorded, in bytes.", gauge, []string{"pagesize"}, func(s *sample) []value {
			return each(s.Hugepages, func(h cgroup.Hugepages) value { return value{h.Max, []string{h.Size}} })
		}},
	}
}

func each[T any](list []T, f func(T) value) []value {
	out := make([]value, len(list))
	for i, x := range list {
		out[i] = f(x)
	}
	return out
}

func pressureMetrics() []definition {
	var all []definition
	for _, r := range []struct {
		name string
		of   func(*sample) *cgroup.Pressure
	}{
		{"cpu", func(s *sample) *cgroup.Pressure { return s.Pressure.CPU }},
		{"memory", func(s *sample) *cgroup.Pressure { return s.Pressure.Memory }},
		{"io", func(s *sample) *cgroup.Pressure { return s.Pressure.IO }},
	} {
		total := func(half func(*cgroup.Pressure) *cgroup.Stall) func(*sample) []value {
			return func(s *sample) []value {
				if p := r.of(s); p != nil && half(p) != nil {
					return seconds(half(p).Total)
				}
				return nil
			}
		}
		all = append(all,
			definition{"container_pressure_" + r.name + "_waiting_seconds_total", "Total time in which some tasks of the container waited for " + r.name + ", in seconds.", counter, nil,
				total(func(p *cgroup.Pressure) *cgroup.Stall { return p.Some })},
			definition{"container_pressure_" + r.name + "_stalled_seconds_total", "Total time in which no task of the container could run for lack of " + r.name + ", in seconds.", counter, nil,
				total(func(p *cgroup.Pressure) *cgroup.Stall { return p.Full })})
	}
	return all
}

func processMetrics() []definition {
	return []definition{
		{"container_processes", "Number of processes.", gauge, nil, func(s *sample) []value { return one(s.count) }},
		{"container_threads", "Number of threads.", gauge, nil, func(s *sample) []value { return one(s.Tasks) }},
		{"container_threads_max", "Highest number of threads allowed; 0 for no limit.", gauge, nil, func(s *sample) []value {
			if s.TasksLimit == noLimit {
				return one(0)
			}
			return one(s.TasksLimit)
		}},
		{"container_file_descriptors", "Number of open file descriptors.", gauge, nil, func(s *sample) []value { return one(s.files) }},
		{"container_sockets", "Number of open sockets.", gauge, nil, func(s *sample) []value { return one(s.sockets) }},
		{"container_ulimits_soft", "Soft resource limits of the container's first process.", gauge, []string{"ulimit"}, func(s *sample) []value {
			if !s.limited {
				return nil
			}
			return []value{{s.openFiles, []string{"max_open_files"}}}
		}},
		{"container_last_seen", "When the container was last measured, in seconds since 1970.", gauge, nil, func(s *sample) []value { return one(uint64(s.now.Unix())) }},
		{"container_start_time_seconds", "When the container started, in seconds since 1970.", gauge, nil, func(s *sample) []value { return one(uint64(max(0, s.StartedAt.Unix()))) }},
	}
}

// specMetrics show what was asked for. 100 ms is the kernel's period, 1024 its shares, for who asks for nothing.
func specMetrics() []definition {
	spec := func(name, help string, f func(r *cri.LinuxContainerResources) int64) definition {
		return definition{name, help, gauge, nil, func(s *sample) []value { return one(uint64(max(0, f(s.Resources)))) }}
	}
	return []definition{
		spec("container_spec_cpu_period", "CPU period, in microseconds.", func(r *cri.LinuxContainerResources) int64 { return orElse(r.GetCpuPeriod(), 100000) }),
		{"container_spec_cpu_quota", "CPU quota, in microseconds a period.", gauge, nil, func(s *sample) []value {
			if q := s.Resources.GetCpuQuota(); q > 0 {
				return one(uint64(q))
			}
			return nil
		}},
		spec("container_spec_cpu_shares", "CPU shares.", func(r *cri.LinuxContainerResources) int64 { return orElse(r.GetCpuShares(), 1024) }),
		spec("container_spec_memory_limit_bytes", "Memory limit, in bytes; 0 for none.", func(r *cri.LinuxContainerResources) int64 { return r.GetMemoryLimitInBytes() }),
		spec("container_spec_memory_reservation_limit_bytes", "Memory reservation, in bytes; 0 for none.", func(*cri.LinuxContainerResources) int64 { return 0 }),
		spec("container_spec_memory_swap_limit_bytes", "Limit of memory and swap together, in bytes; 0 for none.",
			func(r *cri.LinuxContainerResources) int64 { return r.GetMemorySwapLimitInBytes() }),
	}
}

func orElse(v, other int64) int64 {
	if v == 0 {
		return other
	}
	return v
}

// linkDefinition is a metric of a pod's network interface: a counter.
type linkDefinition struct {
	name, help string
	value      func(Link) uint64
}

func networkMetrics() []linkDefinition {
	return []linkDefinition{
		{"container_network_receive_bytes_total", "Cumulative count of bytes received.", func(l Link) uint64 { return l.RxBytes }},
		{"container_network_receive_packets_total", "Cumulative count of packets received.", func(l Link) uint64 { return l.RxPackets }},
		{"container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving.", func(l Link) uint64 { return l.RxDropped }},
		{"container_network_receive_errors_total", "Cumulative count of errors while receiving.", func(l Link) uint64 { return l.RxErrors }},
		{"container_network_transmit_bytes_total", "Cumulative count of bytes sent.", func(l Link) uint64 { return l.TxBytes }},
		{"container_network_transmit_packets_total", "Cumulative count of packets sent.", func(l Link) uint64 { return l.TxPackets }},
		{"container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while sending.", func(l Link) uint64 { return l.TxDropped }},
		{"container_network_transmit_errors_total", "Cumulative count of errors while sending.", func(l Link) uint64 { return l.TxErrors }},
	}
}

func diskMetrics() []definition {
	onLayer := func(name, help string, f func(disk) uint64) definition {
		return definition{name, help, gauge, []string{"device"}, func(s *sample) []value {
			if s.mount == "" {
				return nil
			}
			return []value{{f(s.disk), []string{s.mount}}}
		}}
	}
	onDevice := func(name, help string, f func(cgroup.IO) uint64) definition {
		return definition{name, help, counter, []string{"device"}, func(s *sample) []value {
			return each(s.IO, func(io cgroup.IO) value { return value{f(io), []string{deviceName(io)}} })
		}}
	}
	return []definition{
		onLayer("container_fs_usage_bytes", "Bytes that the writable layer takes.", func(d disk) uint64 { return d.used }),
		onLayer("container_fs_limit_bytes", "Size of the file system that holds the writable layer, in bytes.", func(d disk) uint64 { return d.size }),
		onLayer("container_fs_inodes_free", "Free inodes of the file system that holds the writable layer.", func(d disk) uint64 { return d.inodesFree }),
		onLayer("container_fs_inodes_total", "Inodes of the file system that holds the writable layer.", func(d disk) uint64 { return d.inodes }),
		onDevice("container_fs_reads_bytes_total", "Cumulative count of bytes read.", func(io cgroup.IO) uint64 { return io.ReadBytes }),
		onDevice("container_fs_reads_total", "Cumulative count of reads.", func(io cgroup.IO) uint64 { return io.ReadCount }),
		onDevice("container_fs_writes_bytes_total", "Cumulative count of bytes written.", func(io cgroup.IO) uint64 { return io.WriteBytes }),
		onDevice("container_fs_writes_total", "Cumulative count of writes.", func(io cgroup.IO) uint64 { return io.WriteCount }),
		{"container_blkio_device_usage_total", "Bytes moved by block device and operation.", counter, []string{"device", "major", "minor", "operation"}, func(s *sample) []value {
			var all []value
			for _, io := range s.IO {
				dev := []string{deviceName(io), strconv.Itoa(int(io.Major)), strconv.Itoa(int(io.Minor))}
				all = append(all, value{io.ReadBytes, append(dev[:3:3], "Read")}, value{io.WriteBytes, append(dev[:3:3], "Write")})
			}
			return all
		}},
	}
}
