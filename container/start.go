// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/cgroup"
	"crishim.dev/container/rootfs"
	"crishim.dev/internal/errs"
	"crishim.dev/internal/fsx"
	"crishim.dev/internal/progress"
	"crishim.dev/keeper/client"
	"crishim.dev/launch"
	"crishim.dev/sandbox"
	"crishim.dev/snapshot"
)

// startLimit bounds a launch; its longest part is what the volumes' file systems take.
const startLimit = 2 * time.Minute

// Start launches a created container and returns when execve has succeeded. It is not undone when the caller goes away; a call while
// it is in flight joins it. A launch that fails leaves the container Exited, 128, StartError.
func (m *Manager) Start(ctx context.Context, id ID) error {
	_, err := m.starts.Do(ctx, id, func(ctx context.Context) (struct{}, error) { return struct{}{}, m.start(ctx, id) })
	return err
}

func (m *Manager) start(ctx context.Context, id ID) error {
	unlock, err := m.locks.Lock(ctx, string(id))
	if err != nil {
		return err
	}
	defer unlock()
	r := m.current(id)
	switch {
	case r == nil:
		return errs.Newf(errs.NotFound, "start container %s: no such container", id)
	case r.State != Created:
		return errs.Newf(errs.Precondition, "start container %s: it is %s", r.name(), r.State)
	}
	box, err := m.openPod(r.Sandbox)
	if err != nil {
		return fmt.Errorf("start container %s: %w", r.name(), err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startLimit)
	defer cancel()
	ctx, end := m.begin(ctx, r, "start")
	defer end()
	r = r.with(func(r *record) { r.State = Starting })
	if err := m.put(r); err != nil {
		return err
	}
	p, err := m.launch(ctx, r, box)
	if err != nil {
		if m.oomKilled(r) { // the launch itself is counted, before execve
			err = errs.Newf(errs.Precondition, "%w: memory_limit_in_bytes %d is too low to start in", err, r.Resources.GetMemoryLimitInBytes())
		}
		return m.startFailed(ctx, r, err)
	}
	m.mu.Lock()
	m.all[id].pidfd = p.PIDFD
	m.mu.Unlock()
	running := r.with(func(r *record) { r.State, r.PID, r.StartedAt = Running, p.PID, time.Now() })
	if err := m.put(running); err != nil {
		return m.startFailed(ctx, r, err)
	}
	m.changed(running, ChangeStarted)
	return nil
}

func (r *record) name() string { return r.Config.GetMetadata().GetName() }

// startFailed records a failed launch as KUBELET.md 7 has it.
func (m *Manager) startFailed(ctx context.Context, r *record, cause error) error {
	var launchErr *client.LaunchError
	if !errors.As(cause, &launchErr) { // a launch error says "start container NAME" itself
		cause = fmt.Errorf("start container %s: %w", r.name(), cause)
	}
	progress.Stage(ctx, "undo")
	// The launch may have failed because its time was over.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
	defer cancel()
	exited := r.with(func(r *record) {
		r.State, r.ExitCode, r.Reason, r.Message = Exited, 128, "StartError", cause.Error()
		r.StartedAt, r.FinishedAt = time.Time{}, time.Now()
	})
	err := errors.Join(m.endCgroup(ctx, r), m.put(exited))
	// A process that was killed just now is still on its way out: Run forgets it at its end.
	if e := m.o.Keeper.Forget(ctx, string(r.ID)); e != nil && !errors.Is(e, unix.EBUSY) {
		err = errors.Join(err, e)
	}
	m.changed(exited, ChangeStopped)
	return errors.Join(cause, err)
}

// launching is one launch attempt: what is opened for it is closed with it.
type launching struct {
	m     *Manager
	r     *record
	box   sandbox.Sandbox
	group *cgroup.Group
	// userNS is the pod's user namespace, nil without one; it is among files.
	userNS *os.File
	files  launch.FDList
}

func (l *launching) close() {
	for _, f := range l.files.Files {
		_ = f.Close()
	}
}

// launch makes cgroup, root file system and program, and lets the keeper run it.
func (m *Manager) launch(ctx context.Context, r *record, box sandbox.Sandbox) (*client.Process, error) {
	l := &launching{m: m, r: r, box: box}
	defer l.close()
	list, err := l.devices()
	if err != nil {
		return nil, err
	}
	d, err := describe(r, box, m.o.Rlimits)
	if err != nil {
		return nil, err
	}
	if err := m.confine(&d.Process, security(r.Config)); err != nil {
		return nil, err
	}
	// The cgroup's many directories are made while everything else is opened.
	progress.Stage(ctx, "make cgroup, mount root file system and volumes")
	var making errgroup.Group
	making.Go(func() error { return l.makeCgroup(ctx, list) })
	err = l.joinNamespaces(d)
	if err == nil {
		err = l.openRoot(ctx, d, list)
	}
	if err := errors.Join(err, making.Wait()); err != nil {
		return nil, err
	}
	if err := l.joinCgroup(d); err != nil {
		return nil, err
	}
	progress.Stage(ctx, "open log")
	log, err := openLog(r.LogPath)
	if err != nil {
		return nil, err
	}
	if log != nil {
		defer log.Close()
	}
	progress.Stage(ctx, "run the launch program")
	return m.handler.Start(ctx, Start{
		ID: string(r.ID), Name: "start container " + r.name(), Description: d, Files: l.files.Files,
		Group: l.group, Log: log, StdinOnce: r.Config.GetStdinOnce(),
	})
}

// describe is the part of the description that needs nothing opened.
func describe(r *record, box sandbox.Sandbox, rlimits []launch.Rlimit) (*launch.Description, error) {
	cfg, sc := r.Config, security(r.Config)
	caps, ambient, err := capabilities(sc)
	if err != nil {
		return nil, err
	}
	ids, _ := box.Users()
	d := &launch.Description{
		Process: launch.Process{
			Args: r.Process.Args, Env: r.Process.Env, Cwd: r.Process.Cwd,
			UID: r.Process.UID, GID: r.Process.GID, Groups: r.Process.Groups, IDBase: ids.Host,
			Caps: caps, Ambient: ambient, NoNewPrivileges: sc.GetNoNewPrivs() && !sc.GetPrivileged(),
			OOMScoreAdj: int(r.Resources.GetOomScoreAdj()),
			Rlimits:     rlimits,
			TTY:         cfg.GetTty(), Stdin: cfg.GetStdin() && !cfg.GetTty(), Stdout: !cfg.GetTty(), Stderr: !cfg.GetTty(),
		},
		Cgroup: launch.Cgroup{Dir: launch.NoFD},
		NetNS:  launch.NoFD, IPCNS: launch.NoFD, UTSNS: launch.NoFD, PIDNS: launch.NoFD, PIDMount: launch.NoFD, UserNS: launch.NoFD,
		Root: launch.NoFD, Dev: launch.NoFD, Shm: launch.NoFD,
		ReadOnlyRoot: sc.GetReadonlyRootfs(), SysReadWrite: sc.GetPrivileged(), CgroupReadWrite: sc.GetPrivileged(),
	}
	if !sc.GetPrivileged() {
		d.MaskedPaths, d.ReadOnlyPaths = sc.GetMaskedPaths(), sc.GetReadonlyPaths()
	}
	switch pidMode(cfg) {
	case cri.NamespaceMode_CONTAINER:
		d.PID = launch.PIDOwn
	case cri.NamespaceMode_NODE:
		d.PID = launch.PIDHost
	case cri.NamespaceMode_POD, cri.NamespaceMode_TARGET:
		d.PID = launch.PIDJoin
	}
	return d, nil
}

// makeCgroup makes the container's cgroup with its limits.
func (l *launching) makeCgroup(ctx context.Context, list []rootfs.Device) error {
	res := sandbox.Resources(l.r.Resources)
	if res == nil {
		res = &cgroup.Resources{}
	}
	res.Pids = l.m.o.Tasks
	res.Devices = rootfs.Rules(l.r.Config, list)
	group, err := l.m.o.Cgroups.Create(ctx, l.r.Cgroup, res)
	if err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	l.group = group
	return nil
}

// joinCgroup opens what the process joins its cgroup by.
func (l *launching) joinCgroup(d *launch.Description) error {
	if l.group.Held() { // the process is placed from outside, while it waits at its gate
		return nil
	}
	procs, dir, err := l.group.Files()
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	d.Dir = l.files.Add(dir)
	for _, f := range procs {
		d.Procs = append(d.Procs, l.files.Add(f))
	}
	return nil
}

// joinNamespaces opens the pod's namespaces, and that of the target container where the request names one.
func (l *launching) joinNamespaces(d *launch.Description) error {
	if err := l.joinUsers(d); err != nil {
		return err
	}
	want := map[string]*launch.FD{}
	if !l.box.HostNetwork() {
		want["net"], want["uts"] = &d.NetNS, &d.UTSNS
	}
	if !l.box.HostIPC() {
		want["ipc"] = &d.IPCNS
	}
	if pidMode(l.r.Config) == cri.NamespaceMode_POD {
		if !l.box.SharedPID() {
			return errs.Newf(errs.Invalid, "namespace_options.pid: POD, but the pod was made without a shared pid namespace")
		}
		want["pid"] = &d.PIDNS
		mnt, err := l.initMounts()
		if err != nil {
			return fmt.Errorf("join the pod's pid namespace: %w", err)
		}
		d.PIDMount = l.files.Add(mnt)
	}
	for kind, fd := range want {
		f, err := os.Open(l.m.o.Layout.Pin(l.box.ID, kind))
		if err != nil {
			return fmt.Errorf("join the pod's %s namespace: %w", kind, err)
		}
		*fd = l.files.Add(f)
	}
	if pidMode(l.r.Config) != cri.NamespaceMode_TARGET {
		return nil
	}
	ns, mnt, err := l.m.targetNamespaces(l.r)
	if err != nil {
		return fmt.Errorf("namespace_options.target_id: %w", err)
	}
	d.PIDNS, d.PIDMount = l.files.Add(ns), l.files.Add(mnt)
	return nil
}

// initMounts opens the mount namespace of the pod's init.
//
// The pid is the init's as long as the pod's pid namespace is that of the process: with its init the namespace dies, and nobody else is in
// it ever after. So it is compared after the open.
func (l *launching) initMounts() (*os.File, error) {
	proc := fmt.Sprintf("/proc/%d/ns/", l.box.InitPID)
	mnt, err := os.Open(proc + "mnt")
	if err != nil {
		return nil, err
	}
	now, errNow := os.Stat(proc + "pid")
	pin, errPin := os.Stat(l.m.o.Layout.Pin(l.box.ID, "pid"))
	err = errors.Join(errNow, errPin)
	if err == nil && !os.SameFile(now, pin) {
		err = errs.Newf(errs.Precondition, "its init has ended")
	}
	if err != nil {
		return nil, errors.Join(err, mnt.Close())
	}
	return mnt, nil
}

// targetNamespaces opens the pid and mount namespaces of the container that an ephemeral container debugs.
func (m *Manager) targetNamespaces(r *record) (pid, mnt *os.File, err error) {
	pidfd, target, err := m.live(ID(security(r.Config).GetNamespaceOptions().GetTargetId()))
	if err != nil {
		return nil, nil, err
	}
	defer pidfd.Close()
	if target.Sandbox != r.Sandbox {
		return nil, nil, errs.Newf(errs.Invalid, "container %s is in another pod", target.ID)
	}
	pid, errPID := os.Open(fmt.Sprintf("/proc/%d/ns/pid", target.PID))
	mnt, errMnt := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", target.PID))
	// The pid is the target's only while the pidfd says that it lives: look again after the opens.
	if err := errors.Join(errPID, errMnt, unix.PidfdSendSignal(int(pidfd.Fd()), 0, nil, 0)); err != nil {
		return nil, nil, errors.Join(err, pid.Close(), mnt.Close())
	}
	return pid, mnt, nil
}

// openRoot mounts the root file system, detached, makes the mount points in it, and opens all that is mounted below it.
func (l *launching) openRoot(ctx context.Context, d *launch.Description, list []rootfs.Device) error {
	root, err := l.m.o.Snapshots.Mount(ctx, string(l.r.ID), snapshot.Mount{UserNS: l.userNS, UID: l.rootID(), GID: l.rootID()})
	if err != nil {
		return fmt.Errorf("mount root file system: %w", err)
	}
	d.Root = l.files.Add(root)
	dev, err := rootfs.MakeDev(l.r.Config.GetTty(), list, l.rootID())
	if err != nil {
		return err
	}
	d.Dev = l.files.Add(dev)
	shm := l.m.o.Layout.Shm(l.box.ID)
	if l.box.HostIPC() {
		shm = "/dev/shm"
	}
	f, err := rootfs.CloneMount(shm)
	if err != nil {
		return fmt.Errorf("mount /dev/shm: %w", err)
	}
	d.Shm = l.files.Add(f)
	// Volumes last: what is mounted below their source after the copy is not seen.
	if d.Mounts, err = l.volumes(ctx); err != nil {
		return err
	}
	for _, extra := range list {
		if err := l.deviceOutsideDev(d, extra); err != nil {
			return err
		}
	}
	targets, err := launch.Targets(d)
	if err != nil {
		return err
	}
	return makeTargets(root, targets, l.rootID())
}

// makeTargets makes the mount points in the root file system, inside it whatever links it has.
func makeTargets(root *os.File, targets []launch.Target, owner int) error {
	for _, t := range targets {
		if t.File {
			if err := fsx.TouchInRoot(root, t.Path, 0o644, owner, owner); err != nil {
				return fmt.Errorf("make mount point or working directory: %w", errs.OfPath(err))
			}
			continue
		}
		dir, err := fsx.MkdirAllInRoot(root, t.Path, 0o755, owner, owner)
		if err != nil {
			return fmt.Errorf("make mount point or working directory: %w", errs.OfPath(err))
		}
		_ = dir.Close()
	}
	return nil
}
