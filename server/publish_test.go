// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/container"
	"crishim.dev/sandbox"
)

func TestKubelet12Events(t *testing.T) {
	n := newNode()
	pods, ctrs := fakePods{n}, fakeContainers{n}
	p := NewPublisher(pods, ctrs)
	defer p.Close()
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan *cri.ContainerEventResponse, 100)
	done := make(chan error, 1)
	go func() {
		done <- p.Subscribe(ctx, func(e *cri.ContainerEventResponse) error { got <- e; return nil })
	}()
	for p.stream.Consumers() == 0 {
		if len(done) > 0 {
			t.Fatal(<-done)
		}
	}
	pod, err := pods.Run(ctx, podConfig(), "")
	if err != nil {
		t.Fatal(err)
	}
	p.SandboxChanged(pod, sandbox.ChangeCreated)
	ctr, err := ctrs.Create(ctx, pod, containerConfig())
	if err != nil {
		t.Fatal(err)
	}
	p.ContainerChanged(ctr, pod, container.ChangeCreated)
	ctrs.set(ctr, container.Running)
	p.ContainerChanged(ctr, pod, container.ChangeStarted)
	ctrs.set(ctr, container.Exited)
	p.ContainerChanged(ctr, pod, container.ChangeStopped)
	delete(n.ctrs, ctr)
	p.ContainerChanged(ctr, pod, container.ChangeDeleted)
	p.SandboxChanged(pod, sandbox.ChangeStopped)
	box, err := pods.Get(string(pod))
	if err != nil {
		t.Fatal(err)
	}
	p.Remember(box)
	delete(n.pods, pod)
	p.SandboxChanged(pod, sandbox.ChangeDeleted)

	want := []string{
		"pod CONTAINER_CREATED_EVENT []", "pod CONTAINER_STARTED_EVENT []",
		"ctr CONTAINER_CREATED_EVENT [CONTAINER_CREATED]", "ctr CONTAINER_STARTED_EVENT [CONTAINER_RUNNING]",
		"ctr CONTAINER_STOPPED_EVENT [CONTAINER_EXITED]", "ctr CONTAINER_DELETED_EVENT []",
		"pod CONTAINER_STOPPED_EVENT []", "pod CONTAINER_DELETED_EVENT []",
	}
	last := int64(0)
	for _, w := range want {
		e := <-got
		name := map[string]string{string(pod): "pod", string(ctr): "ctr"}[e.ContainerId]
		states := []string{}
		for _, c := range e.ContainersStatuses {
			states = append(states, c.State.String())
		}
		if g := fmt.Sprintf("%s %s %v", name, e.ContainerEventType, states); g != w {
			t.Errorf("got %s; want %s", g, w)
		}
		if e.PodSandboxStatus.GetMetadata().GetUid() != "u-1" {
			t.Errorf("%s: pod status %v", w, e.PodSandboxStatus)
		}
		if e.CreatedAt <= last {
			t.Errorf("%s: time %d is not after %d", w, e.CreatedAt, last)
		}
		last = e.CreatedAt
	}
	if len(p.leaving) != 0 {
		t.Errorf("%d pods remembered for ever", len(p.leaving))
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
