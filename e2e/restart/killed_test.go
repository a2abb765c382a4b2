// SPDX-License-Identifier: Apache-2.0

package restart

import (
	"context"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode"
	"crishim.dev/internal/testnode/testimage"
)

// TestDaemonKilledInEveryCall kills the daemon at random moments while pods with containers are made, started, used, stopped and removed.
// Whatever call that hits, the next daemon can stop and remove all there is, and nothing is left.
func TestDaemonKilledInEveryCall(t *testing.T) {
	n := node(t)
	kit.Pull(t, n, testimage.Busybox)
	rng := rand.New(rand.NewPCG(3, 4))
	rounds := 30
	if testing.Short() {
		rounds = 6
	}
	for range rounds {
		ctx, cancel := context.WithCancel(kit.Context(t))
		var clients sync.WaitGroup
		for _, shared := range []bool{false, true} {
			pod := kit.PodConfig(t, n, func(c *cri.PodSandboxConfig) {
				if shared { // with an init of its own
					c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
				}
			})
			config := kit.ContainerConfig(t, testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) {
				if shared {
					c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
				}
			})
			clients.Go(func() {
				for ctx.Err() == nil {
					life(ctx, n, pod, config)
				}
			})
		}
		<-time.After(time.Duration(rng.IntN(120_000)) * time.Microsecond) // the random moment
		err := n.StopDaemon(t.Context(), syscall.SIGKILL)
		cancel()
		clients.Wait()
		if err == nil {
			err = n.StartDaemon(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, left := range n.Clean(kit.Context(t)) {
			t.Errorf("left behind: %s", left)
		}
		if t.Failed() {
			t.Fatalf("the daemon's log ends:\n%s", n.Log(40))
		}
	}
}

// life is a pod's, from its making to its removal; it ends at the first call that fails.
func life(ctx context.Context, n *testnode.Node, pod *cri.PodSandboxConfig, config *cri.ContainerConfig) {
	made, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return
	}
	id := made.GetPodSandboxId()
	created, err := n.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: id, Config: config, SandboxConfig: pod})
	if err != nil {
		return
	}
	c := created.GetContainerId()
	if _, err := n.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c}); err != nil {
		return
	}
	// A child that outlives its parent unless the whole exec is ended.
	exec := &cri.ExecSyncRequest{ContainerId: c, Cmd: []string{"sh", "-c", "setsid sleep 3600 & true"}, Timeout: 10}
	if _, err := n.Runtime.ExecSync(ctx, exec); err != nil {
		return
	}
	if _, err := n.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c, Timeout: 10}); err != nil {
		return
	}
	if _, err := n.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c}); err != nil {
		return
	}
	if _, err := n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return
	}
	_, _ = n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
}
