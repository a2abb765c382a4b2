// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/container"
	"crishim.dev/sandbox"
)

// pods answers the PodSandbox RPCs.
type pods struct{ o *Options }

// RunPodSandbox makes a pod.
func (s pods) RunPodSandbox(ctx context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	if err := validatePod("config", r.GetConfig()); err != nil {
		return nil, err
	}
	if err := s.o.validateHandler("runtime_handler", r.GetRuntimeHandler()); err != nil {
		return nil, err
	}
	id, err := s.o.Sandboxes.Run(ctx, r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &cri.RunPodSandboxResponse{PodSandboxId: string(id)}, nil
}

// StopPodSandbox ends a pod's containers and gives back what it holds of the network. An unknown pod succeeds.
func (s pods) StopPodSandbox(ctx context.Context, r *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	pod, err := s.o.pod(r.GetPodSandboxId())
	if err != nil {
		return &cri.StopPodSandboxResponse{}, ignoreNotFound(err)
	}
	return &cri.StopPodSandboxResponse{}, s.stop(ctx, pod.ID)
}

func (s pods) stop(ctx context.Context, id sandbox.ID) error {
	if err := ignoreNotFound(s.o.Containers.StopPod(ctx, id)); err != nil {
		return err
	}
	return ignoreNotFound(s.o.Sandboxes.Stop(ctx, id))
}

// RemovePodSandbox removes a pod with its containers, stopping them first. An unknown pod succeeds.
func (s pods) RemovePodSandbox(ctx context.Context, r *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	pod, err := s.o.pod(r.GetPodSandboxId())
	if err != nil {
		return &cri.RemovePodSandboxResponse{}, ignoreNotFound(err)
	}
	if err := s.stop(ctx, pod.ID); err != nil {
		return nil, err
	}
	if err := ignoreNotFound(s.o.Containers.RemovePod(ctx, pod.ID)); err != nil {
		return nil, err
	}
	s.o.Events.Remember(pod)
	return &cri.RemovePodSandboxResponse{}, ignoreNotFound(s.o.Sandboxes.Remove(ctx, pod.ID))
}

// PodSandboxStatus describes a pod and its containers.
func (s pods) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	pod, err := s.o.pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &cri.PodSandboxStatusResponse{Status: podStatus(pod), Timestamp: time.Now().UnixNano()}
	for _, c := range s.o.containersOf(pod.ID) {
		resp.ContainersStatuses = append(resp.ContainersStatuses, containerStatus(c))
	}
	if r.GetVerbose() {
		resp.Info, err = podInfo(pod)
	}
	return resp, err
}

// ListPodSandbox lists the pods that match.
func (s pods) ListPodSandbox(_ context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	items, err := s.list(r.GetFilter())
	return &cri.ListPodSandboxResponse{Items: items}, err
}

// StreamPodSandboxes is ListPodSandbox in pieces.
func (s pods) StreamPodSandboxes(r *cri.StreamPodSandboxesRequest, to grpc.ServerStreamingServer[cri.StreamPodSandboxesResponse]) error {
	items, err := s.list(r.GetFilter())
	if err != nil {
		return err
	}
	return inPieces(items, func(piece []*cri.PodSandbox) error {
		return to.Send(&cri.StreamPodSandboxesResponse{PodSandboxes: piece})
	})
}

func (s pods) list(f *cri.PodSandboxFilter) ([]*cri.PodSandbox, error) {
	if err := validatePodFilter(f); err != nil {
		return nil, err
	}
	var items []*cri.PodSandbox
	for _, pod := range s.o.Sandboxes.List() {
		if matchesID(string(pod.ID), f.GetId()) && matchesLabels(pod.Config.GetLabels(), f.GetLabelSelector()) &&
			(f.GetState() == nil || f.GetState().GetState() == podState(pod.State)) {
			items = append(items, podItem(pod))
		}
	}
	return items, nil
}

// UpdatePodSandboxResources resizes the pod's own cgroup.
func (s pods) UpdatePodSandboxResources(ctx context.Context, r *cri.UpdatePodSandboxResourcesRequest) (*cri.UpdatePodSandboxResourcesResponse, error) {
	pod, err := s.o.pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	var f fields
	f.podResources("overhead", r.GetOverhead())
	f.podResources("resources", r.GetResources())
	if f.err != nil {
		return nil, f.err
	}
	return &cri.UpdatePodSandboxResourcesResponse{}, s.o.Sandboxes.Update(ctx, pod.ID, r.GetOverhead(), r.GetResources())
}

// pod finds a pod by a request's pod_sandbox_id.
func (o *Options) pod(id string) (sandbox.Sandbox, error) {
	if err := validateID("pod_sandbox_id", id); err != nil {
		return sandbox.Sandbox{}, err
	}
	return o.Sandboxes.Get(id)
}

// containersOf lists a pod's containers.
func (o *Options) containersOf(pod sandbox.ID) []container.Container {
	var of []container.Container
	for _, c := range o.Containers.List() {
		if c.Sandbox == pod {
			of = append(of, c)
		}
	}
	return of
}
