// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"sync"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/container"
	"crishim.dev/event"
	"crishim.dev/sandbox"
)

// Publisher makes CRI's events of what the managers say has changed. Each carries the status of the pod and of all its
// containers as they are when it is published, so a later event never has an older status. Safe for concurrent use.
type Publisher struct {
	sandboxes  Sandboxes
	containers Containers
	stream     *event.Stream[*cri.ContainerEventResponse]

	// mu makes taking the statuses and publishing them one step, and guards what follows. The managers' listings, which
	// wait for nothing, are asked with it held.
	mu sync.Mutex
	// leaving has the pods that are being removed.
	leaving map[sandbox.ID]sandbox.Sandbox
}

// NewPublisher makes a Publisher without subscribers.
func NewPublisher(s Sandboxes, c Containers) *Publisher {
	return &Publisher{
		sandboxes: s, containers: c, leaving: map[sandbox.ID]sandbox.Sandbox{},
		stream: event.New(event.Options[*cri.ContainerEventResponse]{Stamp: func(e *cri.ContainerEventResponse, at int64) { e.CreatedAt = at }}),
	}
}

// Subscribe implements Events.
func (p *Publisher) Subscribe(ctx context.Context, send func(*cri.ContainerEventResponse) error) error {
	return p.stream.Subscribe(ctx, send)
}

// Remember implements Events.
func (p *Publisher) Remember(pod sandbox.Sandbox) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pod.State = sandbox.Stopped
	p.leaving[pod.ID] = pod
}

// Close ends all subscriptions.
func (p *Publisher) Close() { p.stream.Close() }

// SandboxChanged is to be called after each change of a pod, without locks held. A pod's own events have its id where a
// container's would be; kubelet takes a pod for one more container there.
func (p *Publisher) SandboxChanged(id sandbox.ID, c sandbox.Change) {
	types := map[sandbox.Change][]cri.ContainerEventType{
		sandbox.ChangeCreated: {cri.ContainerEventType_CONTAINER_CREATED_EVENT, cri.ContainerEventType_CONTAINER_STARTED_EVENT},
		sandbox.ChangeStopped: {cri.ContainerEventType_CONTAINER_STOPPED_EVENT},
		sandbox.ChangeDeleted: {cri.ContainerEventType_CONTAINER_DELETED_EVENT},
	}
	for _, t := range types[c] {
		p.publish(string(id), id, t)
	}
	if c == sandbox.ChangeDeleted {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.leaving, id)
	}
}

// ContainerChanged is to be called after each change of a container, without locks held.
func (p *Publisher) ContainerChanged(id container.ID, pod sandbox.ID, c container.Change) {
	types := map[container.Change]cri.ContainerEventType{
		container.ChangeCreated: cri.ContainerEventType_CONTAINER_CREATED_EVENT,
		container.ChangeStarted: cri.ContainerEventType_CONTAINER_STARTED_EVENT,
		container.ChangeStopped: cri.ContainerEventType_CONTAINER_STOPPED_EVENT,
		container.ChangeDeleted: cri.ContainerEventType_CONTAINER_DELETED_EVENT,
	}
	p.publish(string(id), pod, types[c])
}

func (p *Publisher) publish(id string, podID sandbox.ID, t cri.ContainerEventType) {
	if p.stream.Consumers() == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e := &cri.ContainerEventResponse{ContainerId: id, ContainerEventType: t}
	pod, err := p.sandboxes.Get(string(podID))
	if err != nil {
		pod = p.leaving[podID]
	}
	if pod.ID != "" {
		e.PodSandboxStatus = podStatus(pod)
	}
	for _, c := range (&Options{Containers: p.containers}).containersOf(podID) {
		e.ContainersStatuses = append(e.ContainersStatuses, containerStatus(c))
	}
	p.stream.Publish(e)
}
