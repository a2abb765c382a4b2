// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/container/rootfs"
	"crishim.dev/internal/errs"
	"crishim.dev/launch"
	"crishim.dev/sandbox"
)

// Plan prints the container's launch program, as Start ran it or would run it, with the values of variables left out. It compiles the
// program again from the record and opens nothing: descriptors are numbers in it, and host paths are only looked at.
func (m *Manager) Plan(_ context.Context, id ID) (string, error) {
	r := m.current(id)
	if r == nil {
		return "", errs.Newf(errs.NotFound, "plan container %s: no such container", id)
	}
	d, err := m.planned(r)
	if err != nil {
		return "", fmt.Errorf("plan container %s: %w", r.name(), err)
	}
	plan, err := launch.Container(d, m.o.Facts)
	if err != nil {
		return "", fmt.Errorf("plan container %s: %w", r.name(), err)
	}
	var b strings.Builder
	err = launch.Dump(&b, plan.Program)
	return b.String(), err
}

// planned is the description that launch makes, with numbers in place of descriptors.
func (m *Manager) planned(r *record) (*launch.Description, error) {
	box, err := m.o.Sandboxes.Get(string(r.Sandbox))
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
	next := launch.NoFD
	number := func() launch.FD { next++; return next }
	joins, dir := m.o.Cgroups.Joins()
	if dir {
		d.Dir = number()
	}
	for range joins {
		d.Procs = append(d.Procs, number())
	}
	if _, mapped := box.Users(); mapped {
		d.UserNS = number()
	}
	if !box.HostNetwork() {
		d.NetNS, d.UTSNS = number(), number()
	}
	if !box.HostIPC() {
		d.IPCNS = number()
	}
	if d.PID == launch.PIDJoin {
		d.PIDNS, d.PIDMount = number(), number()
	}
	d.Root, d.Dev, d.Shm = number(), number(), number()
	d.Mounts, err = m.plannedMounts(r, box, number)
	return d, err
}

// plannedMounts are what launching.volumes and deviceOutsideDev open.
func (m *Manager) plannedMounts(r *record, box sandbox.Sandbox, number func() launch.FD) ([]launch.Mount, error) {
	var out []launch.Mount
	taken := map[string]bool{}
	ids, _ := box.Users()
	for _, mt := range r.CDI.AllMounts(r.Config, ids) {
		target := path.Clean("/" + mt.GetContainerPath())
		file, err := isFile(mt)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", target, err)
		}
		out = append(out, launch.Mount{Target: target, FD: number(), File: file})
		taken[target] = true
	}
	for _, source := range []string{m.o.Layout.Hostname(box.ID), m.o.Layout.Hosts(box.ID), m.o.Layout.ResolvConf(box.ID)} {
		if target := "/etc/" + path.Base(source); !taken[target] {
			out = append(out, launch.Mount{Target: target, FD: number(), File: true})
		}
	}
	for _, target := range r.Volumes {
		out = append(out, launch.Mount{Target: target, FD: number()})
	}
	list, err := rootfs.Devices(r.Config)
	if err != nil {
		return nil, err
	}
	for _, dev := range list {
		if !strings.HasPrefix(dev.Target, "/dev/") {
			out = append(out, launch.Mount{Target: dev.Target, FD: number(), File: true})
		}
	}
	return out, nil
}

// isFile says whether a volume is no directory; what is missing will be made one.
func isFile(mt *cri.Mount) (bool, error) {
	st, err := os.Stat(mt.GetHostPath())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && !st.IsDir(), err
}
