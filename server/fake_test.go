// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/container"
	"crishim.dev/internal/crifield"
	"crishim.dev/internal/errs"
	"crishim.dev/sandbox"
	"crishim.dev/stats"
	"crishim.dev/stream"
)

func TestMain(m *testing.M) { os.Exit(crifield.Run(m)) }

// node fakes all managers: it keeps objects in maps and changes their states as the real ones do, and writes down what
// it was asked.
type node struct {
	mu     sync.Mutex
	pods   map[sandbox.ID]sandbox.Sandbox
	ctrs   map[container.ID]container.Container
	images map[string]Image
	calls  []string
	// fail is the error of the next calls by name.
	fail map[string]error
	// block makes calls by name wait for their context, which blocked tells.
	block   map[string]bool
	blocked chan struct{}
	// stdout is what ExecSync returns.
	stdout, stderr []byte
	panics         bool
	// asked has the requests that the last calls had a URL made of, or credentials.
	asked  []proto.Message
	events chan *cri.ContainerEventResponse
	next   int
}

func newNode() *node {
	return &node{
		pods: map[sandbox.ID]sandbox.Sandbox{}, ctrs: map[container.ID]container.Container{}, images: map[string]Image{},
		fail: map[string]error{}, block: map[string]bool{}, blocked: make(chan struct{}, 10), events: make(chan *cri.ContainerEventResponse, 10),
	}
}

// called writes the call down and gives what it is to fail with.
func (n *node) called(ctx context.Context, name string, args ...any) error {
	n.mu.Lock()
	n.calls = append(n.calls, strings.TrimSpace(name+" "+strings.TrimSuffix(fmt.Sprintln(args...), "\n")))
	err, block, panics := n.fail[name], n.block[name], n.panics
	n.mu.Unlock()
	if panics {
		panic("fake " + name)
	}
	if block {
		n.blocked <- struct{}{}
		<-ctx.Done()
		return fmt.Errorf("%s: %w", name, ctx.Err())
	}
	return err
}

func (n *node) transcript() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := strings.Join(n.calls, "; ")
	n.calls = nil
	return t
}

func (n *node) id(prefix string) string {
	n.next++
	return prefix + strings.Repeat("0", 60-len(prefix)) + fmt.Sprintf("%04d", n.next)
}

func (n *node) note(m proto.Message) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, proto.Clone(m))
}

// notedURLs are those of a streaming server, with the requests noted.
type notedURLs struct {
	URLs
	*node
}

func (u notedURLs) Exec(r *cri.ExecRequest) (string, error)     { u.note(r); return u.URLs.Exec(r) }
func (u notedURLs) Attach(r *cri.AttachRequest) (string, error) { u.note(r); return u.URLs.Attach(r) }
func (u notedURLs) PortForward(r *cri.PortForwardRequest) (string, error) {
	u.note(r)
	return u.URLs.PortForward(r)
}

type fakePods struct{ *node }

func (n fakePods) Run(ctx context.Context, cfg *cri.PodSandboxConfig, handler string) (sandbox.ID, error) {
	if err := n.called(ctx, "pod.Run", cfg.GetMetadata().GetName(), handler); err != nil {
		return "", err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	id := sandbox.ID(n.id("a"))
	n.pods[id] = sandbox.Sandbox{ID: id, State: sandbox.Ready, Config: cfg, Handler: handler, CreatedAt: time.Now(), IPs: []string{"10.0.0.7", "fd00::7"}}
	return id, nil
}

func (n fakePods) Stop(ctx context.Context, id sandbox.ID) error {
	err := n.called(ctx, "pod.Stop")
	n.mu.Lock()
	defer n.mu.Unlock()
	if p, ok := n.pods[id]; ok && err == nil {
		p.State = sandbox.Stopped
		n.pods[id] = p
	}
	return err
}

func (n fakePods) Remove(ctx context.Context, id sandbox.ID) error {
	err := n.called(ctx, "pod.Remove")
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil {
		delete(n.pods, id)
	}
	return err
}

func (n fakePods) Get(id string) (sandbox.Sandbox, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for full, p := range n.pods {
		if strings.HasPrefix(string(full), id) {
			return p, nil
		}
	}
	return sandbox.Sandbox{}, errs.Newf(errs.NotFound, "find pod sandbox %q: no such pod sandbox", id)
}

func (n fakePods) List() []sandbox.Sandbox {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []sandbox.Sandbox
	for _, p := range n.pods {
		all = append(all, p)
	}
	return all
}

func (n fakePods) Update(ctx context.Context, _ sandbox.ID, overhead, resources *cri.LinuxContainerResources) error {
	return n.called(ctx, "pod.Update", overhead.GetCpuShares(), resources.GetCpuShares())
}

type fakeContainers struct{ *node }

func (n fakeContainers) Create(ctx context.Context, pod sandbox.ID, cfg *cri.ContainerConfig) (container.ID, error) {
	if err := n.called(ctx, "ctr.Create", cfg.GetMetadata().GetName()); err != nil {
		return "", err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	id := container.ID(n.id("c"))
	n.ctrs[id] = container.Container{
		ID: id, Sandbox: pod, State: container.Created, Config: cfg, ImageID: "sha256:i", ImageRef: "img@sha256:d", CreatedAt: time.Now(),
		LogPath: "/var/log/pods/x/0.log", StopSignal: "SIGRTMIN+3", Resources: cfg.GetLinux().GetResources(), User: &cri.LinuxContainerUser{Uid: 7},
	}
	return id, nil
}

func (n fakeContainers) set(id container.ID, s container.State) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c, ok := n.ctrs[id]; ok {
		c.State = s
		n.ctrs[id] = c
	}
}

func (n fakeContainers) Start(ctx context.Context, id container.ID) error {
	err := n.called(ctx, "ctr.Start")
	if err == nil {
		n.set(id, container.Running)
	}
	return err
}

func (n fakeContainers) Stop(ctx context.Context, id container.ID, timeout time.Duration) error {
	err := n.called(ctx, "ctr.Stop", timeout)
	if err == nil {
		n.set(id, container.Exited)
	}
	return err
}

func (n fakeContainers) Remove(ctx context.Context, id container.ID) error {
	err := n.called(ctx, "ctr.Remove")
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil {
		delete(n.ctrs, id)
	}
	return err
}

func (n fakeContainers) Get(id string) (container.Container, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for full, c := range n.ctrs {
		if strings.HasPrefix(string(full), id) {
			return c, nil
		}
	}
	return container.Container{}, errs.Newf(errs.NotFound, "find container %q: no such container", id)
}

func (n fakeContainers) List() []container.Container {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []container.Container
	for _, c := range n.ctrs {
		all = append(all, c)
	}
	return all
}

func (n fakeContainers) Update(ctx context.Context, _ container.ID, r *cri.LinuxContainerResources) error {
	return n.called(ctx, "ctr.Update", r.GetCpuShares())
}

func (n fakeContainers) ReopenLog(ctx context.Context, _ container.ID) error {
	return n.called(ctx, "ctr.ReopenLog")
}

func (n fakeContainers) StopPod(ctx context.Context, _ sandbox.ID) error {
	return n.called(ctx, "ctr.StopPod")
}

func (n fakeContainers) RemovePod(ctx context.Context, _ sandbox.ID) error {
	return n.called(ctx, "ctr.RemovePod")
}

func (n fakeContainers) ExecSync(ctx context.Context, _ container.ID, cmd []string, timeout time.Duration, limit int) (stdout, stderr []byte, exitCode int32, err error) {
	err = n.called(ctx, "ctr.ExecSync", cmd, timeout, limit == maxOutput)
	return n.stdout, n.stderr, 3, err
}

func (n fakeContainers) Exec(_ context.Context, _ container.ID, cmd []string, s stream.IO) (int32, error) {
	if s.Stdin != nil {
		if _, err := io.Copy(s.Stdout, s.Stdin); err != nil {
			return 0, err
		}
	}
	_, err := fmt.Fprint(s.Stdout, cmd)
	return 0, err
}

func (n fakeContainers) Attach(context.Context, container.ID, stream.IO) error { return nil }

type fakeImages struct{ *node }

func (n fakeImages) Pull(ctx context.Context, ref string, auth *cri.AuthConfig) (string, error) {
	n.note(auth)
	return "sha256:pulled", n.called(ctx, "image.Pull", ref, auth.GetUsername())
}

func (n fakeImages) Resolve(ref string) (Image, error) {
	if i, ok := n.images[ref]; ok {
		return i, nil
	}
	return Image{}, errs.Newf(errs.NotFound, "find image %s: no such image", ref)
}

func (n fakeImages) List() []Image {
	var all []Image
	for _, i := range n.images {
		all = append(all, i)
	}
	return all
}

func (n fakeImages) Remove(ctx context.Context, ref string) error {
	return n.called(ctx, "image.Remove", ref)
}

func (n fakeImages) Usage(ctx context.Context) (images, containers *cri.FilesystemUsage, err error) {
	err = n.called(ctx, "image.Usage")
	fs := &cri.FilesystemIdentifier{Mountpoint: "/var/lib"}
	return &cri.FilesystemUsage{FsId: fs, Timestamp: 1}, &cri.FilesystemUsage{FsId: fs, Timestamp: 2}, err
}

type fakeNetwork struct{ *node }

func (n fakeNetwork) Status() error { return n.called(context.Background(), "network.Status") }

func (n fakeNetwork) SetPodCIDRs(p []netip.Prefix) error {
	return n.called(context.Background(), "network.SetPodCIDRs", p)
}

type fakeStats struct{ *node }

func (n fakeStats) Container(c stats.Container) (*cri.ContainerStats, error) {
	return &cri.ContainerStats{Attributes: c.Attributes}, n.called(context.Background(), "stats.Container", c.Image)
}

func (n fakeStats) Pod(p stats.Pod) (*cri.PodSandboxStats, error) {
	return &cri.PodSandboxStats{Attributes: p.Attributes}, n.called(context.Background(), "stats.Pod", len(p.Containers))
}

func (n fakeStats) Descriptors() []*cri.MetricDescriptor {
	return []*cri.MetricDescriptor{{Name: "container_cpu_usage_seconds_total"}}
}

func (n fakeStats) Metrics(p stats.Pod) (*cri.PodSandboxMetrics, error) {
	return &cri.PodSandboxMetrics{PodSandboxId: p.Attributes.GetId()}, n.called(context.Background(), "stats.Metrics")
}

type fakeEvents struct{ *node }

func (n fakeEvents) Remember(sandbox.Sandbox) {}

func (n fakeEvents) Subscribe(ctx context.Context, send func(*cri.ContainerEventResponse) error) error {
	if err := n.called(ctx, "events.Subscribe"); err != nil {
		return err
	}
	for {
		select {
		case e := <-n.events:
			if err := send(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// served is a Server over fakes on a real socket, with clients of it.
type served struct {
	*node
	cri.RuntimeServiceClient
	images cri.ImageServiceClient
	server *Server
	socket string
	log    *strings.Builder
}

// lockedWriter lets the test read what the server's goroutines log.
type lockedWriter struct {
	mu sync.Mutex
	b  *strings.Builder
}

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func serveFakes(t *testing.T) *served {
	t.Helper()
	n := newNode()
	s := &served{node: n, socket: filepath.Join(t.TempDir(), "shim.sock"), log: &strings.Builder{}}
	log := slog.New(slog.NewTextHandler(&lockedWriter{b: s.log}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	ctrs := fakeContainers{n}
	streams, err := stream.New(stream.Options{
		Address: "127.0.0.1:0", IdleTimeout: time.Minute, CreationTimeout: time.Minute, Log: log,
		Runtime: &StreamRuntime{Sandboxes: fakePods{n}, Containers: ctrs, Execs: ctrs, Dialer: func(context.Context, sandbox.Sandbox, uint16) (net.Conn, error) {
			return nil, errs.Newf(errs.Unavailable, "no pod network here")
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = streams.Close() })
	s.server = New(Options{
		Version: "v0.0.0-dev+g123", Default: Handler{RecursiveReadOnlyMounts: true}, Handlers: []Handler{{Name: "fast"}},
		Features: &cri.RuntimeFeatures{SupplementalGroupsPolicy: true}, Info: func() map[string]string { return map[string]string{"config": "{}"} },
		Sandboxes: fakePods{n}, Containers: ctrs, Execs: ctrs, Images: fakeImages{n}, Network: fakeNetwork{n}, Stats: fakeStats{n},
		Events: fakeEvents{n}, URLs: notedURLs{streams, n}, Log: log,
	})
	l, err := Listen(t.Context(), s.socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.server.Serve(l) }()
	conn := dialSocket(t, s.socket)
	t.Cleanup(func() {
		_ = conn.Close()
		s.server.Stop()
		_ = l.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	s.RuntimeServiceClient, s.images = cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	return s
}

func dialSocket(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+path, append(crifield.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)))...)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func podConfig() *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "web", Uid: "u-1", Namespace: "default"},
		LogDirectory: "/var/log/pods/default_web_u-1",
		Labels:       map[string]string{"app": "web"},
		Annotations:  map[string]string{"note": "verbatim"},
		Linux:        &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}},
	}
}

func containerConfig() *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "nginx"},
		Image:    &cri.ImageSpec{Image: "sha256:i"},
		Labels:   map[string]string{"app": "web"},
		LogPath:  "nginx/0.log",
		Mounts:   []*cri.Mount{{HostPath: "/var/lib/x/../x", ContainerPath: "/dev/termination-log"}},
		Linux: &cri.LinuxContainerConfig{
			Resources:       &cri.LinuxContainerResources{CpuShares: 2},
			SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}
}

// run makes a pod and a container in it that runs.
func (s *served) run(t *testing.T) (pod, ctr string) {
	t.Helper()
	p, err := s.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: podConfig()})
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: p.PodSandboxId, Config: containerConfig(), SandboxConfig: podConfig()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	s.transcript()
	return p.PodSandboxId, c.ContainerId
}

// wantCode checks an error's code and that its text has each part.
func wantCode(t *testing.T, what string, err error, code codes.Code, parts ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%s: %v; want code %s", what, err, code)
		return
	}
	for _, p := range parts {
		if !strings.Contains(status.Convert(err).Message(), p) {
			t.Errorf("%s: %v; want %q in it", what, err, p)
		}
	}
}
