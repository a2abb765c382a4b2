// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/cgroup"
	"crishim.dev/container"
	"crishim.dev/sandbox"
	"crishim.dev/snapshot"
	"crishim.dev/stats"
)

// meter measures pods and containers as the managers show them.
type meter struct{ *stats.Meter }

func newMeter(cgroups *cgroup.Manager, snaps *snapshot.Store) meter {
	return meter{stats.New(stats.Options{Cgroups: cgroups, WritableLayer: func(id string) *cri.FilesystemUsage {
		bytes, inodes, err := snaps.Usage(id)
		if err != nil { // removed meanwhile
			return nil
		}
		return &cri.FilesystemUsage{
			Timestamp: time.Now().UnixNano(), FsId: &cri.FilesystemIdentifier{Mountpoint: snaps.Dir()},
			UsedBytes: &cri.UInt64Value{Value: bytes}, InodesUsed: &cri.UInt64Value{Value: inodes},
		}
	}})}
}

func measured(c container.Container) stats.Container {
	return stats.Container{
		Attributes: &cri.ContainerAttributes{
			Id: string(c.ID), Metadata: c.Config.GetMetadata(), Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(),
		},
		Cgroup: c.Cgroup, PID: c.PID, Image: c.Config.GetImage().GetImage(), Resources: c.Resources, StartedAt: c.StartedAt,
	}
}

func measuredPod(p sandbox.Sandbox, containers []container.Container) stats.Pod {
	out := stats.Pod{
		Attributes: &cri.PodSandboxAttributes{
			Id: string(p.ID), Metadata: p.Config.GetMetadata(), Labels: p.Config.GetLabels(), Annotations: p.Config.GetAnnotations(),
		},
		Cgroup: p.Cgroup, NetNS: p.NetNS,
	}
	for _, c := range containers {
		if c.State == container.Running {
			out.Containers = append(out.Containers, measured(c))
		}
	}
	return out
}

// Container implements server.Stats.
func (m meter) Container(_ context.Context, c container.Container) (*cri.ContainerStats, error) {
	return m.Meter.Container(measured(c))
}

// Pod implements server.Stats.
func (m meter) Pod(_ context.Context, p sandbox.Sandbox, containers []container.Container) (*cri.PodSandboxStats, error) {
	return m.Meter.Pod(measuredPod(p, containers))
}

// Metrics implements server.Stats.
func (m meter) Metrics(_ context.Context, p sandbox.Sandbox, containers []container.Container) (*cri.PodSandboxMetrics, error) {
	return m.Meter.Metrics(measuredPod(p, containers))
}
