// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

// podStats is PodSandboxStats of a pod with one container, whose are the second.
func podStats(t *testing.T, pod *kit.Pod) (*cri.LinuxPodSandboxStats, *cri.ContainerStats) {
	t.Helper()
	r, err := pod.Node.Runtime.PodSandboxStats(kit.Context(t), &cri.PodSandboxStatsRequest{PodSandboxId: pod.ID})
	if err != nil || len(r.GetStats().GetLinux().GetContainers()) != 1 {
		t.Fatalf("stats of the pod: %v, %v", r, err)
	}
	return r.GetStats().GetLinux(), r.GetStats().GetLinux().GetContainers()[0]
}

// TestStatsOfAPod: what a pod did is in its numbers: bytes over its interface, a file in the writable layer, memory, processes; and what
// the kernel counts beyond that (swap, pressure) is there where it does.
func TestStatsOfAPod(t *testing.T) {
	n := node(t)
	const sent, written, limit = 300_000, 3 << 20, 256 << 20
	pod := kit.RunPod(t, n)
	c := pod.Run(testimage.Busybox, []string{"probe", "echo", ":7000"}, func(c *cri.ContainerConfig) {
		c.Linux.Resources.MemoryLimitInBytes, c.Linux.Resources.MemorySwapLimitInBytes = limit, limit
	})
	c.WaitLog("listening")
	c.Exec("sh", "-c", fmt.Sprintf("head -c %d /dev/zero > /file", written))
	conn, err := net.Dial("tcp", net.JoinHostPort(pod.IP(), "7000"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() { _, _ = conn.Write(make([]byte, sent)) }()
	if _, err := io.CopyN(io.Discard, conn, sent); err != nil {
		t.Fatal(err)
	}

	l, s := podStats(t, pod)
	eth := l.GetNetwork().GetDefaultInterface()
	if eth.GetName() != "eth0" || eth.GetRxBytes().GetValue() < sent || eth.GetTxBytes().GetValue() < sent || eth.GetRxErrors().GetValue() != 0 {
		t.Errorf("network after %d bytes both ways: %v", sent, eth)
	}
	if l.GetProcess().GetProcessCount().GetValue() == 0 {
		t.Errorf("processes: %v", l.GetProcess())
	}
	for what, m := range map[string]*cri.MemoryUsage{"pod": l.GetMemory(), "container": s.GetMemory()} {
		if m.GetUsageBytes().GetValue() < m.GetWorkingSetBytes().GetValue() || m.GetRssBytes().GetValue() == 0 || m.GetPageFaults().GetValue() == 0 {
			t.Errorf("memory of the %s: %v", what, m)
		}
	}
	if m := s.GetMemory(); m.GetAvailableBytes().GetValue() != limit-m.GetWorkingSetBytes().GetValue() {
		t.Errorf("available of %d: %v", limit, m)
	}
	if s.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || l.GetCpu().GetUsageCoreNanoSeconds().GetValue() < s.GetCpu().GetUsageCoreNanoSeconds().GetValue() {
		t.Errorf("cpu of the pod %v, of its container %v", l.GetCpu(), s.GetCpu())
	}
	for what, at := range map[string]int64{
		"pod's cpu": l.GetCpu().GetTimestamp(), "pod's memory": l.GetMemory().GetTimestamp(), "network": l.GetNetwork().GetTimestamp(),
		"processes": l.GetProcess().GetTimestamp(), "cpu": s.GetCpu().GetTimestamp(), "memory": s.GetMemory().GetTimestamp(),
	} {
		if age := time.Since(time.Unix(0, at)); age < 0 || age > time.Minute {
			t.Errorf("%s: collected %v ago", what, age)
		}
	}
	kit.Until(t, func() error { // the file is counted at the next walk
		_, s := podStats(t, pod)
		w := s.GetWritableLayer()
		if w.GetUsedBytes().GetValue() < written || w.GetInodesUsed().GetValue() < 2 || w.GetTimestamp() == 0 {
			return fmt.Errorf("writable layer with %d bytes in it: %v", written, w)
		}
		return nil
	})
	checkCounted(t, c, l, s)

	host := kit.RunPod(t, n, podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Network = cri.NamespaceMode_NODE }))
	r, err := n.Runtime.PodSandboxStats(kit.Context(t), &cri.PodSandboxStatsRequest{PodSandboxId: host.ID})
	if err != nil || r.GetStats().GetLinux().GetNetwork() != nil {
		t.Errorf("a pod on the node's network has no numbers of its own there: %v, %v", r, err)
	}
}

// checkCounted fails unless swap and pressure are reported where the container's control group has them, and nowhere else.
func checkCounted(t *testing.T, c *kit.Container, l *cri.LinuxPodSandboxStats, s *cri.ContainerStats) {
	t.Helper()
	unified := "memory" // where version 2 is, alone or beside version 1
	if exists("/sys/fs/cgroup/unified") {
		unified = "unified"
	}
	counted := func(controller string, names ...string) bool {
		for _, name := range names {
			text, err := os.ReadFile(filepath.Join(c.Cgroup(controller), name))
			if err == nil && len(text) > 0 {
				return true
			}
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Logf("%s: %v", name, err) // pressure that is switched off: EOPNOTSUPP
			}
		}
		return false
	}
	for _, tt := range []struct {
		what     string
		has      bool
		reported []bool
	}{
		{"swap", counted("memory", "memory.memsw.usage_in_bytes", "memory.swap.current"), []bool{s.GetSwap() != nil}},
		{"cpu pressure", counted(unified, "cpu.pressure"), []bool{s.GetCpu().GetPsi() != nil, l.GetCpu().GetPsi() != nil}},
		{"memory pressure", counted(unified, "memory.pressure"), []bool{s.GetMemory().GetPsi() != nil, l.GetMemory().GetPsi() != nil}},
		{"io pressure", counted(unified, "io.pressure"), []bool{s.GetIo().GetPsi() != nil, l.GetIo().GetPsi() != nil}},
	} {
		for i, reported := range tt.reported {
			if reported != tt.has {
				t.Errorf("%s of the %s: reported %v; the kernel counts it: %v", tt.what, [...]string{"container", "pod"}[i], reported, tt.has)
			}
		}
	}
	if s.GetSwap() != nil && s.GetSwap().GetSwapAvailableBytes().GetValue() != 0 {
		t.Errorf("swap with as much as memory: %v; want none available", s.GetSwap())
	}
}
