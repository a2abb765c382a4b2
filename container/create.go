// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/container/process"
	"crishim.dev/container/rootfs"
	"crishim.dev/image"
	"crishim.dev/internal/errs"
	"crishim.dev/internal/ids"
	"crishim.dev/internal/progress"
	"crishim.dev/internal/protodiff"
	"crishim.dev/sandbox"
)

// cleanLimit bounds a clean-up that no caller waits for longer.
const cleanLimit = 2 * time.Minute

// Create makes a container in a ready pod; no process exists before Start. The same name with the same configuration gives the
// same id, also while the first call is in flight; with another configuration it is AlreadyExists, naming the field that differs.
func (m *Manager) Create(ctx context.Context, pod sandbox.ID, cfg *cri.ContainerConfig) (ID, error) {
	key := nameKey(pod, cfg.GetMetadata())
	id, err := m.creates.Do(ctx, key, func(ctx context.Context) (ID, error) {
		if id, err := m.existing(key, cfg); id != "" || err != nil {
			return id, err
		}
		return m.create(ctx, pod, cfg)
	})
	if err != nil {
		return "", err
	}
	// The result may be that of another call: it must fit this one's configuration too.
	if found, err := m.existing(key, cfg); err != nil || found != "" {
		return found, err
	}
	return id, nil
}

func (m *Manager) existing(key string, cfg *cri.ContainerConfig) (ID, error) {
	m.mu.Lock()
	e := m.all[m.names[key]]
	var r *record
	if e != nil {
		r = e.rec
	}
	m.mu.Unlock()
	if r == nil {
		return "", nil
	}
	name := cfg.GetMetadata().GetName()
	if field := protodiff.First(r.Config, cfg); field != "" {
		return "", errs.Newf(errs.AlreadyExists, "create container %s: it exists as %s with another %s", name, r.ID, field)
	}
	if !listed(r) {
		return "", errs.Newf(errs.AlreadyExists, "create container %s: it exists as %s and is %s", name, r.ID, r.State)
	}
	return r.ID, nil
}

func (m *Manager) create(ctx context.Context, pod sandbox.ID, cfg *cri.ContainerConfig) (ID, error) {
	fail := func(err error) (ID, error) {
		return "", fmt.Errorf("create container %s: %w", cfg.GetMetadata().GetName(), err)
	}
	box, err := m.openPod(pod)
	if err != nil {
		return fail(err)
	}
	r, err := m.resolve(ctx, box, cfg)
	if err != nil {
		return fail(err)
	}
	// A pod's removal finds the container as soon as it is on record: it must wait until there is all of it, or nothing.
	unlock, err := m.locks.Lock(ctx, string(r.ID))
	if err != nil {
		return fail(err)
	}
	defer unlock()
	ctx, end := m.begin(ctx, r, "create")
	defer end()
	if err := m.put(r); err != nil {
		return fail(errors.Join(err, m.forget(r)))
	}
	created, err := m.furnish(ctx, r)
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
		defer cancel()
		return fail(m.discardOrKeep(ctx, r, err))
	}
	m.changed(created, ChangeCreated)
	return created.ID, nil
}

// openPod gives the pod if containers may be made and started in it (KUBELET.md 17).
func (m *Manager) openPod(pod sandbox.ID) (sandbox.Sandbox, error) {
	box, err := m.o.Sandboxes.Get(string(pod))
	if err != nil {
		return box, err
	}
	if box.State != sandbox.Ready {
		return box, errs.Newf(errs.Precondition, "pod sandbox %s is %s, not ready", box.ID, box.State)
	}
	return box, nil
}

// resolve makes the record out of request, pod and image. It touches nothing.
func (m *Manager) resolve(ctx context.Context, box sandbox.Sandbox, cfg *cri.ContainerConfig) (*record, error) {
	img, err := m.o.Images.Resolve(cfg.GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	proc, err := m.resolveProcess(ctx, box, cfg, img)
	if err != nil {
		return nil, err
	}
	injected, edits, err := rootfs.ResolveCDI(m.o.CDIDirs, cfg, proc.UID, proc.GID)
	if err != nil {
		return nil, err
	}
	if err := proc.Add(edits.Env, edits.Groups); err != nil {
		return nil, fmt.Errorf("CDI_devices: %w", err)
	}
	if err := m.checkSecurity(cfg); err != nil {
		return nil, err
	}
	if err := rootfs.CheckMounts(cfg.GetMounts()); err != nil {
		return nil, err
	}
	if err := checkUsers(box, cfg, proc); err != nil {
		return nil, err
	}
	signal, err := process.StopSignal(cfg.GetStopSignal(), img.Config.StopSignal)
	if err != nil {
		return nil, err
	}
	logPath, err := logPath(box.Config.GetLogDirectory(), cfg.GetLogPath())
	if err != nil {
		return nil, err
	}
	id := ID(ids.New())
	res := &cri.LinuxContainerResources{}
	if r := cfg.GetLinux().GetResources(); r != nil {
		res = proto.CloneOf(r)
	}
	return &record{
		Container: Container{
			ID: id, Sandbox: box.ID, State: Creating, Config: cfg, ImageID: img.ID, ImageRef: imageRef(img), CreatedAt: time.Now(),
			LogPath: logPath, Cgroup: m.o.Cgroups.Container(box.Cgroup, string(id)), Resources: res, StopSignal: signal,
			User: proc.User(),
		},
		Process: proc, Layers: img.Layers, Volumes: volumes(img, injected.AllMounts(cfg, sandbox.Range{})), CDI: injected,
	}, nil
}

// imageRef is what ContainerStatus.image_ref says: a digest reference if the image has one (kubelet prunes by it), else the id.
func imageRef(img image.Image) string {
	if len(img.RepoDigests) > 0 {
		return img.RepoDigests[0]
	}
	return img.ID
}

// resolveProcess is the first process as request, image and pod say.
func (m *Manager) resolveProcess(ctx context.Context, box sandbox.Sandbox, cfg *cri.ContainerConfig, img image.Image) (process.Process, error) {
	hostname := box.Config.GetHostname()
	if box.HostNetwork() || hostname == "" {
		var err error
		if hostname, err = os.Hostname(); err != nil {
			return process.Process{}, err
		}
	}
	accounts, err := m.accounts.Of(ctx, m.o.Snapshots, img)
	if err != nil {
		return process.Process{}, err
	}
	return process.Resolve(cfg, img.Config, accounts, hostname)
}

// logPath joins the pod's directory and the container's file name; empty when either is missing.
func logPath(dir, name string) (string, error) {
	if dir == "" || name == "" {
		return "", nil
	}
	if !filepath.IsLocal(name) || !filepath.IsAbs(dir) {
		return "", errs.Newf(errs.Invalid, "log_path: %q does not lie in log_directory %q", name, dir)
	}
	return filepath.Join(dir, name), nil
}

// volumes are the image's VOLUMEs that the request mounts nothing over.
func volumes(img image.Image, mounts []*cri.Mount) []string {
	var out []string
	for v := range img.Config.Volumes {
		v = path.Clean("/" + v)
		if v == "/" || slices.ContainsFunc(mounts, func(mt *cri.Mount) bool { return path.Clean(mt.GetContainerPath()) == v }) {
			continue
		}
		out = append(out, v)
	}
	slices.Sort(out)
	return out
}

// furnish makes what a created container has: its writable layer and its image volumes.
func (m *Manager) furnish(ctx context.Context, r *record) (*record, error) {
	progress.Stage(ctx, "make writable layer")
	if err := m.o.Snapshots.Create(ctx, string(r.ID), r.Layers); err != nil {
		return nil, err
	}
	progress.Stage(ctx, "fill image volumes")
	if err := m.addImageVolumes(ctx, r); err != nil {
		return nil, err
	}
	if err := m.seedVolumes(ctx, r); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if _, err := m.openPod(r.Sandbox); err != nil { // stopped meanwhile
		return nil, err
	}
	created := r.with(func(r *record) { r.State = Created })
	return created, m.put(created)
}

// discard takes away all that a container without processes has, and its record.
func (m *Manager) discard(ctx context.Context, r *record) error {
	if err := errors.Join(m.removeImageVolumes(ctx, r), m.o.Snapshots.Remove(ctx, string(r.ID))); err != nil {
		return err
	}
	if err := m.o.Images.Release(ctx, r.Layers); err != nil { // they are found again with the next image that goes
		m.o.Log.Warn("layers that nothing needs any more stay", "container", r.ID, "error", err)
	}
	return m.forget(r)
}

// discardOrKeep is discard; a container that can't be taken away whole becomes one that has ended, so that it is listed and removed again.
// The result is cause, joined with what went wrong.
func (m *Manager) discardOrKeep(ctx context.Context, r *record, cause error) error {
	err := m.discard(ctx, r)
	if err == nil {
		return cause
	}
	cause = errors.Join(cause, err)
	return errors.Join(cause, m.put(m.leftover(r, cause)))
}

// leftover is the record of a container that could not be taken away.
func (m *Manager) leftover(r *record, cause error) *record {
	return r.with(func(r *record) {
		r.State, r.PID = Exited, 0
		if r.FinishedAt.IsZero() { // it never ran
			r.FinishedAt, r.ExitCode, r.Reason, r.Message = time.Now(), 255, "Unknown", cause.Error()
		}
	})
}
