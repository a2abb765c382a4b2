// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// bench is one run against one runtime.
type bench struct {
	options
	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient
	result  result
	made    int // pods so far, for their names
}

// connect dials and makes sure that the image is there.
func connect(ctx context.Context, o options) (*bench, error) {
	conn, err := grpc.NewClient("unix://"+o.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	b := &bench{options: o, conn: conn, runtime: cri.NewRuntimeServiceClient(conn)}
	images := cri.NewImageServiceClient(conn)
	v, err := b.runtime.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask version: %w", err)
	}
	b.result = result{Runtime: v.GetRuntimeName() + " " + v.GetRuntimeVersion(), Pods: o.pods, Latency: make(map[string]latency)}
	status, err := images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: o.image}})
	if err == nil && status.GetImage() == nil {
		_, err = images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: o.image}})
	}
	if err != nil {
		return nil, fmt.Errorf("get image %s: %w", o.image, err)
	}
	return b, nil
}

// pod is one pod with one container.
type pod struct {
	config    *cri.PodSandboxConfig
	id, inner string
}

// step is one timed call.
type step struct {
	name string
	took time.Duration
}

// timed runs f and appends how long it took.
func timed(steps *[]step, name string, f func() error) error {
	began := time.Now()
	err := f()
	*steps = append(*steps, step{name, time.Since(began)})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// newPod prepares a pod's configuration; not for concurrent use.
func (b *bench) newPod() *pod {
	b.made++
	name := fmt.Sprintf("bench-%d-%d", time.Now().UnixNano()%1e9, b.made)
	return &pod{config: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		LogDirectory: filepath.Join(b.logDir, name),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    b.cgroupParent,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: ownPIDs()},
		},
	}}
}

// start takes a pod from nothing to a running container.
func (b *bench) start(ctx context.Context, p *pod, command ...string) ([]step, error) {
	var steps []step
	container := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c"}, Image: &cri.ImageSpec{Image: b.image}, Command: command, LogPath: "c.log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: ownPIDs(), Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		}},
	}
	began := time.Now()
	err := timed(&steps, "RunPodSandbox", func() error {
		r, err := b.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config, RuntimeHandler: b.handler})
		p.id = r.GetPodSandboxId()
		return err
	})
	if err == nil {
		err = timed(&steps, "CreateContainer", func() error {
			r, err := b.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: container, SandboxConfig: p.config})
			p.inner = r.GetContainerId()
			return err
		})
	}
	if err == nil {
		err = timed(&steps, "StartContainer", func() error {
			_, err := b.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.inner})
			return err
		})
	}
	return append(steps, step{startToRunning, time.Since(began)}), err
}

// remove takes the pod back to nothing.
func (b *bench) remove(ctx context.Context, p *pod) ([]step, error) {
	p.awaitReady()
	var steps []step
	calls := []struct {
		name string
		f    func() error
	}{
		{"StopContainer", func() error {
			_, err := b.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: p.inner, Timeout: 10})
			return err
		}},
		{"RemoveContainer", func() error {
			_, err := b.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: p.inner})
			return err
		}},
		{"StopPodSandbox", func() error {
			_, err := b.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
			return err
		}},
		{"RemovePodSandbox", func() error {
			_, err := b.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
			return err
		}},
	}
	for _, c := range calls {
		if err := timed(&steps, c.name, c.f); err != nil {
			return steps, err
		}
	}
	return steps, nil
}

// sleeper ends at SIGTERM at once, so that StopContainer measures the runtime and not a grace period. It says when it does.
func sleeper() []string {
	return strings.Split("sh|-c|trap 'exit 0' TERM; echo ready; sleep 100000 & wait", "|")
}

// awaitReady waits until the container's first process has said something: as pid 1 it does not see a signal that comes before its handler.
func (p *pod) awaitReady() {
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Microsecond) {
		if st, err := os.Stat(filepath.Join(p.config.GetLogDirectory(), "c.log")); err == nil && st.Size() > 0 {
			return
		}
	}
}

// ownPIDs is what the kubelet asks for: a pid namespace per container.
func ownPIDs() *cri.NamespaceOption {
	return &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}
}
