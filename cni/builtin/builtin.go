// SPDX-License-Identifier: Apache-2.0

// Package builtin is the standard CNI plugins as functions: they read the same JSON, give the same results, and need no process. One is ours
// alone: vxlan joins the pods of several nodes (vxlan.go).
//
// The host's side is done over one lasting rtnetlink socket, the pod's side through a netlink socket that was opened inside the pod's
// namespace and is passed in: nothing here enters a namespace. A plugin serves a configuration only when it understands every key of it
// (Host.Understands); for others the caller runs the binary of that name.
//
// Neighbours: rtnl (messages to the kernel), lease (addresses), nat (masquerading, host ports), overlay, vlan, shape (bandwidth), firewalld,
// sysctl. Package cni above chains plugins, keeps their results and runs external ones.
package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"crishim.dev/cni/builtin/lease"
	"crishim.dev/cni/builtin/nat"
	"crishim.dev/cni/builtin/overlay"
	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/internal/errs"
)

// Options say where the host's side keeps its records.
type Options struct {
	// StateDir is on tmpfs: leases and port claims end with a reboot, as what they stand for does.
	StateDir string
	// Live says whether a container (for a runtime: a pod) still has an attachment; host ports of others may be taken over.
	Live func(container string) bool
	// Foreign marks leases as somebody else's: this process serves another runtime.
	Foreign bool
	Log     *slog.Logger
}

// Host is the node's side of the built-in plugins. Safe for concurrent use.
type Host struct {
	opts Options
	rt   *rtnl.Conn
	nat  *nat.Table
	old  *nat.Stale
	over *overlay.Set

	mu     sync.Mutex // guards stores
	stores map[string]*lease.Store
	bridge sync.Mutex // held while a bridge is looked at and put right, so that two pods don't make one twice
}

// Open connects to this process's own network namespace.
func Open(o Options) (*Host, error) {
	table, err := nat.Open(filepath.Join(o.StateDir, "nat"))
	if err != nil {
		return nil, err
	}
	rt, err := rtnl.Open()
	if err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	old := &nat.Stale{Warn: func(err error) { o.Log.Warn("former traffic of a host port may go on", "error", err) }}
	return &Host{opts: o, rt: rt, nat: table, old: old, over: overlay.New(o.Log), stores: map[string]*lease.Store{}}, nil
}

// Close ends the connections; what was set up stays.
func (h *Host) Close() error {
	h.old.Wait()
	h.over.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	for dir, s := range h.stores {
		_ = s.Close()
		delete(h.stores, dir)
	}
	_ = h.nat.Close()
	return h.rt.Close()
}

// Call is one execution of a plugin: what the specification passes in the environment and on standard input.
type Call struct {
	Command   string // ADD, DEL, CHECK, GC, STATUS, VERSION
	Container string // CNI_CONTAINERID
	NetNS     string // CNI_NETNS: a path; may be empty for DEL
	IfName    string // CNI_IFNAME
	Args      string // CNI_ARGS
	Config    []byte
	// Prev is the result of the plugin before, or with DEL and CHECK that of ADD; Runtime is what the runtime adds (runtimeConfig). Nil: what
	// Config says.
	Prev    *current.Result
	Runtime json.RawMessage
	// Pod talks through a NETLINK_ROUTE socket opened in the namespace. Needed by ADD; without it DEL and CHECK look at the host's side only.
	Pod *rtnl.Conn
	// Sysctl writes below /proc/sys inside the namespace. Nil where nobody can.
	Sysctl func(path, value string) error
	// Delegate runs another plugin with the same environment: an IPAM plugin that is not built in.
	Delegate func(ctx context.Context, typ string, config []byte) ([]byte, error)
	// Later, if set, takes over the slow end of a DEL: the interfaces have to be deleted (DeleteLinks), then release is to be called.
	Later func(links []string, release func() error)
}

type plugin struct {
	// check parses the configuration and refuses what is not understood; inside, if set, does so for a process that can enter the pod.
	check  func(config []byte) error
	run    func(ctx context.Context, h *Host, c *Call) (types.Result, error)
	inside func(config []byte) error
}

func plugins() map[string]plugin {
	return map[string]plugin{
		"loopback":   {check: checkLoopback, run: loopback},
		"bridge":     {check: checkBridge, run: runBridge},
		"host-local": {check: checkHostLocal, run: runHostLocal},
		"portmap":    {check: checkPortmap, run: runPortmap},
		"bandwidth":  {check: checkBandwidth, run: runBandwidth},
		"tuning":     {check: checkTuning, run: runTuning, inside: checkTuningInside},
		"firewall":   {check: checkFirewall, run: runFirewall},
		"vxlan":      {check: checkVXLAN, run: runVXLAN},
	}
}

// Types lists the built-in plugins.
func Types() []string { return slices.Sorted(maps.Keys(plugins())) }

// Is says that a plugin of that type is built in.
func Is(typ string) bool {
	_, ok := plugins()[typ]
	return ok
}

// Understands says whether the built-in plugin can serve the configuration; if not, the error is ErrNotUnderstood and names the key.
func Understands(typ string, config []byte) error {
	p, ok := plugins()[typ]
	if !ok {
		return errs.Newf(errs.Unsupported, "plugin %q is not built in", typ)
	}
	if _, err := configVersion(config); err != nil {
		return err
	}
	return p.check(config)
}

// UnderstandsInside is Understands for our plugin as a process of its own: unlike the daemon that one enters the pod's namespace.
func UnderstandsInside(typ string, config []byte) error {
	err := Understands(typ, config)
	if p := plugins()[typ]; errors.Is(err, ErrNotUnderstood) && p.inside != nil {
		return p.inside(config)
	}
	return err
}

// Do executes the built-in plugin. The result is nil for all but ADD. ErrNotUnderstood: nothing was done; run the binary of that name.
func (h *Host) Do(ctx context.Context, typ string, c *Call) (*current.Result, error) {
	p, ok := plugins()[typ]
	if !ok {
		return nil, errs.Newf(errs.Unsupported, "plugin %q is not built in", typ)
	}
	res, err := p.run(ctx, h, c)
	if err != nil || res == nil {
		return nil, err
	}
	return current.NewResultFromResult(res)
}

// Run is Do for a caller that speaks the protocol: it gives what the plugin would print.
func (h *Host) Run(ctx context.Context, typ string, c *Call) ([]byte, error) {
	if c.Command == "VERSION" {
		return marshal(version.All)
	}
	v, err := configVersion(c.Config)
	if err != nil {
		return nil, err
	}
	res, err := h.Do(ctx, typ, c)
	if err != nil || res == nil {
		return nil, err
	}
	out, err := res.GetAsVersion(v)
	if err != nil {
		return nil, errs.Newf(errs.Invalid, "give result as CNI version %q: %w", v, err)
	}
	return marshal(out)
}

// lease opens the leases of a network once.
func (h *Host) leases(network, dataDir string) (*lease.Store, error) {
	dir := dataDir
	if dir == "" {
		dir = filepath.Join(h.opts.StateDir, "leases")
	}
	dir = filepath.Join(dir, network)
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.stores[dir]; s != nil {
		return s, nil
	}
	s, err := lease.Open(dir, h.opts.Foreign)
	if err != nil {
		return nil, err
	}
	h.stores[dir] = s
	return s, nil
}

// DeleteLinks deletes interfaces in one go. Those that are gone already are fine.
func (h *Host) DeleteLinks(names []string) error {
	for batch := range slices.Chunk(names, 100) { // acknowledgements must fit into the socket's buffer
		var reqs []rtnl.Request
		for _, n := range batch {
			reqs = append(reqs, rtnl.Retire(n).Allow(enodev))
		}
		if err := h.rt.Do(reqs...); err != nil {
			return err
		}
	}
	return h.rt.Do(rtnl.DeleteRetired().Allow(enodev))
}

// pod gives the client inside the namespace, for what can't do without.
func (c *Call) pod() (*rtnl.Conn, error) {
	if c.Pod == nil {
		return nil, errs.Newf(errs.Invalid, "no netlink socket of the pod's network namespace")
	}
	return c.Pod, nil
}

func unknownCommand(c *Call) error {
	return errs.Newf(errs.Invalid, "unknown CNI_COMMAND %q", c.Command)
}

func result(interfaces ...*current.Interface) *current.Result {
	return &current.Result{CNIVersion: current.ImplementedSpecVersion, Interfaces: interfaces}
}

func prefixed(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
