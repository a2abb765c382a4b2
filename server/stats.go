// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/container"
	"crishim.dev/internal/errs"
	"crishim.dev/sandbox"
	"crishim.dev/stats"
)

// measures answers the RPCs that measure.
type measures struct{ o *Options }

// ContainerStats measures one container.
func (s measures) ContainerStats(_ context.Context, r *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	c, err := s.o.container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	st, err := s.o.Stats.Container(measuredContainer(c))
	return &cri.ContainerStatsResponse{Stats: st}, err
}

// ListContainerStats measures the running containers that match.
func (s measures) ListContainerStats(ctx context.Context, r *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	items, err := s.ofContainers(ctx, r.GetFilter())
	return &cri.ListContainerStatsResponse{Stats: items}, err
}

// StreamContainerStats is ListContainerStats in pieces.
func (s measures) StreamContainerStats(r *cri.StreamContainerStatsRequest, to grpc.ServerStreamingServer[cri.StreamContainerStatsResponse]) error {
	items, err := s.ofContainers(to.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return inPieces(items, func(piece []*cri.ContainerStats) error {
		return to.Send(&cri.StreamContainerStatsResponse{ContainerStats: piece})
	})
}

func (s measures) ofContainers(ctx context.Context, f *cri.ContainerStatsFilter) ([]*cri.ContainerStats, error) {
	if err := validateSelector(f.GetLabelSelector(), f.GetId(), f.GetPodSandboxId()); err != nil {
		return nil, err
	}
	var matching []container.Container
	for _, c := range s.o.Containers.List() {
		if c.State == container.Running && matchesID(string(c.ID), f.GetId()) && matchesID(string(c.Sandbox), f.GetPodSandboxId()) &&
			matchesLabels(c.Config.GetLabels(), f.GetLabelSelector()) {
			matching = append(matching, c)
		}
	}
	return measureEach(ctx, matching, func(c container.Container) (*cri.ContainerStats, error) {
		return s.o.Stats.Container(measuredContainer(c))
	})
}

// PodSandboxStats measures one pod with its containers.
func (s measures) PodSandboxStats(_ context.Context, r *cri.PodSandboxStatsRequest) (*cri.PodSandboxStatsResponse, error) {
	pod, err := s.o.pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	st, err := s.o.Stats.Pod(measuredPod(pod, s.o.containersOf(pod.ID)))
	return &cri.PodSandboxStatsResponse{Stats: st}, err
}

// ListPodSandboxStats measures the ready pods that match.
func (s measures) ListPodSandboxStats(ctx context.Context, r *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	items, err := s.ofPods(ctx, r.GetFilter())
	return &cri.ListPodSandboxStatsResponse{Stats: items}, err
}

// StreamPodSandboxStats is ListPodSandboxStats in pieces.
func (s measures) StreamPodSandboxStats(r *cri.StreamPodSandboxStatsRequest, to grpc.ServerStreamingServer[cri.StreamPodSandboxStatsResponse]) error {
	items, err := s.ofPods(to.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return inPieces(items, func(piece []*cri.PodSandboxStats) error {
		return to.Send(&cri.StreamPodSandboxStatsResponse{PodSandboxStats: piece})
	})
}

func (s measures) ofPods(ctx context.Context, f *cri.PodSandboxStatsFilter) ([]*cri.PodSandboxStats, error) {
	if err := validateSelector(f.GetLabelSelector(), f.GetId()); err != nil {
		return nil, err
	}
	var matching []sandbox.Sandbox
	for _, pod := range s.o.Sandboxes.List() {
		if pod.State == sandbox.Ready && matchesID(string(pod.ID), f.GetId()) && matchesLabels(pod.Config.GetLabels(), f.GetLabelSelector()) {
			matching = append(matching, pod)
		}
	}
	of := s.containersByPod()
	return measureEach(ctx, matching, func(pod sandbox.Sandbox) (*cri.PodSandboxStats, error) {
		return s.o.Stats.Pod(measuredPod(pod, of[pod.ID]))
	})
}

// ListMetricDescriptors names every metric that ListPodSandboxMetrics may give.
func (s measures) ListMetricDescriptors(context.Context, *cri.ListMetricDescriptorsRequest) (*cri.ListMetricDescriptorsResponse, error) {
	return &cri.ListMetricDescriptorsResponse{Descriptors: s.o.Stats.Descriptors()}, nil
}

// ListPodSandboxMetrics gives the metrics of every ready pod.
func (s measures) ListPodSandboxMetrics(ctx context.Context, _ *cri.ListPodSandboxMetricsRequest) (*cri.ListPodSandboxMetricsResponse, error) {
	items, err := s.metrics(ctx)
	return &cri.ListPodSandboxMetricsResponse{PodMetrics: items}, err
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in pieces.
func (s measures) StreamPodSandboxMetrics(_ *cri.StreamPodSandboxMetricsRequest, to grpc.ServerStreamingServer[cri.StreamPodSandboxMetricsResponse]) error {
	items, err := s.metrics(to.Context())
	if err != nil {
		return err
	}
	return inPieces(items, func(piece []*cri.PodSandboxMetrics) error {
		return to.Send(&cri.StreamPodSandboxMetricsResponse{PodSandboxMetrics: piece})
	})
}

func (s measures) metrics(ctx context.Context) ([]*cri.PodSandboxMetrics, error) {
	var pods []sandbox.Sandbox
	for _, pod := range s.o.Sandboxes.List() {
		if pod.State == sandbox.Ready {
			pods = append(pods, pod)
		}
	}
	of := s.containersByPod()
	return measureEach(ctx, pods, func(pod sandbox.Sandbox) (*cri.PodSandboxMetrics, error) {
		return s.o.Stats.Metrics(measuredPod(pod, of[pod.ID]))
	})
}

func (s measures) containersByPod() map[sandbox.ID][]container.Container {
	of := map[sandbox.ID][]container.Container{}
	for _, c := range s.o.Containers.List() {
		of[c.Sandbox] = append(of[c.Sandbox], c)
	}
	return of
}

// measuredPod says what to measure of a pod and of those of its containers that run.
func measuredPod(p sandbox.Sandbox, of []container.Container) stats.Pod {
	m := stats.Pod{
		Attributes: &cri.PodSandboxAttributes{Id: string(p.ID), Metadata: p.Config.GetMetadata(), Labels: p.Config.GetLabels(), Annotations: p.Config.GetAnnotations()},
		Cgroup:     p.Cgroup,
		NetNS:      p.NetNS,
	}
	for _, c := range of {
		if c.State == container.Running {
			m.Containers = append(m.Containers, measuredContainer(c))
		}
	}
	return m
}

func measuredContainer(c container.Container) stats.Container {
	return stats.Container{
		Attributes: &cri.ContainerAttributes{Id: string(c.ID), Metadata: c.Config.GetMetadata(), Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations()},
		Cgroup:     c.Cgroup,
		PID:        c.PID,
		Image:      imageName(c.Config.GetImage()),
		Resources:  c.Resources,
		StartedAt:  c.StartedAt,
	}
}

// imageName is what the user called the image, as far as the request says.
func imageName(spec *cri.ImageSpec) string {
	if n := spec.GetUserSpecifiedImage(); n != "" {
		return n
	}
	return spec.GetImage()
}

// measureEach measures all objects, leaving out those that ended meanwhile.
func measureEach[O, R any](ctx context.Context, objects []O, measure func(O) (R, error)) ([]R, error) {
	var results []R
	for _, o := range objects {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r, err := measure(o)
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		results = append(results, r)
	}
	return results, nil
}
