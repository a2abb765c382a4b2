// SPDX-License-Identifier: Apache-2.0

package testnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/census"
	"crishim.dev/internal/crifield"
)

// Options say how a node is made. The zero value is a node with the built-in network and all images.
type Options struct {
	// Name tells nodes of one process apart; "" is right for the only one.
	Name string
	// Config is TOML that overrides the daemon's config.toml.
	Config string
	// NoImages leaves the registry empty.
	NoImages bool
	// Cold leaves out the first pod that warms a node up.
	Cold bool
	// Log gets what the node does; nil: nothing.
	Log *slog.Logger
}

// Node is a running node. Its methods are not safe for concurrent use; the clients are.
type Node struct {
	// Dir holds config.toml, crictl.yaml, the CNI directories, persistent state and logs.
	Dir string
	// Socket, Root and State are what the daemon was told.
	Socket, Root, State string
	// CgroupParent is the parent of pods that name none.
	CgroupParent string
	// Registry serves the images.
	Registry *Registry
	// Runtime and Images are clients of the daemon; they outlive its restarts.
	Runtime cri.RuntimeServiceClient
	Images  cri.ImageServiceClient
	// Conn is the connection of both.
	Conn *grpc.ClientConn

	log    *slog.Logger
	daemon *daemon
	empty  bool // no images to pull
	cold   bool // no pod of its own
	census *census.Census
	images []string // ids at the last Mark
	// descriptors are those of the runtime's processes, by role, at the last Mark.
	descriptors map[string]marked
}

// Start brings up a node. The process must be inside.
func Start(ctx context.Context, o Options) (*Node, error) {
	if !Inside() {
		return nil, errors.New("start node: not inside; call Enter or Main first")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	run := "/run/shim" + o.Name
	n := &Node{
		Dir: filepath.Join(Dir(), "node"+o.Name), Socket: run + "/shim.sock", State: run,
		CgroupParent: filepath.Join(CgroupParent(), "pods"+o.Name), log: o.Log, empty: o.NoImages, cold: o.Cold,
	}
	n.Root = filepath.Join(n.Dir, "lib")
	for _, d := range []string{n.Dir, n.Root, n.path("cni/net.d"), n.path("cni/bin"), n.path("certs.d"), n.path("config.d"), n.path("logs"), n.path("path"), n.State} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make node directory: %w", err)
		}
	}
	if err := n.start(ctx, o); err != nil {
		return nil, errors.Join(err, n.Close(context.WithoutCancel(ctx)), fmt.Errorf("daemon's log:\n%s", n.Log(40)))
	}
	return n, nil
}

func (n *Node) path(elem ...string) string { return filepath.Join(append([]string{n.Dir}, elem...)...) }

func (n *Node) start(ctx context.Context, o Options) error {
	var err error
	if n.Registry, err = StartRegistry(); err != nil {
		return err
	}
	if err := n.Registry.writeCerts(n.path("certs.d")); err != nil {
		return err
	}
	if !o.NoImages {
		if err := n.Registry.Fill(ctx); err != nil {
			return err
		}
	}
	if err := n.writeConfig(o.Config); err != nil {
		return err
	}
	n.Conn, err = grpc.NewClient("unix://"+n.Socket, append(crifield.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20), grpc.MaxCallSendMsgSize(16<<20)))...)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	n.Runtime, n.Images = cri.NewRuntimeServiceClient(n.Conn), cri.NewImageServiceClient(n.Conn)
	if err := n.StartDaemon(ctx); err != nil {
		return err
	}
	return n.Mark(ctx)
}

// writeConfig writes the daemon's and crictl's configuration.
func (n *Node) writeConfig(extra string) error {
	text := fmt.Sprintf(`socket = %q
root = %q
state = %q
keeper = %q

[log]
level = "debug"

[cgroup]
driver = "cgroupfs"
parent = %q

[network]
builtin = true
conf_dir = %q
bin_dirs = [%q]

[image]
certs_dir = %q
`, n.Socket, n.Root, n.State, filepath.Join(Dir(), "bin", "shim-keeper"), n.CgroupParent, n.path("cni/net.d"), n.path("cni/bin"), n.path("certs.d"))
	if err := os.WriteFile(n.path("config.toml"), []byte(text), 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := os.WriteFile(n.path("config.d/extra.toml"), []byte(extra), 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	crictl := fmt.Sprintf("runtime-endpoint: unix://%s\nimage-endpoint: unix://%s\ntimeout: 30\ndebug: false\npull-image-on-create: false\n", n.Socket, n.Socket)
	if err := os.WriteFile(n.path("crictl.yaml"), []byte(crictl), 0o600); err != nil {
		return fmt.Errorf("write configuration of crictl: %w", err)
	}
	if err := os.Symlink(os.Getenv(envCrictl), n.path("path/crictl")); err != nil {
		return fmt.Errorf("link crictl: %w", err)
	}
	return nil
}

// Env is the environment for programs that work on the node: crictl is in PATH and finds the socket.
func (n *Node) Env() []string {
	return append(os.Environ(),
		"PATH="+n.path("path")+":"+filepath.Join(Dir(), "bin")+":"+os.Getenv("PATH"),
		"CRI_CONFIG_FILE="+n.path("crictl.yaml"),
		"CONTAINER_RUNTIME_ENDPOINT=unix://"+n.Socket,
		"IMAGE_SERVICE_ENDPOINT=unix://"+n.Socket,
		"SHIM_SOCKET="+n.Socket,
		"SHIM_NODE_ROOT="+n.Root,
		"SHIM_NODE_STATE="+n.State,
		"SHIM_NODE_CGROUP="+n.CgroupParent,
		"SHIM_NODE_LOGS="+n.LogDir(),
		"SHIM_NODE_REGISTRY="+n.Registry.Host,
		"SHIM_NODE_CNI="+n.path("cni/net.d"),
		fmt.Sprintf("SHIM_NODE_DAEMON=%d", n.DaemonPID()),
	)
}

// LogDir is where pods may put their logs.
func (n *Node) LogDir() string { return n.path("logs") }

// Clean removes every pod, their logs, and every image that was not there at the last Mark, and waits until the node is as
// it was then; what is left is one line each.
func (n *Node) Clean(ctx context.Context) []string {
	var out []string
	pods, err := n.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return []string{fmt.Sprintf("list pods: %v", err)}
	}
	for _, p := range pods.GetItems() {
		if _, err := n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.GetId()}); err != nil {
			out = append(out, fmt.Sprintf("stop pod %s: %v", p.GetMetadata().GetName(), err))
		}
		if _, err := n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.GetId()}); err != nil {
			out = append(out, fmt.Sprintf("remove pod %s: %v", p.GetMetadata().GetName(), err))
		}
	}
	out = append(out, n.removeImages(ctx)...)
	logs, err := os.ReadDir(n.LogDir())
	if err != nil {
		return append(out, err.Error())
	}
	for _, l := range logs {
		if err := os.RemoveAll(filepath.Join(n.LogDir(), l.Name())); err != nil {
			out = append(out, err.Error())
		}
	}
	return append(out, n.Leaks(ctx)...)
}

// Close ends the daemon and the registry and removes bridges, so that another node can begin. The end of this process ends
// the rest.
func (n *Node) Close(ctx context.Context) error {
	var errs []error
	if n.daemon != nil {
		errs = append(errs, n.StopDaemon(ctx, os.Interrupt))
	}
	if n.Conn != nil {
		errs = append(errs, n.Conn.Close())
	}
	if n.Registry != nil {
		errs = append(errs, n.Registry.Close())
	}
	errs = append(errs, removeBridges())
	return errors.Join(errs...)
}
