// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/cgroup"
	"crishim.dev/cni"
	"crishim.dev/config"
	"crishim.dev/container"
	"crishim.dev/image"
	"crishim.dev/internal/apparmor"
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
	cfg   config.Config
	log   *slog.Logger
	cri   server.Options
	admin server.AdminOptions
	// closers undo build, to be run backwards.
	closers []func() error
}

// Close lets go of everything; containers run on.
func (n *node) Close() error {
	var all []error
	for _, c := range slices.Backward(n.closers) {
		all = append(all, c())
	}
	return errors.Join(all...)
}

func (n *node) closing(f func() error) { n.closers = append(n.closers, f) }

// build makes every object of the daemon, floor by floor, and brings back the state of before. When it returns, calls can be answered.
func build(ctx context.Context, cfg config.Config, log *slog.Logger) (n *node, err error) {
	n = &node{cfg: cfg, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	b, err := n.base(ctx)
	if err != nil {
		return n, err
	}
	m := n.managers(b)
	// In this order: containers look at their pods.
	if err := m.sandboxes.Recover(ctx); err != nil {
		return n, fmt.Errorf("recover pods: %w", err)
	}
	if err := m.containers.Recover(ctx); err != nil {
		return n, fmt.Errorf("recover containers: %w", err)
	}
	n.run(m.containers.Run)
	return n, n.services(b, m)
}

// base is what pods and containers stand on: the host, the disk, the keeper, the network, the records.
type base struct {
	host             kernel.Facts
	cgroups          *cgroup.Manager
	snapshots        *snapshot.Store
	images           *image.Store
	network          *cni.Network
	keeper           *keeper.Client
	pods, containers *store.Store
	// noUserNS says why pods can't have user namespaces here.
	noUserNS error
	// appArmor is the default profile; empty without one.
	appArmor string
}

// loadAppArmor readies the default profile, where the kernel has AppArmor and there is a parser to compile it.
func (n *node) loadAppArmor(ctx context.Context, host kernel.Facts) string {
	if !host.AppArmor {
		return ""
	}
	if err := apparmor.LoadDefault(ctx); err != nil {
		n.log.Warn("containers run without a default AppArmor profile", "error", err)
		return ""
	}
	return apparmor.Default
}

// cgroups makes the manager, with a connection to systemd for its driver.
func (n *node) cgroups() (*cgroup.Manager, error) {
	o := cgroup.Options{Driver: n.cfg.Cgroup.Driver, Parent: n.cfg.Cgroup.Parent, Log: n.log}
	if o.Driver == "" {
		o.Driver = cgroup.DefaultDriver()
	}
	if o.Driver == cgroup.Systemd {
		bus, err := cgroup.Connect()
		if err != nil {
			return nil, err
		}
		n.closing(bus.Close)
		o.Units = bus
	}
	return cgroup.New(o)
}

func (n *node) base(ctx context.Context) (b base, err error) {
	cfg, log := n.cfg, n.log
	if b.host, err = kernel.Probe(); err != nil {
		return b, fmt.Errorf("look at the host: %w", err)
	}
	for _, dir := range []string{cfg.Root, cfg.State} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return b, fmt.Errorf("make state directory: %w", err)
		}
	}
	b.appArmor = n.loadAppArmor(ctx, b.host)
	if b.cgroups, err = n.cgroups(); err != nil {
		return b, err
	}
	n.closing(b.cgroups.Close)
	if b.snapshots, err = snapshot.Open(filepath.Join(cfg.Root, "snapshots"), log); err != nil {
		return b, err
	}
	n.closing(b.snapshots.Close)
	if b.images, err = image.Open(image.Options{
		Dir: filepath.Join(cfg.Root, "images"), Registry: registryOptions(cfg.Image), PolicyFile: cfg.Image.PolicyFile,
		Parallel: cfg.Image.Parallel, MaxLayers: cfg.Image.MaxLayers,
	}, b.snapshots, log); err != nil {
		return b, err
	}
	n.closing(b.images.Close)
	if b.network, err = n.network(); err != nil {
		return b, err
	}
	if b.keeper, err = keeper.New(ctx, keeper.Options{
		Socket: filepath.Join(cfg.State, "keeper", keeper.SocketName), Log: log,
		Start: func(context.Context) error { return keeper.Start(cfg.Keeper, filepath.Join(cfg.State, "keeper")) },
	}); err != nil {
		return b, err
	}
	n.closing(b.keeper.Close)
	if b.noUserNS = sandbox.ProbeUserNS(ctx, b.keeper, b.host, cfg.Root); b.noUserNS != nil {
		log.Info("pods can't have user namespaces here", "reason", b.noUserNS)
	}
	if b.pods, err = n.records("pods"); err != nil {
		return b, err
	}
	b.containers, err = n.records("containers")
	return b, err
}

// managers are the lives of pods and containers, and what is told of them.
type managers struct {
	sandboxes  *sandbox.Manager
	containers *container.Manager
	events     *server.Publisher
}

func (n *node) managers(b base) *managers {
	cfg, m := n.cfg, &managers{}
	layout, facts := sandbox.Layout{Run: cfg.State}, launch.FromKernel(b.host)
	m.sandboxes = sandbox.New(sandbox.Options{
		Layout: layout, NetNSLinks: "/run/netns", HostEtc: "/etc", Store: b.pods, Keeper: b.keeper, Network: b.network,
		Cgroups: b.cgroups, Facts: facts, NoUserNS: b.noUserNS, Log: n.log,
		Changed: func(id sandbox.ID, c sandbox.Change) { m.events.SandboxChanged(id, c) },
	})
	m.containers = container.New(container.Options{
		Layout: layout, Dir: filepath.Join(cfg.Root, "containers"), Store: b.containers, Keeper: b.keeper, Sandboxes: m.sandboxes,
		Images: b.images, Snapshots: b.snapshots, Cgroups: b.cgroups, Facts: facts, Rlimits: rlimits(cfg.Limits), Tasks: cfg.Limits.Tasks,
		CDIDirs: cfg.CDI.SpecDirs, AppArmorDefault: b.appArmor,
		Filters: seccomp.NewCache(seccomp.Target{Arch: runtime.GOARCH, Major: b.host.Major, Minor: b.host.Minor}), Log: n.log,
		Changed: func(id container.ID, pod sandbox.ID, c container.Change) { m.events.ContainerChanged(id, pod, c) },
	})
	m.events = server.NewPublisher(m.sandboxes, m.containers)
	return m
}

// services makes what answers calls out of the managers.
func (n *node) services(b base, m *managers) error {
	cfg := n.cfg
	streams, err := stream.New(stream.Options{
		Address: cfg.Streaming.Address, TLSCert: cfg.Streaming.TLSCert, TLSKey: cfg.Streaming.TLSKey,
		IdleTimeout: time.Duration(cfg.Streaming.IdleTimeout), CreationTimeout: time.Duration(cfg.Streaming.CreationTimeout),
		Runtime: &server.StreamRuntime{Sandboxes: m.sandboxes, Containers: m.containers, Execs: m.containers, Dialer: m.sandboxes.Dial}, Log: n.log,
	})
	if err != nil {
		return err
	}
	n.closing(streams.Close)
	mount, err := b.images.MountPoint()
	if err != nil {
		return err
	}
	meter := stats.New(stats.Options{Cgroups: b.cgroups, WritableLayer: writableLayer(b.snapshots, mount)})
	n.closing(meter.Close)
	handler := server.Handler{RecursiveReadOnlyMounts: b.host.Features.MountSetattr, UserNamespaces: b.noUserNS == nil}
	n.cri = server.Options{
		Version: version, SystemdCgroups: b.cgroups.Driver() == cgroup.Systemd,
		Default: handler, Handlers: handlers(cfg.Runtime.Handlers, handler), Features: &cri.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: b.host.Features.MountSetattr},
		Sandboxes: m.sandboxes, Containers: m.containers, Execs: m.containers, Images: imageAdapter{b.images}, Network: b.network,
		Stats: meter, Events: m.events, URLs: streams, Log: n.log,
	}
	n.admin = server.AdminOptions{
		Version: version, Sandboxes: m.sandboxes, Containers: m.containers, Archives: imageAdapter{b.images},
		Images: imageAdapter{b.images}.Stored, Pulls: imageAdapter{b.images}.Pulls,
		Planner: m.containers, Watcher: watcher{m.sandboxes, m.containers}, Log: n.log,
		Checker: &checker{sandboxes: m.sandboxes, containers: m.containers, network: b.network, proc: "/proc"},
	}
	return nil
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

func (n *node) network() (*cni.Network, error) {
	cfg := n.cfg
	o := networkOptions(cfg)
	o.Log = n.log
	network, err := cni.New(o)
	if err != nil {
		return nil, err
	}
	n.closing(network.Close)
	subnets, err := cfg.Network.Subnets()
	if err != nil {
		return nil, fmt.Errorf("network.subnet: %w", err)
	}
	return network, network.SetPodCIDRs(subnets)
}

func (n *node) records(kind string) (*store.Store, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	s, err := store.Open(store.Options{
		Dir: filepath.Join(n.cfg.State, "records", kind), Behind: filepath.Join(n.cfg.Root, "records", kind),
		Boot: string(bytes.TrimSpace(boot)), Log: n.log,
	})
	if err != nil {
		return nil, err
	}
	n.closing(func() error { s.Close(); return nil })
	return s, nil
}
