// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/cgroup"
	"crishim.dev/internal/errs"
)

func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// pod makes a pod's group with containers that run script.
func pod(t testing.TB, name string, containers int, script string, r *cgroup.Resources) (*cgroup.Manager, Pod) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("making cgroups needs root")
	}
	m, err := cgroup.New(cgroup.Options{Driver: cgroup.Cgroupfs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	g, _, err := m.CreatePod(t.Context(), fmt.Sprintf("/shimtest-%d-%s", os.Getpid(), name), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if err := errors.Join(g.Kill(ctx), g.Prune(ctx)); err != nil {
			t.Error(err)
		}
	})
	p := Pod{Attributes: &cri.PodSandboxAttributes{Id: "pod-id", Metadata: &cri.PodSandboxMetadata{Name: "web", Namespace: "prod"}}, Cgroup: g.Path()}
	for i := range containers {
		id := fmt.Sprintf("c%d", i)
		c, err := m.Create(t.Context(), m.Container(p.Cgroup, id), r)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", "-c", script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		if err := c.Place(t.Context(), cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
		p.Containers = append(p.Containers, Container{
			Attributes: &cri.ContainerAttributes{Id: id, Metadata: &cri.ContainerMetadata{Name: "app"}}, Cgroup: c.Path(), PID: cmd.Process.Pid,
			Image: "registry.example/app:1", StartedAt: time.Now(),
			Resources: &cri.LinuxContainerResources{CpuQuota: 20000, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20},
		})
	}
	return m, p
}

func limited() *cgroup.Resources {
	return &cgroup.Resources{CPUQuota: 20000, CPUPeriod: 100000, Memory: 64 << 20, MemorySwap: 64 << 20}
}

func layer(string) *cri.FilesystemUsage {
	return &cri.FilesystemUsage{FsId: &cri.FilesystemIdentifier{Mountpoint: "/"}, UsedBytes: number(5), InodesUsed: number(2)}
}

func TestPodAndContainer(t *testing.T) {
	groups, p := pod(t, "stats", 2, "x=$(head -c 8m /dev/zero | tr '\\0' x); while :; do :; done", limited())
	p.NetNS = namespaces(t, 1)[0]
	m := New(Options{Cgroups: groups, WritableLayer: layer})
	defer m.Close()
	var s *cri.PodSandboxStats
	until(t, "memory and a rate", func() bool {
		var err error
		if s, err = m.Pod(p); err != nil {
			t.Fatal(err)
		}
		cs := s.GetLinux().GetContainers()
		return len(cs) == 2 && cs[0].GetMemory().GetRssBytes().GetValue() > 8<<20 && cs[1].GetCpu().GetUsageNanoCores().GetValue() > 0 &&
			s.GetLinux().GetCpu().GetUsageNanoCores().GetValue() > 0
	})
	c, l := s.GetLinux().GetContainers()[0], s.GetLinux()
	mem := c.GetMemory()
	if mem.GetAvailableBytes().GetValue() != 64<<20-mem.GetWorkingSetBytes().GetValue() || mem.GetUsageBytes().GetValue() < mem.GetRssBytes().GetValue() || mem.GetPageFaults().GetValue() == 0 {
		t.Errorf("memory: %v", mem)
	}
	if l.GetMemory().GetAvailableBytes() != nil || l.GetMemory().GetUsageBytes().GetValue() < mem.GetUsageBytes().GetValue() {
		t.Errorf("pod's memory: %v", l.GetMemory())
	}
	if sw := c.GetSwap(); sw != nil && (sw.GetSwapUsageBytes().GetValue() != 0 || sw.GetSwapAvailableBytes() == nil) {
		t.Errorf("swap: %v", sw)
	}
	if n := l.GetProcess().GetProcessCount().GetValue(); n < 2 {
		t.Errorf("%d processes", n)
	}
	if c.GetWritableLayer().GetUsedBytes().GetValue() != 5 || c.GetWritableLayer().GetTimestamp() <= 0 {
		t.Errorf("writable layer: %v", c.GetWritableLayer())
	}
	for what, at := range map[string]int64{"cpu": c.GetCpu().GetTimestamp(), "memory": mem.GetTimestamp(), "process": l.GetProcess().GetTimestamp()} {
		if age := time.Since(time.Unix(0, at)); age < 0 || age > time.Minute {
			t.Errorf("%s: measured %v ago", what, age)
		}
	}
	if l.GetNetwork() != nil {
		t.Errorf("a loopback alone is no network: %v", l.GetNetwork())
	}
	if c.GetAttributes().GetId() != "c0" || s.GetAttributes().GetMetadata().GetName() != "web" {
		t.Errorf("attributes: %v, %v", c.GetAttributes(), s.GetAttributes())
	}
	p.Containers[0].Cgroup += "-gone"
	if s, err := m.Pod(p); err != nil || len(s.GetLinux().GetContainers()) != 1 {
		t.Errorf("with a container that is gone: %v, %v", s.GetLinux().GetContainers(), err)
	}
	if _, err := m.Container(p.Containers[0]); !errors.Is(err, errs.NotFound) {
		t.Errorf("a container that is gone: %v", err)
	}
	p.Cgroup += "-gone"
	if _, err := m.Pod(p); !errors.Is(err, errs.NotFound) {
		t.Errorf("a pod that is gone: %v", err)
	}
}

// TestMetrics is what critest checks: the names, values for each, as many labels as described.
func TestMetrics(t *testing.T) {
	groups, p := pod(t, "metrics", 1, "exec 3</dev/null; exec sleep 1000", limited())
	p.NetNS = namespaces(t, 1)[0]
	addEth0(t, p.NetNS)
	m := New(Options{Cgroups: groups, WritableLayer: layer})
	defer m.Close()
	labels := map[string]int{}
	for _, d := range m.Descriptors() {
		if d.GetHelp() == "" || labels[d.GetName()] != 0 {
			t.Errorf("%s: no help, or listed twice", d.GetName())
		}
		labels[d.GetName()] = len(d.GetLabelKeys())
	}
	var names []string
	for name := range labels {
		names = append(names, name)
	}
	slices.Sort(names)
	if got := strings.Join(names, "\n"); got != strings.TrimSpace(kubeletNames) {
		t.Errorf("names:\n%s", got)
	}
	out, err := m.Metrics(p)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]uint64{}
	for _, x := range append(out.GetMetrics(), out.GetContainerMetrics()[0].GetMetrics()...) {
		found[x.GetName()] = x.GetValue().GetValue()
		if n, ok := labels[x.GetName()]; !ok || n != len(x.GetLabelValues()) {
			t.Errorf("%s: %d labels described, values %q", x.GetName(), n, x.GetLabelValues())
		}
	}
	for _, name := range names {
		_, ok := found[name]
		optional := strings.HasPrefix(name, "container_blkio") || strings.HasPrefix(name, "container_hugetlb") || strings.HasPrefix(name, "container_pressure") ||
			strings.HasPrefix(name, "container_fs_reads") || strings.HasPrefix(name, "container_fs_writes")
		if !ok && !optional {
			t.Errorf("no value for %s", name)
		}
	}
	for name, want := range map[string]uint64{"container_processes": 1, "container_threads": 1, "container_threads_max": 0, "container_spec_cpu_quota": 20000,
		"container_spec_cpu_period": 100000, "container_spec_cpu_shares": 1024, "container_spec_memory_limit_bytes": 64 << 20, "container_fs_usage_bytes": 5} {
		if found[name] != want {
			t.Errorf("%s is %d, want %d", name, found[name], want)
		}
	}
	if found["container_file_descriptors"] < 4 || found["container_ulimits_soft"] == 0 || found["container_fs_limit_bytes"] == 0 {
		t.Errorf("descriptors %d, ulimit %d, file system %d", found["container_file_descriptors"], found["container_ulimits_soft"], found["container_fs_limit_bytes"])
	}
}

const kubeletNames = `
container_blkio_device_usage_total
container_cpu_cfs_periods_total
container_cpu_cfs_throttled_periods_total
container_cpu_cfs_throttled_seconds_total
container_cpu_system_seconds_total
container_cpu_usage_seconds_total
container_cpu_user_seconds_total
container_file_descriptors
container_fs_inodes_free
container_fs_inodes_total
container_fs_limit_bytes
container_fs_reads_bytes_total
container_fs_reads_total
container_fs_usage_bytes
container_fs_writes_bytes_total
container_fs_writes_total
container_hugetlb_max_usage_bytes
container_hugetlb_usage_bytes
container_last_seen
container_memory_cache
container_memory_failcnt
container_memory_failures_total
container_memory_kernel_usage
container_memory_mapped_file
container_memory_max_usage_bytes
container_memory_rss
container_memory_swap
container_memory_usage_bytes
container_memory_working_set_bytes
container_network_receive_bytes_total
container_network_receive_errors_total
container_network_receive_packets_dropped_total
container_network_receive_packets_total
container_network_transmit_bytes_total
container_network_transmit_errors_total
container_network_transmit_packets_dropped_total
container_network_transmit_packets_total
container_oom_events_total
container_pressure_cpu_stalled_seconds_total
container_pressure_cpu_waiting_seconds_total
container_pressure_io_stalled_seconds_total
container_pressure_io_waiting_seconds_total
container_pressure_memory_stalled_seconds_total
container_pressure_memory_waiting_seconds_total
container_processes
container_sockets
container_spec_cpu_period
container_spec_cpu_quota
container_spec_cpu_shares
container_spec_memory_limit_bytes
container_spec_memory_reservation_limit_bytes
container_spec_memory_swap_limit_bytes
container_start_time_seconds
container_threads
container_threads_max
container_ulimits_soft
`

func TestRates(t *testing.T) {
	var r rates
	at := time.Now()
	if _, ok := r.next("a", at, 100); ok {
		t.Error("a rate from one reading")
	}
	if _, ok := r.next("a", at.Add(10*time.Millisecond), 200); ok {
		t.Error("a rate over 10 ms")
	}
	if v, ok := r.next("a", at.Add(2*time.Second), 2e9+100); !ok || v != 1e9 {
		t.Errorf("rate %d, %v", v, ok)
	}
	if v, ok := r.next("a", at.Add(2*time.Second+time.Millisecond), 9e9); !ok || v != 1e9 {
		t.Errorf("in quick succession: %d, %v", v, ok)
	}
	if _, ok := r.next("a", at.Add(4*time.Second), 5); ok {
		t.Error("a rate of a counter that went backwards")
	}
	if _, ok := r.next("b", at.Add(keep+time.Minute), 5); ok || len(r.last) != 1 {
		t.Errorf("%d readings are kept", len(r.last))
	}
}

func BenchmarkPod(b *testing.B) {
	groups, p := pod(b, "bench", 1, "exec sleep 1000", nil)
	m := New(Options{Cgroups: groups, WritableLayer: layer})
	defer m.Close()
	b.Run("Stats", func(b *testing.B) {
		for b.Loop() {
			if _, err := m.Pod(p); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Metrics", func(b *testing.B) {
		for b.Loop() {
			if _, err := m.Metrics(p); err != nil {
				b.Fatal(err)
			}
		}
	})
}
