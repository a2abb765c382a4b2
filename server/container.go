// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/container"
	"crishim.dev/internal/errs"
)

// containers answers the Container RPCs.
type containers struct{ o *Options }

// CreateContainer makes a container in a pod; nothing runs yet.
func (s containers) CreateContainer(ctx context.Context, r *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	if err := validateContainer("config", r.GetConfig()); err != nil {
		return nil, err
	}
	pod, err := s.o.pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if err := s.o.validateInPod(r, pod); err != nil {
		return nil, err
	}
	id, err := s.o.Containers.Create(ctx, pod.ID, r.GetConfig())
	if err != nil {
		return nil, err
	}
	return &cri.CreateContainerResponse{ContainerId: string(id)}, nil
}

// StartContainer returns when the container's first process has begun.
func (s containers) StartContainer(ctx context.Context, r *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	c, err := s.o.container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &cri.StartContainerResponse{}, s.o.Containers.Start(ctx, c.ID)
}

// StopContainer ends a container. An unknown one succeeds.
func (s containers) StopContainer(ctx context.Context, r *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	timeout, err := seconds("timeout", r.GetTimeout())
	if err != nil {
		return nil, err
	}
	c, err := s.o.container(r.GetContainerId())
	if err != nil {
		return &cri.StopContainerResponse{}, ignoreNotFound(err)
	}
	return &cri.StopContainerResponse{}, ignoreNotFound(s.o.Containers.Stop(ctx, c.ID, timeout))
}

// RemoveContainer removes a container, killing it if need be. An unknown one succeeds.
func (s containers) RemoveContainer(ctx context.Context, r *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	c, err := s.o.container(r.GetContainerId())
	if err != nil {
		return &cri.RemoveContainerResponse{}, ignoreNotFound(err)
	}
	return &cri.RemoveContainerResponse{}, ignoreNotFound(s.o.Containers.Remove(ctx, c.ID))
}

// ContainerStatus describes a container.
func (s containers) ContainerStatus(_ context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	c, err := s.o.container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &cri.ContainerStatusResponse{Status: containerStatus(c)}
	if r.GetVerbose() {
		resp.Info, err = containerInfo(c)
	}
	return resp, err
}

// ListContainers lists the containers that match.
func (s containers) ListContainers(_ context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	items, err := s.list(r.GetFilter())
	return &cri.ListContainersResponse{Containers: items}, err
}

// StreamContainers is ListContainers in pieces.
func (s containers) StreamContainers(r *cri.StreamContainersRequest, to grpc.ServerStreamingServer[cri.StreamContainersResponse]) error {
	items, err := s.list(r.GetFilter())
	if err != nil {
		return err
	}
	return inPieces(items, func(piece []*cri.Container) error {
		return to.Send(&cri.StreamContainersResponse{Containers: piece})
	})
}

func (s containers) list(f *cri.ContainerFilter) ([]*cri.Container, error) {
	if err := validateContainerFilter(f); err != nil {
		return nil, err
	}
	var items []*cri.Container
	for _, c := range s.o.Containers.List() {
		if matchesID(string(c.ID), f.GetId()) && matchesID(string(c.Sandbox), f.GetPodSandboxId()) &&
			matchesLabels(c.Config.GetLabels(), f.GetLabelSelector()) &&
			(f.GetState() == nil || f.GetState().GetState() == containerState(c.State)) {
			items = append(items, containerItem(c))
		}
	}
	return items, nil
}

// UpdateContainerResources changes a container's limits.
func (s containers) UpdateContainerResources(ctx context.Context, r *cri.UpdateContainerResourcesRequest) (*cri.UpdateContainerResourcesResponse, error) {
	var f fields
	f.absent("windows", r.GetWindows() != nil, "this is a Linux runtime")
	if r.GetLinux() == nil {
		f.bad("linux", "is missing")
	}
	f.resources("linux", r.GetLinux())
	f.absent("annotations", len(r.GetAnnotations()) > 0, "none has a meaning here")
	if f.err != nil {
		return nil, f.err
	}
	c, err := s.o.container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &cri.UpdateContainerResourcesResponse{}, s.o.Containers.Update(ctx, c.ID, r.GetLinux())
}

// ReopenContainerLog follows a rotated log. A container that does not run is an error, and no file is made.
func (s containers) ReopenContainerLog(ctx context.Context, r *cri.ReopenContainerLogRequest) (*cri.ReopenContainerLogResponse, error) {
	c, err := s.o.container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := running(c, "reopen log"); err != nil {
		return nil, err
	}
	return &cri.ReopenContainerLogResponse{}, s.o.Containers.ReopenLog(ctx, c.ID)
}

// container finds a container by a request's container_id.
func (o *Options) container(id string) (container.Container, error) {
	if err := validateID("container_id", id); err != nil {
		return container.Container{}, err
	}
	return o.Containers.Get(id)
}

// running is errs.Precondition unless c runs.
func running(c container.Container, verb string) error {
	if c.State == container.Running {
		return nil
	}
	return errs.Newf(errs.Precondition, "%s of container %s: it is %s, not running", verb, c.ID, c.State)
}

// maxSeconds is the longest timeout that is told apart from none; it leaves room for adding to a time.
const maxSeconds = int64(10 * 365 * 24 * time.Hour / time.Second)

// seconds is a request's timeout; a longer one than maxSeconds is cut.
func seconds(field string, n int64) (time.Duration, error) {
	if n < 0 {
		return 0, errs.Newf(errs.Invalid, "%s: %d is negative", field, n)
	}
	return time.Duration(min(n, maxSeconds)) * time.Second, nil
}
