// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/container"
	"crishim.dev/sandbox"
)

// count gives how many items a list's answer has.
type count func() (int, error)

// pieces counts the items of a streamed list.
func pieces[T any](open func() (grpc.ServerStreamingClient[T], error), size func(*T) int) count {
	return func() (n int, err error) {
		s, err := open()
		if err != nil {
			return 0, err
		}
		for {
			piece, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return n, nil
			}
			if err != nil {
				return 0, err
			}
			n += size(piece)
		}
	}
}

// lists are all lists that take a filter, as a filter of the given kind asks for them.
type lists struct {
	pods       func(*cri.PodSandboxFilter) map[string]count
	containers func(*cri.ContainerFilter) map[string]count
	podStats   func(*cri.PodSandboxStatsFilter) map[string]count
	ctrStats   func(*cri.ContainerStatsFilter) map[string]count
}

func listsOf(ctx context.Context, s *served) lists {
	return lists{
		func(f *cri.PodSandboxFilter) map[string]count {
			return map[string]count{
				"ListPodSandbox": func() (int, error) {
					r, err := s.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: f})
					return len(r.GetItems()), err
				},
				"StreamPodSandboxes": pieces(func() (grpc.ServerStreamingClient[cri.StreamPodSandboxesResponse], error) {
					return s.StreamPodSandboxes(ctx, &cri.StreamPodSandboxesRequest{Filter: f})
				}, func(r *cri.StreamPodSandboxesResponse) int { return len(r.GetPodSandboxes()) }),
			}
		},
		func(f *cri.ContainerFilter) map[string]count {
			return map[string]count{
				"ListContainers": func() (int, error) {
					r, err := s.ListContainers(ctx, &cri.ListContainersRequest{Filter: f})
					return len(r.GetContainers()), err
				},
				"StreamContainers": pieces(func() (grpc.ServerStreamingClient[cri.StreamContainersResponse], error) {
					return s.StreamContainers(ctx, &cri.StreamContainersRequest{Filter: f})
				}, func(r *cri.StreamContainersResponse) int { return len(r.GetContainers()) }),
			}
		},
		func(f *cri.PodSandboxStatsFilter) map[string]count {
			return map[string]count{
				"ListPodSandboxStats": func() (int, error) {
					r, err := s.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{Filter: f})
					return len(r.GetStats()), err
				},
				"StreamPodSandboxStats": pieces(func() (grpc.ServerStreamingClient[cri.StreamPodSandboxStatsResponse], error) {
					return s.StreamPodSandboxStats(ctx, &cri.StreamPodSandboxStatsRequest{Filter: f})
				}, func(r *cri.StreamPodSandboxStatsResponse) int { return len(r.GetPodSandboxStats()) }),
			}
		},
		func(f *cri.ContainerStatsFilter) map[string]count {
			return map[string]count{
				"ListContainerStats": func() (int, error) {
					r, err := s.ListContainerStats(ctx, &cri.ListContainerStatsRequest{Filter: f})
					return len(r.GetStats()), err
				},
				"StreamContainerStats": pieces(func() (grpc.ServerStreamingClient[cri.StreamContainerStatsResponse], error) {
					return s.StreamContainerStats(ctx, &cri.StreamContainerStatsRequest{Filter: f})
				}, func(r *cri.StreamContainerStatsResponse) int { return len(r.GetContainerStats()) }),
			}
		},
	}
}

// Of two pods and two containers each part of a filter leaves one, in a list and in its streamed form.
func TestFieldFilters(t *testing.T) {
	s := serveFakes(t)
	pod, ctr := s.run(t)
	s.mu.Lock()
	otherPod, otherCtr := s.pods[sandbox.ID(pod)], s.ctrs[container.ID(ctr)]
	otherPod.ID, otherPod.Config = "b0", proto.CloneOf(otherPod.Config)
	otherPod.Config.Labels = nil
	s.pods[otherPod.ID] = otherPod
	otherCtr.ID, otherCtr.Sandbox, otherCtr.Config = "d0", otherPod.ID, proto.CloneOf(otherCtr.Config)
	otherCtr.Config.Labels = nil
	s.ctrs[otherCtr.ID] = otherCtr
	s.mu.Unlock()
	l := listsOf(t.Context(), s)
	labels := map[string]string{"app": "web"}
	one := func(all map[string]count) {
		t.Helper()
		for rpc, f := range all {
			if n, err := f(); n != 1 || err != nil {
				t.Errorf("%s: %d items, %v; want 1", rpc, n, err)
			}
		}
	}
	one(l.pods(&cri.PodSandboxFilter{Id: pod}))
	one(l.pods(&cri.PodSandboxFilter{LabelSelector: labels}))
	one(l.containers(&cri.ContainerFilter{Id: ctr}))
	one(l.containers(&cri.ContainerFilter{PodSandboxId: pod}))
	one(l.containers(&cri.ContainerFilter{LabelSelector: labels}))
	one(l.podStats(&cri.PodSandboxStatsFilter{Id: pod}))
	one(l.podStats(&cri.PodSandboxStatsFilter{LabelSelector: labels}))
	one(l.ctrStats(&cri.ContainerStatsFilter{Id: ctr}))
	one(l.ctrStats(&cri.ContainerStatsFilter{PodSandboxId: pod}))
	one(l.ctrStats(&cri.ContainerStatsFilter{LabelSelector: labels}))

	third, _ := s.run(t)
	s.mu.Lock()
	otherPod.State, otherCtr.State = sandbox.Stopped, container.Exited
	s.pods[otherPod.ID], s.ctrs[otherCtr.ID] = otherPod, otherCtr
	s.mu.Unlock()
	one(l.pods(&cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_NOTREADY}}))
	one(l.containers(&cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_EXITED}}))
	if third == pod {
		t.Error("two ready pods are needed")
	}
}

func TestFieldImageFilters(t *testing.T) {
	s := serveFakes(t)
	for _, ref := range []string{"a", "b"} {
		s.node.images[ref] = Image{CRI: &cri.Image{Id: ref}, Info: func() map[string]string { return map[string]string{"info": "{}"} }}
	}
	list := func(spec *cri.ImageSpec) map[string]count {
		return map[string]count{
			"ListImages": func() (int, error) {
				r, err := s.images.ListImages(t.Context(), &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: spec}})
				return len(r.GetImages()), err
			},
			"StreamImages": pieces(func() (grpc.ServerStreamingClient[cri.StreamImagesResponse], error) {
				return s.images.StreamImages(t.Context(), &cri.StreamImagesRequest{Filter: &cri.ImageFilter{Image: spec}})
			}, func(r *cri.StreamImagesResponse) int { return len(r.GetImages()) }),
		}
	}
	for rpc, f := range list(&cri.ImageSpec{Image: "a", Annotations: map[string]string{"x": "y"}, UserSpecifiedImage: "x", ImageRef: "y", RuntimeHandler: "fast"}) {
		if n, err := f(); n != 1 || err != nil {
			t.Errorf("%s: %d images, %v; want 1", rpc, n, err)
		}
	}
	for rpc, f := range list(&cri.ImageSpec{RuntimeHandler: "nobody"}) {
		_, err := f()
		wantCode(t, rpc, err, codes.InvalidArgument, "filter.image.runtime_handler")
	}
	// What else a spec says is about pulling, or the caller's own note.
	spec := &cri.ImageSpec{Image: "a", Annotations: map[string]string{"x": "y"}, UserSpecifiedImage: "x", ImageRef: "y", RuntimeHandler: "fast"}
	status, err := s.images.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: spec, Verbose: true})
	if err != nil || status.GetImage().GetId() != "a" || status.GetInfo()["info"] == "" {
		t.Errorf("status %v, %v", status, err)
	}
	if _, err := s.images.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: spec}); err != nil || s.transcript() != "image.Remove a" {
		t.Errorf("remove: %v", err)
	}
	_, err = s.images.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "a", RuntimeHandler: "nobody"}})
	wantCode(t, "status", err, codes.InvalidArgument, "image.runtime_handler")
	_, err = s.images.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: "a", RuntimeHandler: "nobody"}})
	wantCode(t, "remove", err, codes.InvalidArgument, "image.runtime_handler")
}

func TestFieldPull(t *testing.T) {
	s := serveFakes(t)
	auth := &cri.AuthConfig{Username: "joe", Password: "secret", Auth: "am9lOnNlY3JldA==", ServerAddress: "https://registry.example", IdentityToken: "id", RegistryToken: "token"}
	_, err := s.images.PullImage(t.Context(), &cri.PullImageRequest{
		Image: &cri.ImageSpec{Image: "a", Annotations: map[string]string{"x": "y"}, UserSpecifiedImage: "x", ImageRef: "y", RuntimeHandler: "fast"}, Auth: proto.CloneOf(auth), SandboxConfig: podConfig(),
	})
	if err != nil || s.transcript() != "image.Pull a joe" {
		t.Errorf("pull: %v", err)
	}
	if len(s.asked) != 1 || !proto.Equal(s.asked[0], auth) {
		t.Errorf("credentials %v; want %v", s.asked, auth)
	}
	_, err = s.images.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "a", RuntimeHandler: "nobody"}})
	wantCode(t, "pull", err, codes.InvalidArgument, "image.runtime_handler")
}

// What a streaming request asks for is what its URL is made of; package stream shows that it is given.
func TestFieldStreaming(t *testing.T) {
	s := serveFakes(t)
	pod, ctr := s.run(t)
	for _, want := range []proto.Message{
		&cri.ExecRequest{ContainerId: ctr, Cmd: []string{"sh"}, Stdin: true, Stdout: true, Stderr: true},
		&cri.ExecRequest{ContainerId: ctr, Cmd: []string{"sh"}, Stdin: true, Stdout: true, Tty: true},
		&cri.AttachRequest{ContainerId: ctr, Stdin: true, Stdout: true, Stderr: true},
		&cri.PortForwardRequest{PodSandboxId: pod, Port: []int32{80}},
	} {
		s.asked = nil
		var err error
		switch r := proto.Clone(want).(type) {
		case *cri.ExecRequest:
			_, err = s.Exec(t.Context(), r)
		case *cri.AttachRequest:
			_, err = s.Attach(t.Context(), r)
		case *cri.PortForwardRequest:
			_, err = s.PortForward(t.Context(), r)
		}
		if err != nil || len(s.asked) != 1 || !proto.Equal(s.asked[0], want) {
			t.Errorf("asked for %v, %v; want %v", s.asked, err, want)
		}
	}
	_, err := s.Attach(t.Context(), &cri.AttachRequest{ContainerId: ctr, Stdout: true, Tty: true})
	wantCode(t, "attach", err, codes.InvalidArgument, "tty")
}

func TestFieldVerbose(t *testing.T) {
	s := serveFakes(t)
	pod, ctr := s.run(t)
	p, errPod := s.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	c, errCtr := s.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: ctr, Verbose: true})
	r, errRuntime := s.RuntimeServiceClient.Status(t.Context(), &cri.StatusRequest{Verbose: true})
	if err := errors.Join(errPod, errCtr, errRuntime); err != nil {
		t.Fatal(err)
	}
	if p.GetInfo()["info"] == "" || c.GetInfo()["info"] == "" || r.GetInfo()["config"] == "" {
		t.Errorf("verbose: pod %v, container %v, runtime %v", p.GetInfo(), c.GetInfo(), r.GetInfo())
	}
}

func TestFieldUpdates(t *testing.T) {
	s := serveFakes(t)
	_, ctr := s.run(t)
	for field, r := range map[string]*cri.UpdateContainerResourcesRequest{
		"annotations": {ContainerId: ctr, Linux: &cri.LinuxContainerResources{}, Annotations: map[string]string{"a": "b"}},
		"windows":     {ContainerId: ctr, Linux: &cri.LinuxContainerResources{}, Windows: &cri.WindowsContainerResources{}},
	} {
		_, err := s.UpdateContainerResources(t.Context(), r)
		wantCode(t, field, err, codes.InvalidArgument, field)
	}
	if _, err := s.RuntimeServiceClient.UpdateRuntimeConfig(t.Context(), &cri.UpdateRuntimeConfigRequest{RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: "10.1.0.0/16"}}}); err != nil {
		t.Error(err)
	}
	if got := s.transcript(); got != "network.SetPodCIDRs [10.1.0.0/16]" {
		t.Errorf("calls %q", got)
	}
}

// No checkpoint is made here; Unimplemented is how kubelet learns that.
func TestFieldCheckpoint(t *testing.T) {
	s := serveFakes(t)
	pod, ctr := s.run(t)
	_, err := s.CheckpointContainer(t.Context(), &cri.CheckpointContainerRequest{ContainerId: ctr, Location: "/tmp/x"})
	wantCode(t, "container", err, codes.Unimplemented, "CheckpointContainer")
	_, err = s.CheckpointPod(t.Context(), &cri.CheckpointPodRequest{PodSandboxId: pod})
	wantCode(t, "pod", err, codes.Unimplemented, "CheckpointPod")
	_, err = s.RestorePod(t.Context(), &cri.RestorePodRequest{})
	wantCode(t, "restore", err, codes.Unimplemented, "RestorePod")
	if got := s.transcript(); got != "" {
		t.Errorf("a manager was called: %s", got)
	}
}

// requests without fields have answers of their own.
func TestFieldless(t *testing.T) {
	s := serveFakes(t)
	ctx := t.Context()
	if r, err := s.Version(ctx, &cri.VersionRequest{Version: "0.1.0"}); err != nil || r.GetRuntimeApiVersion() != "v1" {
		t.Errorf("version %v, %v", r, err)
	}
	if r, err := s.ListMetricDescriptors(ctx, &cri.ListMetricDescriptorsRequest{}); err != nil || len(r.GetDescriptors()) == 0 {
		t.Errorf("descriptors %v, %v", r, err)
	}
	pod, _ := s.run(t)
	if r, err := s.ListPodSandboxMetrics(ctx, &cri.ListPodSandboxMetricsRequest{}); err != nil || len(r.GetPodMetrics()) != 1 || r.GetPodMetrics()[0].GetPodSandboxId() != pod {
		t.Errorf("metrics %v, %v", r, err)
	}
	n, err := pieces(func() (grpc.ServerStreamingClient[cri.StreamPodSandboxMetricsResponse], error) {
		return s.StreamPodSandboxMetrics(ctx, &cri.StreamPodSandboxMetricsRequest{})
	}, func(r *cri.StreamPodSandboxMetricsResponse) int { return len(r.GetPodSandboxMetrics()) })()
	if n != 1 || err != nil {
		t.Errorf("streamed metrics: %d, %v", n, err)
	}
}
