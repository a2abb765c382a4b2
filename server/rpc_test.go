// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crishim.dev/internal/errs"
)

// TestKubelet02 and the others of this name show a point of KUBELET.md as far as it is the server's.
func TestKubelet02VersionParses(t *testing.T) {
	s := serveFakes(t)
	v, err := s.Version(t.Context(), &cri.VersionRequest{Version: "0.1.0"})
	if err != nil {
		t.Fatal(err)
	}
	if v.RuntimeName != "shim" || v.RuntimeVersion != "0.0.0-dev+g123" || v.RuntimeApiVersion != "v1" || v.Version != "0.1.0" {
		t.Errorf("got %v", v)
	}
}

func TestKubelet03RuntimeConfig(t *testing.T) {
	s := serveFakes(t)
	r, err := s.RuntimeConfig(t.Context(), &cri.RuntimeConfigRequest{})
	if err != nil || r.Linux == nil || r.Linux.CgroupDriver != cri.CgroupDriver_CGROUPFS {
		t.Errorf("got %v, %v", r, err)
	}
}

func TestKubelet04StatusRepeatsTheRequest(t *testing.T) {
	s := serveFakes(t)
	_, ctr := s.run(t)
	r, err := s.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: ctr[:20], Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	want := &cri.ContainerStatus{
		Id: ctr, Metadata: containerConfig().Metadata, State: cri.ContainerState_CONTAINER_RUNNING, CreatedAt: r.Status.CreatedAt,
		Image: containerConfig().Image, ImageRef: "img@sha256:d", ImageId: "sha256:i", Labels: containerConfig().Labels,
		Mounts: containerConfig().Mounts, LogPath: "/var/log/pods/x/0.log", StopSignal: cri.Signal_SIGNAL_SIGRTMINPLUS3,
		Resources: &cri.ContainerResources{Linux: &cri.LinuxContainerResources{CpuShares: 2}},
		User:      &cri.ContainerUser{Linux: &cri.LinuxContainerUser{Uid: 7}},
	}
	if !proto.Equal(r.Status, want) {
		t.Errorf("got  %v\nwant %v", r.Status, want)
	}
	if r.Status.CreatedAt <= 0 || !strings.Contains(r.Info["info"], `"sandboxID"`) {
		t.Errorf("created_at %d, info %v", r.Status.CreatedAt, r.Info)
	}
}

func TestKubelet05Unknown(t *testing.T) {
	s := serveFakes(t)
	ctx := t.Context()
	_, err := s.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: "no"})
	wantCode(t, "pod status", err, codes.NotFound, "no")
	_, err = s.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: "no"})
	wantCode(t, "container status", err, codes.NotFound, "no")
	image, err := s.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "no"}})
	if err != nil || image.Image != nil {
		t.Errorf("image status: %v, %v; want an empty answer", image, err)
	}
	for what, call := range map[string]func() error{
		"stop pod": func() error {
			_, err := s.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: "no"})
			return err
		},
		"remove pod": func() error {
			_, err := s.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: "no"})
			return err
		},
		"stop container": func() error { _, err := s.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: "no"}); return err },
		"remove container": func() error {
			_, err := s.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: "no"})
			return err
		},
		"remove image": func() error {
			s.fail["image.Remove"] = errs.Newf(errs.NotFound, "gone")
			_, err := s.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: "no"}})
			return err
		},
	} {
		if err := call(); err != nil {
			t.Errorf("%s of an unknown one: %v", what, err)
		}
	}
}

func TestKubelet06NamedErrors(t *testing.T) {
	s := serveFakes(t)
	pod, ctr := s.run(t)
	pull := func() error {
		_, err := s.images.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "busybox"}})
		return err
	}
	s.fail["image.Pull"] = errs.As(crierrors.ErrRegistryUnavailable, errs.Newf(errs.Unavailable, "pull image busybox: connection refused"))
	err := pull()
	wantCode(t, "registry", err, codes.Unknown)
	if m := status.Convert(err).Message(); m != "RegistryUnavailable: pull image busybox: connection refused" {
		t.Errorf("registry: %q", m)
	}
	s.fail["image.Pull"] = errs.As(errs.Denied, fmt.Errorf("verify busybox: %w", crierrors.ErrSignatureValidationFailed))
	wantCode(t, "signature", pull(), codes.Unknown, "SignatureValidationFailed: verify busybox")
	s.fail["ctr.Create"] = errs.As(errs.Unsupported, fmt.Errorf("%w: kernel 5.11 has no mount_setattr", crierrors.ErrRROUnsupported))
	_, err = s.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: containerConfig()})
	wantCode(t, "rro", err, codes.FailedPrecondition)
	if m := status.Convert(err).Message(); m != "RROUnsupported: kernel 5.11 has no mount_setattr" {
		t.Errorf("rro: %q", m)
	}
	s.fail["ctr.ExecSync"] = errs.Newf(errs.Deadline, "exec in container x: timeout of 1s passed")
	_, err = s.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: ctr, Cmd: []string{"true"}, Timeout: 1})
	wantCode(t, "exec", err, codes.DeadlineExceeded, "timeout")
}

func TestKubelet10Handlers(t *testing.T) {
	s := serveFakes(t)
	st, err := s.Status(t.Context(), &cri.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if h := st.RuntimeHandlers; len(h) != 2 || h[0].Name != "" || !h[0].Features.RecursiveReadOnlyMounts || h[1].Name != "fast" || h[1].Features == nil {
		t.Errorf("handlers: %v", h)
	}
	if !st.Features.SupplementalGroupsPolicy || st.Info["config"] != "{}" {
		t.Errorf("features %v, info %v", st.Features, st.Info)
	}
	_, err = s.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: podConfig(), RuntimeHandler: "kata"})
	wantCode(t, "unknown handler", err, codes.InvalidArgument, "runtime_handler", "kata")
	if _, err := s.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: podConfig(), RuntimeHandler: "fast"}); err != nil {
		t.Errorf("configured handler: %v", err)
	}
}

func TestKubelet11PodStatus(t *testing.T) {
	s := serveFakes(t)
	pod, ctr := s.run(t)
	r, err := s.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.Timestamp <= 0 || len(r.ContainersStatuses) != 1 || r.ContainersStatuses[0].Id != ctr {
		t.Errorf("timestamp %d, containers %v", r.Timestamp, r.ContainersStatuses)
	}
	want := &cri.PodSandboxStatus{
		Id: pod, Metadata: podConfig().Metadata, State: cri.PodSandboxState_SANDBOX_READY, CreatedAt: r.Status.CreatedAt,
		Network: &cri.PodSandboxNetworkStatus{Ip: "10.0.0.7", AdditionalIps: []*cri.PodIP{{Ip: "fd00::7"}}},
		Linux:   &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: podConfig().Linux.SecurityContext.NamespaceOptions}},
		Labels:  podConfig().Labels, Annotations: podConfig().Annotations,
	}
	if !proto.Equal(r.Status, want) || !strings.Contains(r.Info["info"], `"cgroupPath"`) {
		t.Errorf("got  %v\nwant %v\ninfo %v", r.Status, want, r.Info)
	}
}

func TestKubelet17StopAndRemoveGoThroughContainers(t *testing.T) {
	s := serveFakes(t)
	pod, _ := s.run(t)
	if _, err := s.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	if got := s.transcript(); got != "ctr.StopPod; pod.Stop" {
		t.Errorf("stop: %s", got)
	}
	_, err := s.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: pod, Port: []int32{80}})
	wantCode(t, "port-forward to a stopped pod", err, codes.FailedPrecondition, "stopped")
	if _, err := s.RemovePodSandbox(t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	if got := s.transcript(); got != "ctr.StopPod; pod.Stop; ctr.RemovePod; pod.Remove" {
		t.Errorf("remove: %s", got)
	}
}

func TestKubelet28ReopenLog(t *testing.T) {
	s := serveFakes(t)
	_, ctr := s.run(t)
	if _, err := s.ReopenContainerLog(t.Context(), &cri.ReopenContainerLogRequest{ContainerId: ctr}); err != nil {
		t.Error(err)
	}
	if _, err := s.StopContainer(t.Context(), &cri.StopContainerRequest{ContainerId: ctr, Timeout: 1 << 60}); err != nil {
		t.Error(err)
	}
	if got := s.transcript(); got != "ctr.ReopenLog; ctr.Stop 87600h0m0s" {
		t.Errorf("calls: %s", got)
	}
	_, err := s.ReopenContainerLog(t.Context(), &cri.ReopenContainerLogRequest{ContainerId: ctr})
	wantCode(t, "reopen of an exited one", err, codes.FailedPrecondition, "exited")
	_, err = s.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: ctr, Cmd: []string{"true"}})
	wantCode(t, "exec in an exited one", err, codes.FailedPrecondition, "exited")
}

func TestKubelet31Network(t *testing.T) {
	s := serveFakes(t)
	s.fail["network.Status"] = errors.New("no configuration in /etc/cni/net.d")
	st, err := s.Status(t.Context(), &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	c := st.Status.Conditions
	if len(c) != 2 || c[0].Type != "RuntimeReady" || !c[0].Status || c[1].Type != "NetworkReady" || c[1].Status || c[1].Reason != "NetworkPluginNotReady" || !strings.Contains(c[1].Message, "no configuration") {
		t.Errorf("conditions %v", c)
	}
	if len(st.Info) != 0 {
		t.Errorf("info without verbose: %v", st.Info)
	}
	s.transcript()
	config := func(cidr string) error {
		_, err := s.UpdateRuntimeConfig(t.Context(), &cri.UpdateRuntimeConfigRequest{RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: cidr}}})
		return err
	}
	if err := config("10.1.2.3/24,fd00::/64"); err != nil {
		t.Error(err)
	}
	if err := config(""); err != nil {
		t.Error(err)
	}
	if got := s.transcript(); got != "network.SetPodCIDRs [10.1.2.0/24 fd00::/64]" {
		t.Errorf("calls: %s", got)
	}
	wantCode(t, "bad CIDR", config("10.1.2.3"), codes.InvalidArgument, "pod_cidr")
	wantCode(t, "two CIDRs of a family", config("10.1.0.0/16,fd00::/64,10.2.0.0/16"), codes.InvalidArgument, "pod_cidr")
}

func TestKubelet34ExecSyncFillsAMessage(t *testing.T) {
	s := serveFakes(t)
	_, ctr := s.run(t)
	s.stdout, s.stderr = make([]byte, maxOutput-100), make([]byte, 100)
	r, err := s.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: ctr, Cmd: []string{"cat", "x"}, Timeout: 2})
	if err != nil || len(r.Stdout)+len(r.Stderr) != maxOutput || r.ExitCode != 3 {
		t.Fatalf("%d bytes, exit code %d, %v", len(r.GetStdout())+len(r.GetStderr()), r.GetExitCode(), err)
	}
	if got := s.transcript(); got != "ctr.ExecSync [cat x] 2s true" {
		t.Errorf("calls: %s", got)
	}
	big := podConfig()
	big.Annotations = map[string]string{"big": strings.Repeat("x", maxMessage+1)}
	_, err = s.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: big})
	wantCode(t, "oversized request", err, codes.ResourceExhausted)
	big.Annotations["big"] = big.Annotations["big"][:maxMessage-4096]
	if _, err = s.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: big}); err != nil {
		t.Errorf("large request: %v", err)
	}
}

func TestListFilters(t *testing.T) {
	s := serveFakes(t)
	pod, ctr := s.run(t)
	other, _ := s.run(t)
	if _, err := s.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: other}); err != nil {
		t.Fatal(err)
	}
	ready, notReady := &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}, &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_NOTREADY}
	for _, tt := range []struct {
		filter *cri.PodSandboxFilter
		want   int
	}{
		{nil, 2},
		{&cri.PodSandboxFilter{}, 2},
		{&cri.PodSandboxFilter{State: ready}, 1},
		{&cri.PodSandboxFilter{State: notReady, Id: pod}, 0},
		{&cri.PodSandboxFilter{Id: pod}, 1},
		{&cri.PodSandboxFilter{Id: "a00"}, 2},
		{&cri.PodSandboxFilter{Id: "b"}, 0},
		{&cri.PodSandboxFilter{LabelSelector: map[string]string{"app": "web"}}, 2},
		{&cri.PodSandboxFilter{LabelSelector: map[string]string{"app": "web", "x": ""}}, 0},
	} {
		r, err := s.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{Filter: tt.filter})
		if err != nil || len(r.Items) != tt.want {
			t.Errorf("pods by %v: %d, %v; want %d", tt.filter, len(r.GetItems()), err, tt.want)
		}
	}
	for _, tt := range []struct {
		filter *cri.ContainerFilter
		want   int
	}{
		{nil, 2},
		{&cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}, 2},
		{&cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_CREATED}}, 0},
		{&cri.ContainerFilter{Id: ctr[:60]}, 2},
		{&cri.ContainerFilter{Id: ctr}, 1},
		{&cri.ContainerFilter{PodSandboxId: pod}, 1},
		{&cri.ContainerFilter{PodSandboxId: "zzz"}, 0},
		{&cri.ContainerFilter{LabelSelector: map[string]string{"app": "db"}}, 0},
	} {
		r, err := s.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: tt.filter})
		if err != nil || len(r.Containers) != tt.want {
			t.Errorf("containers by %v: %d, %v; want %d", tt.filter, len(r.GetContainers()), err, tt.want)
		}
	}
}

// all collects a streamed list, checking that no message is empty.
func all[R, T any](t *testing.T, open func() (grpc.ServerStreamingClient[R], error), of func(*R) []T) (items []T, messages int) {
	t.Helper()
	st, err := open()
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return items, messages
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(of(m)) == 0 {
			t.Error("empty message")
		}
		items, messages = append(items, of(m)...), messages+1
	}
}

func TestStreamedLists(t *testing.T) {
	s := serveFakes(t)
	ctx := t.Context()
	pods := func() (grpc.ServerStreamingClient[cri.StreamPodSandboxesResponse], error) {
		return s.StreamPodSandboxes(ctx, &cri.StreamPodSandboxesRequest{})
	}
	if items, _ := all(t, pods, (*cri.StreamPodSandboxesResponse).GetPodSandboxes); len(items) != 0 {
		t.Errorf("%d pods of none", len(items))
	}
	// 40 MiB of pods: more than one message holds.
	for range 20 {
		cfg := podConfig()
		cfg.Annotations["fat"] = strings.Repeat("x", 2<<20)
		if _, err := s.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: cfg}); err != nil {
			t.Fatal(err)
		}
	}
	s.run(t)
	items, messages := all(t, pods, (*cri.StreamPodSandboxesResponse).GetPodSandboxes)
	seen := map[string]bool{}
	for _, p := range items {
		seen[p.Id] = true
	}
	if len(items) != 21 || len(seen) != 21 || messages < 20 {
		t.Errorf("%d pods (%d different) in %d messages; want 21 in 20 or more", len(items), len(seen), messages)
	}
	if _, err := s.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("unary list of 40 MiB: %v", err)
	}
	if c, _ := all(t, func() (grpc.ServerStreamingClient[cri.StreamContainersResponse], error) {
		return s.StreamContainers(ctx, &cri.StreamContainersRequest{})
	}, (*cri.StreamContainersResponse).GetContainers); len(c) != 1 {
		t.Errorf("%d containers; want 1", len(c))
	}
	if c, _ := all(t, func() (grpc.ServerStreamingClient[cri.StreamContainerStatsResponse], error) {
		return s.StreamContainerStats(ctx, &cri.StreamContainerStatsRequest{})
	}, (*cri.StreamContainerStatsResponse).GetContainerStats); len(c) != 1 {
		t.Errorf("%d container stats; want 1", len(c))
	}
	if c, _ := all(t, func() (grpc.ServerStreamingClient[cri.StreamPodSandboxStatsResponse], error) {
		return s.StreamPodSandboxStats(ctx, &cri.StreamPodSandboxStatsRequest{})
	}, (*cri.StreamPodSandboxStatsResponse).GetPodSandboxStats); len(c) != 21 {
		t.Errorf("%d pod stats; want 21", len(c))
	}
	if c, _ := all(t, func() (grpc.ServerStreamingClient[cri.StreamPodSandboxMetricsResponse], error) {
		return s.StreamPodSandboxMetrics(ctx, &cri.StreamPodSandboxMetricsRequest{})
	}, (*cri.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics); len(c) != 21 {
		t.Errorf("%d pod metrics; want 21", len(c))
	}
	s.node.images["x"] = Image{CRI: &cri.Image{Id: "sha256:x"}}
	if c, _ := all(t, func() (grpc.ServerStreamingClient[cri.StreamImagesResponse], error) {
		return s.images.StreamImages(ctx, &cri.StreamImagesRequest{})
	}, (*cri.StreamImagesResponse).GetImages); len(c) != 1 {
		t.Errorf("%d images; want 1", len(c))
	}
}

func TestStatsLeaveOutWhatIsGone(t *testing.T) {
	s := serveFakes(t)
	pod, ctr := s.run(t)
	for name, filter := range map[string]*cri.ContainerStatsFilter{"all": nil, "id": {Id: ctr}, "pod": {PodSandboxId: pod}} {
		r, err := s.ListContainerStats(t.Context(), &cri.ListContainerStatsRequest{Filter: filter})
		if err != nil || len(r.Stats) != 1 {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	d, err := s.ListMetricDescriptors(t.Context(), &cri.ListMetricDescriptorsRequest{})
	if err != nil || len(d.Descriptors) != 1 {
		t.Errorf("descriptors: %v, %v", d, err)
	}
	s.fail["stats.Container"] = errs.Newf(errs.NotFound, "measure container: gone")
	if r, err := s.ListContainerStats(t.Context(), &cri.ListContainerStatsRequest{}); err != nil || len(r.Stats) != 0 {
		t.Errorf("list while it goes: %v, %v; want none", r, err)
	}
	_, err = s.ContainerStats(t.Context(), &cri.ContainerStatsRequest{ContainerId: ctr})
	wantCode(t, "stats of one that is gone", err, codes.NotFound)
	if _, err := s.PodSandboxStats(t.Context(), &cri.PodSandboxStatsRequest{PodSandboxId: pod}); err != nil {
		t.Error(err)
	}
}

func TestImages(t *testing.T) {
	s := serveFakes(t)
	s.node.images["busybox"] = Image{CRI: &cri.Image{Id: "sha256:b"}, Info: func() map[string]string { return map[string]string{"imageSpec": "{}"} }}
	r, err := s.images.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "busybox"}, Auth: &cri.AuthConfig{Username: "joe", Password: "secret"}})
	if err != nil || r.ImageRef != "sha256:pulled" || s.transcript() != "image.Pull busybox joe" {
		t.Errorf("pull: %v, %v", r, err)
	}
	for ref, want := range map[string]int{"": 1, "busybox": 1, "other": 0} {
		l, err := s.images.ListImages(t.Context(), &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: &cri.ImageSpec{Image: ref}}})
		if err != nil || len(l.Images) != want {
			t.Errorf("list %q: %v, %v; want %d", ref, l, err, want)
		}
	}
	st, err := s.images.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "busybox"}, Verbose: true})
	if err != nil || st.Image.Id != "sha256:b" || st.Info["imageSpec"] != "{}" {
		t.Errorf("status: %v, %v", st, err)
	}
	fs, err := s.images.ImageFsInfo(t.Context(), &cri.ImageFsInfoRequest{})
	if err != nil || len(fs.ImageFilesystems) != 1 || len(fs.ContainerFilesystems) != 1 {
		t.Errorf("file systems: %v, %v", fs, err)
	}
	if strings.Contains(s.log.String(), "secret") {
		t.Error("the password was logged")
	}
}

func TestEventsEndWithTheServer(t *testing.T) {
	s := serveFakes(t)
	st, err := s.GetContainerEvents(t.Context(), &cri.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		s.events <- &cri.ContainerEventResponse{ContainerId: fmt.Sprint(i)}
	}
	for i := range 3 {
		if e, err := st.Recv(); err != nil || e.ContainerId != fmt.Sprint(i) {
			t.Fatalf("event %d: %v, %v", i, e, err)
		}
	}
	start := time.Now()
	s.server.Stop()
	if took := time.Since(start); took >= stopGrace {
		t.Errorf("stopping took %s, a stream held it up", took)
	}
	if _, err := st.Recv(); err == nil {
		t.Error("the stream goes on")
	}
}

func TestCallsEndWithTheServer(t *testing.T) {
	s := serveFakes(t)
	_, ctr := s.run(t)
	s.block["ctr.ExecSync"] = true
	done := make(chan error, 1)
	go func() {
		_, err := s.ExecSync(context.Background(), &cri.ExecSyncRequest{ContainerId: ctr, Cmd: []string{"sleep"}})
		done <- err
	}()
	<-s.blocked
	s.server.Stop()
	if err := <-done; err == nil {
		t.Error("ExecSync outlived the server")
	}
}

func TestUnimplemented(t *testing.T) {
	s := serveFakes(t)
	_, err := s.CheckpointContainer(t.Context(), &cri.CheckpointContainerRequest{})
	wantCode(t, "checkpoint container", err, codes.Unimplemented)
	_, err = s.CheckpointPod(t.Context(), &cri.CheckpointPodRequest{})
	wantCode(t, "checkpoint pod", err, codes.Unimplemented)
	_, err = s.RestorePod(t.Context(), &cri.RestorePodRequest{})
	wantCode(t, "restore pod", err, codes.Unimplemented)
}

// TestEveryRPCIsServed keeps the fallback from hiding an RPC that was forgotten, or is new in the protocol.
func TestEveryRPCIsServed(t *testing.T) {
	s := serveFakes(t)
	conn := dialSocket(t, s.socket)
	defer conn.Close()
	for _, d := range []grpc.ServiceDesc{cri.RuntimeService_ServiceDesc, cri.ImageService_ServiceDesc} {
		for _, m := range d.Methods {
			var none cri.VersionRequest
			err := conn.Invoke(t.Context(), "/"+d.ServiceName+"/"+m.MethodName, &none, &cri.StopPodSandboxResponse{})
			later := m.MethodName == "CheckpointContainer" || m.MethodName == "CheckpointPod" || m.MethodName == "RestorePod"
			if got := status.Code(err) == codes.Unimplemented; got != later {
				t.Errorf("%s: %v", m.MethodName, err)
			}
			if c := status.Code(err); c == codes.Internal || c == codes.Unknown {
				t.Errorf("%s with an empty request: %v", m.MethodName, err)
			}
		}
	}
}

// TestStreamingURLs: what the URLs lead to is the object that the request named, by its whole id.
func TestStreamingURLs(t *testing.T) {
	s := serveFakes(t)
	pod, ctr := s.run(t)
	r, err := s.Exec(t.Context(), &cri.ExecRequest{ContainerId: ctr[:30], Cmd: []string{"ls", "-l"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	config, err := websocket.NewConfig("ws"+strings.TrimPrefix(r.Url, "http"), "http://localhost/")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v4.channel.k8s.io"}
	conn, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for got := ""; got != "[ls -l]"; {
		var frame []byte
		if err := websocket.Message.Receive(conn, &frame); err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		if len(frame) > 1 && frame[0] == 1 {
			got += string(frame[1:])
		}
	}
	for what, call := range map[string]func() (string, error){
		"attach": func() (string, error) {
			r, err := s.Attach(t.Context(), &cri.AttachRequest{ContainerId: ctr, Stdout: true, Stderr: true})
			return r.GetUrl(), err
		},
		"portforward": func() (string, error) {
			r, err := s.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: pod})
			return r.GetUrl(), err
		},
	} {
		if u, err := call(); err != nil || !strings.HasPrefix(u, "http://127.0.0.1:") || !strings.Contains(u, "/"+what+"/") {
			t.Errorf("%s: %q, %v", what, u, err)
		}
	}
}
