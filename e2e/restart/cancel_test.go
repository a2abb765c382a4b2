// SPDX-License-Identifier: Apache-2.0

package restart

import (
	"context"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode"
	"crishim.dev/internal/testnode/testimage"
)

// acceptable says whether an error is what a cancelled or repeated call may get.
func acceptable(err error) bool {
	switch status.Code(err) {
	case codes.OK, codes.Canceled, codes.DeadlineExceeded:
		return true
	default:
		return false
	}
}

// TestCancelledAtEveryStage gives each call less time than it takes, at random, and repeats it: in the end it succeeds, no
// repetition sees "name is reserved", and the node is as before.
func TestCancelledAtEveryStage(t *testing.T) {
	n := node(t)
	rng := rand.New(rand.NewPCG(1, 2))
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	for range rounds {
		cancelled(t, n, func() time.Duration { return time.Duration(rng.IntN(12000)) * time.Microsecond })
	}
}

// insist repeats a call under random deadlines, then without one.
func insist[T any](t *testing.T, name string, limit func() time.Duration, call func(context.Context) (T, error)) T {
	t.Helper()
	for range 4 {
		ctx, cancel := context.WithTimeout(t.Context(), limit())
		out, err := call(ctx)
		cancel()
		if err == nil {
			return out
		}
		if !acceptable(err) {
			t.Errorf("%s, cancelled or repeated: %v", name, err)
		}
	}
	out, err := call(kit.Context(t))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

func cancelled(t *testing.T, n *testnode.Node, limit func() time.Duration) {
	t.Helper()
	pod := kit.PodConfig(t, n)
	sandbox := insist(t, "RunPodSandbox", limit, func(ctx context.Context) (*cri.RunPodSandboxResponse, error) {
		return n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
	}).GetPodSandboxId()
	config := kit.ContainerConfig(t, testimage.Busybox, kit.Sleep())
	id := insist(t, "CreateContainer", limit, func(ctx context.Context) (*cri.CreateContainerResponse, error) {
		return n.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: sandbox, Config: config, SandboxConfig: pod})
	}).GetContainerId()
	startOnce(t, n, id, limit)
	t.Cleanup(func() {
		if err := os.RemoveAll(pod.LogDirectory); err != nil {
			t.Error(err)
		}
	})
	insist(t, "ExecSync", limit, func(ctx context.Context) (*cri.ExecSyncResponse, error) {
		return n.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
	})
	insist(t, "StopContainer", limit, func(ctx context.Context) (*cri.StopContainerResponse, error) {
		return n.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: 30})
	})
	insist(t, "RemoveContainer", limit, func(ctx context.Context) (*cri.RemoveContainerResponse, error) {
		return n.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
	})
	insist(t, "StopPodSandbox", limit, func(ctx context.Context) (*cri.StopPodSandboxResponse, error) {
		return n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: sandbox})
	})
	insist(t, "RemovePodSandbox", limit, func(ctx context.Context) (*cri.RemovePodSandboxResponse, error) {
		return n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: sandbox})
	})
}

// startOnce starts under a short deadline. A start that was cancelled may have happened: then the container runs, and
// starting it again is a failed precondition, not a fault.
func startOnce(t *testing.T, n *testnode.Node, id string, limit func() time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit())
	_, err := n.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
	cancel()
	if !acceptable(err) {
		t.Errorf("StartContainer, cancelled: %v", err)
	}
	_, err = n.Runtime.StartContainer(kit.Context(t), &cri.StartContainerRequest{ContainerId: id})
	s, serr := n.Runtime.ContainerStatus(kit.Context(t), &cri.ContainerStatusRequest{ContainerId: id})
	if serr != nil {
		t.Fatal(serr)
	}
	if state := s.GetStatus().GetState(); state != cri.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("after a cancelled start and another (%v) the container is %v: %s", err, state, s.GetStatus().GetMessage())
	}
}
