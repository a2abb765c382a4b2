// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/cgroup"
	"crishim.dev/cni"
	"crishim.dev/config"
	"crishim.dev/container"
	"crishim.dev/image"
	"crishim.dev/image/registry"
	"crishim.dev/internal/kernel"
	keeper "crishim.dev/keeper/client"
	"crishim.dev/launch"
	"crishim.dev/launch/seccomp"
	"crishim.dev/sandbox"
	"crishim.dev/server"
	"crishim.dev/snapshot"
	"crishim.dev/stats"
	"crishim.dev/store"
	"crishim.dev/stream"
)

// node is everything behind the sockets.
type node struct {
	cri   server.Options
	admin server.AdminOptions
	// closers undo build, to be run backwards.
	closers []func() error
}

// Close lets go of everything; containers run on.
func (n *node) Close() error {
	var all []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		all = append(all, n.closers[i]())
	}
	return errors.Join(all...)
}

func (n *node) closing(f func() error) { n.closers = append(n.closers, f) }

// build makes every object of the daemon and brings back the state of before. When it returns, calls can be answered.
func build(ctx context.Context, cfg config.Config, log *slog.Logger) (n *node, err error) {
	n = &node{}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	host, err := kernel.Probe()
	if err != nil {
		return n, fmt.Errorf("look at the host: %w", err)
	}
	facts := launch.FromKernel(host)
	for _, dir := range []string{cfg.Root, cfg.State} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return n, fmt.Errorf("make state directory: %w", err)
		}
	}

	cgroups, err := cgroup.New(cgroup.Options{Driver: cfg.Cgroup.Driver, Parent: cfg.Cgroup.Parent, Log: log})
	if err != nil {
		return n, err
	}
	n.closing(cgroups.Close)
	snaps, err := snapshot.Open(filepath.Join(cfg.Root, "snapshots"), log)
	if err != nil {
		return n, err
	}
	n.closing(snaps.Close)
	images, err := image.Open(image.Options{
		Dir: filepath.Join(cfg.Root, "images"), Registry: registry.Options{CertsDir: cfg.Image.CertsDir}, Parallel: cfg.Image.Parallel,
	}, snaps, log)
	if err != nil {
		return n, err
	}
	n.closing(images.Close)
	network, err := n.network(cfg, log)
	if err != nil {
		return n, err
	}
	pair, err := keeper.New(ctx, keeper.Options{
		Socket: filepath.Join(cfg.State, "keeper", keeper.SocketName), Log: log,
		Start: func(context.Context) error { return keeper.Start(cfg.Keeper, filepath.Join(cfg.State, "keeper")) },
	})
	if err != nil {
		return n, err
	}
	n.closing(pair.Close)
	podRecords, err := n.records(cfg, "pods", log)
	if err != nil {
		return n, err
	}
	containerRecords, err := n.records(cfg, "containers", log)
	if err != nil {
		return n, err
	}

	var events *server.Publisher // set below, before anything can change
	layout := sandbox.Layout{Run: cfg.State}
	sandboxes := sandbox.New(sandbox.Options{
		Layout: layout, NetNSLinks: "/run/netns", HostEtc: "/etc", Store: podRecords, Keeper: pair, Network: network,
		Cgroups: cgroups, Facts: facts, Log: log,
		Changed: func(id sandbox.ID, c sandbox.Change) { events.SandboxChanged(id, c) },
	})
	containers := container.New(container.Options{
		Layout: layout, Dir: filepath.Join(cfg.Root, "containers"), Store: containerRecords, Keeper: pair, Sandboxes: sandboxes,
		Images: images, Snapshots: snaps, Cgroups: cgroups, Facts: facts, Rlimits: rlimits(cfg.Limits), Tasks: cfg.Limits.Tasks,
		Filters: seccomp.NewCache(seccomp.Target{Arch: runtime.GOARCH, Major: host.Major, Minor: host.Minor}),
		Log:     log,
		Changed: func(id container.ID, pod sandbox.ID, c container.Change) { events.ContainerChanged(id, pod, c) },
	})
	events = server.NewPublisher(sandboxes, containers)
	if err := errors.Join(sandboxes.Recover(ctx), containers.Recover(ctx)); err != nil {
		return n, fmt.Errorf("recover: %w", err)
	}
	n.run(containers.Run)

	streams, err := stream.New(stream.Options{
		Address: cfg.Streaming.Address, TLSCert: cfg.Streaming.TLSCert, TLSKey: cfg.Streaming.TLSKey,
		IdleTimeout: time.Duration(cfg.Streaming.IdleTimeout), CreationTimeout: time.Duration(cfg.Streaming.CreationTimeout),
		Runtime: &server.StreamRuntime{Sandboxes: sandboxes, Containers: containers, Execs: containers, Dialer: sandboxes.Dial}, Log: log,
	})
	if err != nil {
		return n, err
	}
	n.closing(streams.Close)
	mount, err := images.MountPoint()
	if err != nil {
		return n, err
	}
	meter := stats.New(stats.Options{Cgroups: cgroups, WritableLayer: writableLayer(snaps, mount)})
	n.closing(meter.Close)
	n.cri = server.Options{
		Version: version, SystemdCgroups: cgroups.Driver() == cgroup.Systemd,
		Default:  server.Handler{RecursiveReadOnlyMounts: host.Features.MountSetattr},
		Handlers: handlers(cfg.Runtime.Handlers, host), Features: &cri.RuntimeFeatures{SupplementalGroupsPolicy: true},
		Sandboxes: sandboxes, Containers: containers, Execs: containers, Images: imageAdapter{images}, Network: network,
		Stats: meter, Events: events, URLs: streams, Log: log,
	}
	n.admin = server.AdminOptions{Version: version, Sandboxes: sandboxes, Containers: containers, Importer: imageAdapter{images}, Log: log}
	return n, nil
}

// run starts a worker that ends with the node.
func (n *node) run(work func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { work(ctx) })
	n.closing(func() error {
		cancel()
		wg.Wait()
		return nil
	})
}

func (n *node) network(cfg config.Config, log *slog.Logger) (*cni.Network, error) {
	network, err := cni.New(cni.Options{
		ConfDir: cfg.Network.ConfDir, BinDirs: cfg.Network.BinDirs, Builtin: cfg.Network.Builtin,
		CacheDir: filepath.Join(cfg.State, "network", "cache"), StateDir: filepath.Join(cfg.State, "network", "state"), Log: log,
	})
	if err != nil {
		return nil, err
	}
	n.closing(network.Close)
	if cfg.Network.Subnet == "" {
		return network, nil
	}
	subnet, err := netip.ParsePrefix(cfg.Network.Subnet)
	if err != nil {
		return nil, fmt.Errorf("network.subnet: %w", err)
	}
	return network, network.SetPodCIDRs([]netip.Prefix{subnet})
}

func (n *node) records(cfg config.Config, kind string, log *slog.Logger) (*store.Store, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	s, err := store.Open(store.Options{
		Dir: filepath.Join(cfg.State, "records", kind), Behind: filepath.Join(cfg.Root, "records", kind),
		Boot: string(bytes.TrimSpace(boot)), Log: log,
	})
	if err != nil {
		return nil, err
	}
	n.closing(func() error { s.Close(); return nil })
	return s, nil
}
