// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/container"
	"crishim.dev/event"
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

// TestSlowConsumerIsTold: over the socket, a consumer that does not read holds nobody up. It gets all that was kept for it, in order and
// without a gap, and then the news that it has lost the rest.
func TestSlowConsumerIsTold(t *testing.T) {
	n := newNode()
	pods, ctrs := fakePods{n}, fakeContainers{n}
	p := NewPublisher(pods, ctrs)
	defer p.Close()
	s := New(Options{Sandboxes: pods, Containers: ctrs, Events: p, Log: slog.New(slog.DiscardHandler)})
	path := filepath.Join(t.TempDir(), "shim.sock")
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn := dialSocket(t, path)
	defer func() {
		_ = conn.Close()
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	cfg := podConfig()
	cfg.Annotations["fat"] = strings.Repeat("x", 1<<10)
	pod, err := pods.Run(t.Context(), cfg, "")
	if err != nil {
		t.Fatal(err)
	}
	events, err := cri.NewRuntimeServiceClient(conn).GetContainerEvents(t.Context(), &cri.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for p.stream.Consumers() == 0 {
		runtime.Gosched()
	}
	for i := 0; p.stream.Consumers() > 0; i++ {
		p.publish(fmt.Sprint(i), pod, cri.ContainerEventType_CONTAINER_STARTED_EVENT)
	}
	last := int64(0)
	for i := 0; ; i++ {
		e, err := events.Recv()
		if err != nil {
			if status.Code(err) != codes.ResourceExhausted || i < event.DefaultQueue {
				t.Errorf("after %d events: %v; want ResourceExhausted after %d or more", i, err, event.DefaultQueue)
			}
			return
		}
		if e.ContainerId != fmt.Sprint(i) || e.CreatedAt <= last {
			t.Fatalf("event %d is %s at %d, after one at %d", i, e.ContainerId, e.CreatedAt, last)
		}
		last = e.CreatedAt
	}
}
