// SPDX-License-Identifier: Apache-2.0

package server

import (
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/sandbox"
)

// events answers GetContainerEvents.
type events struct{ o *Options }

// GetContainerEvents sends each event from now on, in order, until the caller goes. A caller too slow to keep up gets
// ResourceExhausted and is to list and subscribe again.
func (s events) GetContainerEvents(_ *cri.GetEventsRequest, to grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	return s.o.Events.Subscribe(to.Context(), to.Send)
}

// DescribeEvent makes the event that something happened to the pod or container id: with the state of its pod, as far as it is
// still known, and of all the pod's containers.
func DescribeEvent(sandboxes Sandboxes, containers Containers, id string, pod sandbox.ID, kind cri.ContainerEventType) *cri.ContainerEventResponse {
	e := &cri.ContainerEventResponse{ContainerId: id, ContainerEventType: kind}
	if p, err := sandboxes.Get(string(pod)); err == nil {
		e.PodSandboxStatus = podStatus(p)
	}
	for _, c := range containers.List() {
		if c.Sandbox == pod {
			e.ContainersStatuses = append(e.ContainersStatuses, containerStatus(c))
		}
	}
	return e
}
