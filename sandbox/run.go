// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/cni"
	"crishim.dev/internal/errs"
	"crishim.dev/internal/ids"
	"crishim.dev/internal/progress"
	"crishim.dev/internal/protodiff"
	"crishim.dev/keeper/client"
	"crishim.dev/launch"
	"crishim.dev/proto"
)

// teardownLimit bounds the clean-up of a failed or cancelled start, which no caller waits for longer.
const teardownLimit = 2 * time.Minute

// Run makes a pod and returns when it is ready. The same name with the same configuration gives the same id, also while the first
// call is in flight; with another configuration it is AlreadyExists, naming the field that differs.
func (m *Manager) Run(ctx context.Context, cfg *cri.PodSandboxConfig, handler string) (ID, error) {
	key := nameKey(cfg.GetMetadata())
	id, err := m.runs.Do(ctx, key, func(ctx context.Context) (ID, error) {
		if id, err := m.existing(key, cfg, handler); id != "" || err != nil {
			return id, err
		}
		return m.run(ctx, cfg, handler)
	})
	if err != nil {
		return "", err
	}
	return m.existingOr(id, key, cfg, handler)
}

// existing looks for a pod of that name: "" and no error when there is none.
func (m *Manager) existing(key string, cfg *cri.PodSandboxConfig, handler string) (ID, error) {
	m.mu.Lock()
	r := m.boxes[m.names[key]]
	m.mu.Unlock()
	switch {
	case r == nil:
		return "", nil
	case r.State != Ready:
		return "", errs.Newf(errs.AlreadyExists, "run pod %s: the same pod exists, %s, as %s: remove it first", cfg.GetMetadata().GetName(), r.State, r.ID)
	}
	field := protodiff.First(r.Config, cfg)
	if r.Handler != handler {
		field = "runtime_handler"
	}
	if field != "" {
		return "", errs.Newf(errs.AlreadyExists, "run pod %s: it exists as %s with another %s", cfg.GetMetadata().GetName(), r.ID, field)
	}
	return r.ID, nil
}

// existingOr checks a result that may be that of another call against this call's configuration.
func (m *Manager) existingOr(id ID, key string, cfg *cri.PodSandboxConfig, handler string) (ID, error) {
	found, err := m.existing(key, cfg, handler)
	if err != nil {
		return "", err
	}
	if found == "" { // removed since
		return id, nil
	}
	return found, nil
}

func (m *Manager) run(ctx context.Context, cfg *cri.PodSandboxConfig, handler string) (ID, error) {
	if err := m.check(cfg); err != nil {
		return "", err
	}
	id := ID(ids.New())
	cg, err := m.o.Cgroups.Pod(cfg.GetLinux().GetCgroupParent(), string(id))
	if err != nil {
		return "", fmt.Errorf("run pod: linux.cgroup_parent: %w", err)
	}
	r := &record{Sandbox: Sandbox{
		ID: id, State: Creating, Config: cfg, Handler: handler, CreatedAt: time.Now(), Cgroup: cg,
		Overhead: cfg.GetLinux().GetOverhead(), Resources: cfg.GetLinux().GetResources(),
	}}
	ctx, end := m.underWay.Begin(ctx, progress.Operation{Sandbox: string(id), Name: "run"})
	defer end()
	r.network = !hostNetwork(cfg)
	if r.network {
		r.NetNS = m.o.Layout.Pin(id, "net")
	}
	// The intent is recorded before the kernel is touched; every step's inverse is part of teardown, which needs no set-up.
	if err := m.put(r); err != nil {
		return "", errors.Join(err, m.forget(r))
	}
	ready, err := m.build(ctx, r)
	if err != nil {
		err = fmt.Errorf("run pod %s: %w", cfg.GetMetadata().GetName(), err)
		undo, cancel := detached(ctx, teardownLimit)
		defer cancel()
		return "", m.abandon(undo, r, err)
	}
	if err := m.put(ready); err != nil {
		undo, cancel := detached(ctx, teardownLimit)
		defer cancel()
		return "", m.abandon(undo, r, err)
	}
	m.changed(id, ChangeCreated)
	return id, nil
}

// abandon takes a pod that could not be made back to nothing. What it could not undo stays on record, as a stopped pod, for kubelet to remove.
func (m *Manager) abandon(ctx context.Context, r *record, cause error) error {
	if err := m.teardown(ctx, r); err != nil {
		return errors.Join(cause, fmt.Errorf("undo: %w", err), m.put(r.with(func(r *record) { r.State = Stopping })))
	}
	if err := m.forget(r); err != nil { // else its name would be taken by a pod that nobody can see, or remove
		return errors.Join(cause, err, m.put(r.with(func(r *record) { r.State = Stopping })))
	}
	return cause
}

// check refuses what no kernel object should be made for.
func (m *Manager) check(cfg *cri.PodSandboxConfig) error {
	if err := m.checkUsers(cfg); err != nil {
		return fmt.Errorf("run pod: %w", err)
	}
	if o := cfg.GetLinux().GetSecurityContext().GetSelinuxOptions(); m.o.Facts.SELinux && o.GetUser()+o.GetRole()+o.GetType()+o.GetLevel() != "" {
		return errs.Newf(errs.Unsupported, "run pod: linux.security_context.selinux_options: this runtime sets no SELinux labels")
	}
	if _, err := sum(cfg.GetLinux().GetOverhead(), cfg.GetLinux().GetResources()); err != nil {
		return fmt.Errorf("run pod: linux.%w", err)
	}
	for name, value := range cfg.GetLinux().GetSysctls() {
		if err := launch.ValidSysctl(name, value, hostNetwork(cfg), hostIPC(cfg)); err != nil {
			return fmt.Errorf("run pod: %w", err)
		}
	}
	return nil
}

// build makes everything a pod consists of and gives the ready record.
func (m *Manager) build(ctx context.Context, r *record) (*record, error) {
	hostname := r.Config.GetHostname()
	if hostname == "" || hostNetwork(r.Config) {
		h, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("read the host's name: %w", err)
		}
		hostname = h
	}
	// The cgroup's many directories are made while the keeper makes the namespaces.
	var making errgroup.Group
	making.Go(func() error { return m.makeCgroup(ctx, r) })
	progress.Stage(ctx, "make cgroup and namespaces")
	socket, err := m.makeNamespaces(ctx, r, hostname)
	if err := errors.Join(err, making.Wait()); err != nil {
		closeAll([]*os.File{socket}, nil)
		return nil, err
	}
	if socket != nil {
		defer socket.Close()
	}
	pid := 0
	if sharedPID(r.Config) {
		progress.Stage(ctx, "start the pod's init")
		if pid, err = m.startInit(ctx, r); err != nil {
			return nil, err
		}
	}
	var ips []string
	if r.network {
		progress.Stage(ctx, "attach to the network")
		if ips, err = m.attach(ctx, r, socket); err != nil {
			return nil, err
		}
	}
	progress.Stage(ctx, "write the pod's files")
	if err := m.writeFiles(r.ID, r.Config, hostname, ips); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	return r.with(func(r *record) { r.State, r.IPs, r.InitPID = Ready, ips, pid }), nil
}

// makeCgroup makes the pod's cgroup if kubelet has not: its own, with its limits, is left as it is.
func (m *Manager) makeCgroup(ctx context.Context, r *record) error {
	res, err := sum(r.Overhead, r.Resources)
	if err != nil {
		return err
	}
	if _, _, err := m.o.Cgroups.CreatePod(ctx, r.Cgroup, Resources(res)); err != nil {
		return fmt.Errorf("make pod cgroup: %w", err)
	}
	return nil
}

// makeNamespaces lets the keeper make the pod's namespaces and pins them. It returns the netlink socket from inside the
// network namespace, nil with host networking.
func (m *Manager) makeNamespaces(ctx context.Context, r *record, hostname string) (socket *os.File, err error) {
	net := hostNetwork(r.Config)
	d := launch.PodDescription{
		HostNet: net, HostUTS: net, HostIPC: hostIPC(r.Config), Hostname: hostname, Sysctls: m.sysctls(r.Config), UserNS: launch.NoFD,
	}
	if err := os.MkdirAll(m.o.Layout.Pins(r.ID), 0o700); err != nil {
		return nil, fmt.Errorf("pin namespaces: %w", err)
	}
	var files launch.FDList
	user, err := m.makeUserNS(ctx, r)
	if err != nil {
		return nil, err
	}
	if user != nil {
		defer user.Close()
		d.UserNS = files.Add(user)
	}
	var kinds []string // what the program reports, in its order (launch.PodDescription)
	if !d.HostNet {
		kinds = append(kinds, "netlink", "net")
	}
	if !d.HostIPC {
		if err := m.mountShm(r); err != nil {
			return nil, err
		}
		kinds = append(kinds, "ipc")
	}
	if !d.HostUTS {
		kinds = append(kinds, "uts")
	}
	if len(kinds) == 0 {
		return nil, nil
	}
	plan, err := launch.Pod(&d, m.o.Facts)
	if err != nil {
		return nil, err
	}
	p, err := m.o.Keeper.Spawn(ctx, client.Spawn{
		Spawn:   proto.Spawn{ID: "ns-" + string(r.ID), CloneFlags: plan.CloneFlags, Cgroup: -1, Run: true},
		Program: plan.Program, Files: files.Files, Name: "make namespaces",
	})
	if err != nil {
		return nil, launch.Blamed(err)
	}
	defer func() { closeAll(append(p.Files, p.PIDFD), socket) }()
	if len(p.Files) != len(kinds) {
		return nil, fmt.Errorf("make namespaces: the keeper returned %d descriptors, not %d", len(p.Files), len(kinds))
	}
	for i, kind := range kinds {
		if kind == "netlink" {
			continue
		}
		if err := m.pin(r.ID, kind, p.Files[i]); err != nil {
			return nil, err
		}
	}
	if d.HostNet {
		return nil, nil
	}
	m.linkNetNS(r.ID)
	return p.Files[0], nil
}

// closeAll closes all files but keep.
func closeAll(files []*os.File, keep *os.File) {
	for _, f := range files {
		if f != keep {
			_ = f.Close()
		}
	}
}

// sysctls gives the request's settings over what the network needs and the defaults that containerd 2 has (KUBELET.md 25).
func (m *Manager) sysctls(cfg *cri.PodSandboxConfig) map[string]string {
	out := map[string]string{}
	if !hostNetwork(cfg) {
		out = cni.PodSysctls()
	}
	if _, mapped := users(cfg); !mapped && !hostNetwork(cfg) {
		out["net.ipv4.ip_unprivileged_port_start"] = "0"
		out["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	maps.Copy(out, cfg.GetLinux().GetSysctls())
	return out
}
