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
)

// stats answers the RPCs that measure.
type stats struct{ o *Options }

// ContainerStats measures one container.
func (s stats) ContainerStats(ctx context.Context, r *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	c, err := s.o.container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	st, err := s.o.Stats.Container(ctx, c)
	return &cri.ContainerStatsResponse{Stats: st}, err
}

// ListContainerStats measures the running containers that match.
func (s stats) ListContainerStats(ctx context.Context, r *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	items, err := s.ofContainers(ctx, r.GetFilter())
	return &cri.ListContainerStatsResponse{Stats: items}, err
}

// StreamContainerStats is ListContainerStats in pieces.
func (s stats) StreamContainerStats(r *cri.StreamContainerStatsRequest, to grpc.ServerStreamingServer[cri.StreamContainerStatsResponse]) error {
	items, err := s.ofContainers(to.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return inPieces(items, func(piece []*cri.ContainerStats) error {
		return to.Send(&cri.StreamContainerStatsResponse{ContainerStats: piece})
	})
}

func (s stats) ofContainers(ctx context.Context, f *cri.ContainerStatsFilter) ([]*cri.ContainerStats, error) {
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
	return measureEach(matching, func(c container.Container) (*cri.ContainerStats, error) { return s.o.Stats.Container(ctx, c) })
}

// PodSandboxStats measures one pod with its containers.
func (s stats) PodSandboxStats(ctx context.Context, r *cri.PodSandboxStatsRequest) (*cri.PodSandboxStatsResponse, error) {
	pod, err := s.o.pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	st, err := s.o.Stats.Pod(ctx, pod, s.o.containersOf(pod.ID))
	return &cri.PodSandboxStatsResponse{Stats: st}, err
}

// ListPodSandboxStats measures the ready pods that match.
func (s stats) ListPodSandboxStats(ctx context.Context, r *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	items, err := s.ofPods(ctx, r.GetFilter())
	return &cri.ListPodSandboxStatsResponse{Stats: items}, err
}

// StreamPodSandboxStats is ListPodSandboxStats in pieces.
func (s stats) StreamPodSandboxStats(r *cri.StreamPodSandboxStatsRequest, to grpc.ServerStreamingServer[cri.StreamPodSandboxStatsResponse]) error {
	items, err := s.ofPods(to.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return inPieces(items, func(piece []*cri.PodSandboxStats) error {
		return to.Send(&cri.StreamPodSandboxStatsResponse{PodSandboxStats: piece})
	})
}

func (s stats) ofPods(ctx context.Context, f *cri.PodSandboxStatsFilter) ([]*cri.PodSandboxStats, error) {
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
	return measureEach(matching, func(pod sandbox.Sandbox) (*cri.PodSandboxStats, error) { return s.o.Stats.Pod(ctx, pod, of[pod.ID]) })
}

// ListMetricDescriptors names every metric that ListPodSandboxMetrics may give.
func (s stats) ListMetricDescriptors(context.Context, *cri.ListMetricDescriptorsRequest) (*cri.ListMetricDescriptorsResponse, error) {
	return &cri.ListMetricDescriptorsResponse{Descriptors: s.o.Stats.Descriptors()}, nil
}

// ListPodSandboxMetrics gives the metrics of every ready pod.
func (s stats) ListPodSandboxMetrics(ctx context.Context, _ *cri.ListPodSandboxMetricsRequest) (*cri.ListPodSandboxMetricsResponse, error) {
	items, err := s.metrics(ctx)
	return &cri.ListPodSandboxMetricsResponse{PodMetrics: items}, err
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in pieces.
func (s stats) StreamPodSandboxMetrics(_ *cri.StreamPodSandboxMetricsRequest, to grpc.ServerStreamingServer[cri.StreamPodSandboxMetricsResponse]) error {
	items, err := s.metrics(to.Context())
	if err != nil {
		return err
	}
	return inPieces(items, func(piece []*cri.PodSandboxMetrics) error {
		return to.Send(&cri.StreamPodSandboxMetricsResponse{PodSandboxMetrics: piece})
	})
}

func (s stats) metrics(ctx context.Context) ([]*cri.PodSandboxMetrics, error) {
	var pods []sandbox.Sandbox
	for _, pod := range s.o.Sandboxes.List() {
		if pod.State == sandbox.Ready {
			pods = append(pods, pod)
		}
	}
	of := s.containersByPod()
	return measureEach(pods, func(pod sandbox.Sandbox) (*cri.PodSandboxMetrics, error) {
		return s.o.Stats.Metrics(ctx, pod, of[pod.ID])
	})
}

func (s stats) containersByPod() map[sandbox.ID][]container.Container {
	of := map[sandbox.ID][]container.Container{}
	for _, c := range s.o.Containers.List() {
		of[c.Sandbox] = append(of[c.Sandbox], c)
	}
	return of
}

// measureEach measures all objects, leaving out those that ended meanwhile.
func measureEach[O, R any](objects []O, measure func(O) (R, error)) ([]R, error) {
	var results []R
	for _, o := range objects {
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
