// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/container"
	"crishim.dev/event"
	"crishim.dev/sandbox"
	"crishim.dev/server"
)

// feed turns changes of pods and containers into CRI's events. The managers are set before the first change can come.
type feed struct {
	stream     *event.Stream[*cri.ContainerEventResponse]
	sandboxes  *sandbox.Manager
	containers *container.Manager
}

func newFeed() *feed {
	return &feed{stream: event.New(event.Options[*cri.ContainerEventResponse]{
		Stamp: func(e *cri.ContainerEventResponse, at int64) { e.CreatedAt = at },
	})}
}

// Subscribe implements server.Events.
func (f *feed) Subscribe(ctx context.Context, send func(*cri.ContainerEventResponse) error) error {
	return f.stream.Subscribe(ctx, send)
}

func (f *feed) sandboxChanged(id sandbox.ID, c sandbox.Change) {
	f.publish(string(id), id, map[sandbox.Change]cri.ContainerEventType{
		sandbox.ChangeCreated: cri.ContainerEventType_CONTAINER_STARTED_EVENT,
		sandbox.ChangeStopped: cri.ContainerEventType_CONTAINER_STOPPED_EVENT,
		sandbox.ChangeDeleted: cri.ContainerEventType_CONTAINER_DELETED_EVENT,
	}[c])
}

func (f *feed) containerChanged(id container.ID, pod sandbox.ID, c container.Change) {
	f.publish(string(id), pod, map[container.Change]cri.ContainerEventType{
		container.ChangeCreated: cri.ContainerEventType_CONTAINER_CREATED_EVENT,
		container.ChangeStarted: cri.ContainerEventType_CONTAINER_STARTED_EVENT,
		container.ChangeStopped: cri.ContainerEventType_CONTAINER_STOPPED_EVENT,
		container.ChangeDeleted: cri.ContainerEventType_CONTAINER_DELETED_EVENT,
	}[c])
}

// publish sends an event with the state of the pod and all its containers; without a consumer that work is saved.
func (f *feed) publish(id string, pod sandbox.ID, kind cri.ContainerEventType) {
	if f.stream.Consumers() > 0 {
		f.stream.Publish(server.DescribeEvent(f.sandboxes, f.containers, id, pod, kind))
	}
}
