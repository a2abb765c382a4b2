// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"net"
	"net/netip"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/container"
	"crishim.dev/sandbox"
	"crishim.dev/stats"
	"crishim.dev/stream"
)

// Sandboxes is what the server needs of pods; *sandbox.Manager has it.
//
// Get and List answer from immutable copies and wait for nothing. Get takes a whole id or a prefix that only one has
// (else errs.Invalid) and answers errs.NotFound for an unknown one.
type Sandboxes interface {
	Run(ctx context.Context, cfg *cri.PodSandboxConfig, handler string) (sandbox.ID, error)
	Stop(ctx context.Context, id sandbox.ID) error
	Remove(ctx context.Context, id sandbox.ID) error
	Get(id string) (sandbox.Sandbox, error)
	List() []sandbox.Sandbox
	// Update sets the pod's own overhead and resources; nil leaves one as it is.
	Update(ctx context.Context, id sandbox.ID, overhead, resources *cri.LinuxContainerResources) error
}

// Containers is what the server needs of containers; *container.Manager has it. Get and List are as in Sandboxes.
type Containers interface {
	Create(ctx context.Context, pod sandbox.ID, cfg *cri.ContainerConfig) (container.ID, error)
	Start(ctx context.Context, id container.ID) error
	Stop(ctx context.Context, id container.ID, timeout time.Duration) error
	Remove(ctx context.Context, id container.ID) error
	Get(id string) (container.Container, error)
	List() []container.Container
	Update(ctx context.Context, id container.ID, r *cri.LinuxContainerResources) error
	ReopenLog(ctx context.Context, id container.ID) error
	// StopPod ends all of a pod's containers and lets no new one begin; RemovePod removes them.
	StopPod(ctx context.Context, pod sandbox.ID) error
	RemovePod(ctx context.Context, pod sandbox.ID) error
}

// Execs runs processes beside a container's first and joins its streams; *container.Manager has it.
type Execs interface {
	// ExecSync runs cmd to its end. After timeout (0: never) it and all its children are killed and the error is
	// errs.Deadline. Output beyond limit bytes, both streams together, is discarded.
	ExecSync(ctx context.Context, id container.ID, cmd []string, timeout time.Duration, limit int) (stdout, stderr []byte, exitCode int32, err error)
	Exec(ctx context.Context, id container.ID, cmd []string, s stream.IO) (exitCode int32, err error)
	Attach(ctx context.Context, id container.ID, s stream.IO) error
}

// Dialer connects to a port of a pod's loopback from inside its network namespace (the host's for a hostNetwork pod).
type Dialer func(ctx context.Context, pod sandbox.Sandbox, port uint16) (net.Conn, error)

// URLs makes one-time URLs for streaming requests; *stream.Server has it.
type URLs interface {
	Exec(r *cri.ExecRequest) (string, error)
	Attach(r *cri.AttachRequest) (string, error)
	PortForward(r *cri.PortForwardRequest) (string, error)
}

// Images is what the server needs of images.
type Images interface {
	// Pull fetches the image and returns its id: what List calls it. It fails with the errors that kubelet knows by name
	// (k8s.io/cri-api/pkg/errors): ErrRegistryUnavailable, ErrSignatureValidationFailed.
	Pull(ctx context.Context, ref string, auth *cri.AuthConfig) (id string, err error)
	// Resolve finds an image by tag, digest, id or unique id prefix; errs.NotFound otherwise.
	Resolve(ref string) (Image, error)
	List() []Image
	// Remove drops the image with every tag; an unknown one is no error.
	Remove(ctx context.Context, ref string) error
	// Usage is what images, and containers' writable layers, take.
	Usage(ctx context.Context) (images, containers *cri.FilesystemUsage, err error)
}

// Image is an image as CRI sees it, with what a verbose status adds. The messages must not be written.
type Image struct {
	CRI *cri.Image
	// Info is JSON by name for a verbose status (the image's configuration).
	Info func() map[string]string
}

// Network is what the server needs of the pod network.
type Network interface {
	// Status is nil when pods can be attached, else the reason for NetworkReady=false.
	Status() error
	SetPodCIDRs(cidrs []netip.Prefix) error
}

// Stats measures; *stats.Meter has it. What ended meanwhile is errs.NotFound.
type Stats interface {
	Container(c stats.Container) (*cri.ContainerStats, error)
	Pod(p stats.Pod) (*cri.PodSandboxStats, error)
	// Descriptors are the same for the life of the daemon.
	Descriptors() []*cri.MetricDescriptor
	Metrics(p stats.Pod) (*cri.PodSandboxMetrics, error)
}

// Events is what GetContainerEvents needs; *Publisher has it.
type Events interface {
	// Subscribe calls send for each event from now on, in order, until ctx is done or send fails; it returns errs.Exhausted
	// to a consumer that was too slow and lost events.
	Subscribe(ctx context.Context, send func(*cri.ContainerEventResponse) error) error
	// Remember is called before a pod is removed, for the event of its end, which carries its status.
	Remember(pod sandbox.Sandbox)
}
