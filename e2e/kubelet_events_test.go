// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

// The counter decides, not whoever was killed: here a child is, and the first process says how it went.
func TestKubelet08_OOMKilledIsReadFromTheCounter(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	for code, want := range map[int]string{0: "Completed", 1: "OOMKilled"} {
		c := pod.Run(testimage.Busybox, []string{"sh", "-c", fmt.Sprintf("probe eat 4096 || exit %d", code)}, func(c *cri.ContainerConfig) {
			c.Linux.Resources.MemoryLimitInBytes = 32 << 20
		})
		if s := c.Exited(); s.GetReason() != want || int(s.GetExitCode()) != code {
			t.Errorf("child killed, first process ends with %d: %s, %d; want %s", code, s.GetReason(), s.GetExitCode(), want)
		}
	}
}

func TestKubelet10_Handlers(t *testing.T) {
	n := node(t)
	s, err := n.Runtime.Status(kit.Context(t), &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, h := range s.GetRuntimeHandlers() {
		names = append(names, h.GetName())
		if h.GetFeatures() == nil || !h.GetFeatures().GetRecursiveReadOnlyMounts() {
			t.Errorf("handler %q has the features %v", h.GetName(), h.GetFeatures())
		}
	}
	if !slices.Equal(names, []string{"", "fast"}) {
		t.Errorf("handlers %q; want the default one with the empty name, and the configured one", names)
	}
	config := kit.PodConfig(t, n)
	_, err = n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: "nobody"})
	wantCode(t, err, codes.InvalidArgument, "runtime_handler", "nobody")
	made, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: "fast"})
	if err != nil {
		t.Fatal(err)
	}
	removePod(t, n, made.GetPodSandboxId())
	status, err := n.Runtime.PodSandboxStatus(kit.Context(t), &cri.PodSandboxStatusRequest{PodSandboxId: made.GetPodSandboxId()})
	if err != nil || status.GetStatus().GetRuntimeHandler() != "fast" {
		t.Errorf("handler %q, %v", status.GetStatus().GetRuntimeHandler(), err)
	}
	// The handler is a part of what makes a repeated request the same one.
	_, err = n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: config})
	wantCode(t, err, codes.AlreadyExists, "runtime_handler")
}

func TestKubelet11_PodStatusIsComplete(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	c := pod.Run(testimage.Busybox, kit.Sleep())
	s := pod.Status()
	if s.GetTimestamp() == 0 || len(s.GetContainersStatuses()) != 1 || s.GetContainersStatuses()[0].GetId() != c.ID {
		t.Errorf("timestamp %d, containers %v", s.GetTimestamp(), s.GetContainersStatuses())
	}
	own := pod.Output(testimage.Busybox, []string{"hostname", "-i"})
	if ip := s.GetStatus().GetNetwork().GetIp(); ip == "" || !strings.Contains(own, ip) {
		t.Errorf("primary address %q; the pod itself has %q", ip, own)
	}
	host := kit.RunPod(t, n, podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Network = cri.NamespaceMode_NODE }))
	if net := host.Status().GetStatus().GetNetwork(); net.GetIp() != "" || len(net.GetAdditionalIps()) > 0 {
		t.Errorf("a pod with the node's network has the addresses %v", net)
	}
}

func TestKubelet12_EventsCarryPodAndContainers(t *testing.T) {
	n := node(t)
	ctx, cancel := context.WithCancel(kit.Context(t))
	defer cancel()
	events, err := n.Runtime.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	received := make(chan *cri.ContainerEventResponse, 4096)
	go func() {
		defer close(received)
		for {
			e, err := events.Recv()
			if err != nil {
				return
			}
			received <- e
		}
	}()
	// The subscription has begun once something is heard.
	for len(received) == 0 {
		kit.RunPod(t, n)
	}
	pod := kit.RunPod(t, n)
	c := pod.Run(testimage.Busybox, kit.Sleep())
	c.Stop(0)
	c.Remove()
	pod.Stop()
	if _, err := n.Runtime.RemovePodSandbox(kit.Context(t), &cri.RemovePodSandboxRequest{PodSandboxId: pod.ID}); err != nil {
		t.Fatal(err)
	}
	var got []string
	var last int64
	for e := range received {
		if e.GetCreatedAt() <= last {
			t.Errorf("an event of %d comes after one of %d", e.GetCreatedAt(), last)
		}
		last = e.GetCreatedAt()
		if e.GetPodSandboxStatus().GetId() != pod.ID {
			continue
		}
		name := map[string]string{pod.ID: "pod", c.ID: "container"}[e.GetContainerId()]
		got = append(got, name+" "+strings.TrimSuffix(strings.TrimPrefix(e.GetContainerEventType().String(), "CONTAINER_"), "_EVENT"))
		if e.GetContainerId() == c.ID && e.GetContainerEventType() == cri.ContainerEventType_CONTAINER_STARTED_EVENT &&
			(len(e.GetContainersStatuses()) != 1 || e.GetContainersStatuses()[0].GetState() != cri.ContainerState_CONTAINER_RUNNING) {
			t.Errorf("the start's event has the containers %v", e.GetContainersStatuses())
		}
		if got[len(got)-1] == "pod DELETED" {
			break
		}
	}
	want := []string{"pod CREATED", "pod STARTED", "container CREATED", "container STARTED", "container STOPPED", "container DELETED", "pod STOPPED", "pod DELETED"}
	if !slices.Equal(got, want) {
		t.Errorf("events %q; want %q", got, want)
	}
}

func TestKubelet29_PortsWithoutAHostPortAreIgnored(t *testing.T) {
	n := node(t)
	for range 2 {
		kit.RunPod(t, n, func(c *cri.PodSandboxConfig) {
			c.PortMappings = []*cri.PortMapping{{ContainerPort: 80}, {ContainerPort: 80, Protocol: cri.Protocol_UDP}}
		})
	}
	taken := []*cri.PortMapping{{ContainerPort: 80, HostPort: 18290}}
	kit.RunPod(t, n, func(c *cri.PodSandboxConfig) { c.PortMappings = taken })
	kit.RunPod(t, n, func(c *cri.PodSandboxConfig) { c.PortMappings = taken },
		podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Network = cri.NamespaceMode_NODE }))
}

func TestKubelet30_HostPortsAreFreeAfterStop(t *testing.T) {
	n := node(t)
	use := func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{{ContainerPort: 80, HostPort: 18300}}
	}
	old := kit.RunPod(t, n, use)
	made, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: kit.PodConfig(t, n, use)})
	if err == nil {
		removePod(t, n, made.GetPodSandboxId())
	}
	if err == nil || !strings.Contains(err.Error(), "18300") {
		t.Errorf("a port that a live pod has: %v; want an error naming it", err)
	}
	old.Stop()
	kit.RunPod(t, n, use)
}

func TestKubelet34_StreamingAddressAndLargeMessages(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep())
	r, err := n.Runtime.Exec(kit.Context(t), &cri.ExecRequest{ContainerId: c.ID, Cmd: []string{"true"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	if u, err := url.Parse(r.GetUrl()); err != nil || u.Hostname() != "127.0.0.1" || u.Port() == "" || u.Port() == "0" {
		t.Errorf("URL %s, %v; want one on 127.0.0.1", r.GetUrl(), err)
	}
	const size = 15 << 20
	out, err := c.ExecSync(60, "head", "-c", fmt.Sprint(size), "/dev/zero")
	if err != nil || len(out.GetStdout()) != size {
		t.Errorf("%d bytes came, %v; want %d", len(out.GetStdout()), err, size)
	}
}

func TestKubelet35_RateIsSinceTheLastReading(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	c := pod.Run(testimage.Busybox, []string{"sh", "-c", "while :; do :; done"})
	read := func() *cri.CpuUsage {
		s, err := n.Runtime.ContainerStats(kit.Context(t), &cri.ContainerStatsRequest{ContainerId: c.ID})
		if err != nil {
			t.Fatal(err)
		}
		return s.GetStats().GetCpu()
	}
	before := read()
	if before.GetUsageNanoCores() != nil {
		t.Errorf("the first reading has a rate, %v: somebody has sampled", before.GetUsageNanoCores())
	}
	var after *cri.CpuUsage
	kit.Until(t, func() error {
		if after = read(); after.GetUsageNanoCores() == nil {
			return errors.New("no rate yet")
		}
		return nil
	})
	used := float64(after.GetUsageCoreNanoSeconds().GetValue() - before.GetUsageCoreNanoSeconds().GetValue())
	took := float64(after.GetTimestamp()-before.GetTimestamp()) / 1e9
	if rate := float64(after.GetUsageNanoCores().GetValue()); rate < 0.9*used/took || rate > 1.1*used/took {
		t.Errorf("rate %.0f; %.0f ns in %.3f s", rate, used, took)
	}
	s, err := n.Runtime.PodSandboxStats(kit.Context(t), &cri.PodSandboxStatsRequest{PodSandboxId: pod.ID})
	if err != nil || len(s.GetStats().GetLinux().GetContainers()) != 1 || s.GetStats().GetLinux().GetNetwork().GetDefaultInterface().GetName() != "eth0" {
		t.Errorf("pod %v, %v", s, err)
	}
}
