// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"crishim.dev/cgroup"
	"crishim.dev/keeper/client"
	"crishim.dev/launch"
	"crishim.dev/proto"
)

// initID names a pod's init for the keeper.
func initID(id ID) string { return "init-" + string(id) }

const initName = "start the pod's init"

// startInit starts the first process of the pod's shared pid namespace and pins that namespace.
func (m *Manager) startInit(ctx context.Context, r *record) (pid int, err error) {
	group, err := m.o.Cgroups.Create(ctx, m.o.Cgroups.Container(r.Cgroup, string(r.ID)), nil)
	if err != nil {
		return 0, fmt.Errorf("make the init's cgroup: %w", err)
	}
	var files launch.FDList
	defer func() { closeAll(files.Files, nil) }()
	d, err := m.describeInit(r, group, &files)
	if err != nil {
		return 0, err
	}
	plan, err := launch.PodInit(d, m.o.Facts)
	if err != nil {
		return 0, err
	}
	// Not cut short by a cancelled call: the keeper would go on, and the process come up while teardown looks for it.
	ctx, cancel := detached(ctx, teardownLimit)
	defer cancel()
	p, err := m.o.Keeper.Spawn(ctx, client.Spawn{
		Spawn:   proto.Spawn{ID: initID(r.ID), CloneFlags: plan.CloneFlags, Cgroup: int32(plan.Cgroup), Hold: group.Held()},
		Program: plan.Program, Files: files.Files, Name: initName,
	})
	if err != nil {
		return 0, err
	}
	defer p.PIDFD.Close()
	if group.Held() {
		if err := group.Place(ctx, p.PID); err != nil {
			return 0, errors.Join(err, unix.PidfdSendSignal(int(p.PIDFD.Fd()), unix.SIGKILL, nil, 0))
		}
		released, err := m.o.Keeper.Release(ctx, initID(r.ID), initName, plan.Program)
		if err != nil {
			return 0, err
		}
		released.Close()
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", p.PID))
	if err != nil {
		return 0, fmt.Errorf("pin pid namespace: %w", err)
	}
	defer ns.Close()
	return p.PID, m.pin(r.ID, "pid", ns)
}

func (m *Manager) describeInit(r *record, group *cgroup.Group, files *launch.FDList) (*launch.PodInitDescription, error) {
	d := &launch.PodInitDescription{}
	d.Dir = launch.NoFD
	if !group.Held() { // else it is placed from outside, while it waits at its gate
		procs, dir, err := group.Files()
		if err != nil {
			return nil, fmt.Errorf("open the init's cgroup: %w", err)
		}
		d.Dir = files.Add(dir)
		for _, f := range procs {
			d.Procs = append(d.Procs, files.Add(f))
		}
	}
	for kind, fd := range map[string]*launch.FD{"net": &d.NetNS, "ipc": &d.IPCNS, "uts": &d.UTSNS, "user": &d.UserNS} {
		*fd = launch.NoFD
		f, err := os.Open(m.o.Layout.Pin(r.ID, kind))
		if errors.Is(err, os.ErrNotExist) { // the host's
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open %s namespace: %w", kind, err)
		}
		*fd = files.Add(f)
	}
	binary, err := initBinary()
	if err != nil {
		return nil, fmt.Errorf("make the init's binary: %w", err)
	}
	d.Binary = files.Add(binary)
	return d, nil
}

// initBinary puts the init's ELF image into a sealed memfd: nothing on disk, and nobody can change it.
func initBinary() (*os.File, error) {
	elf, err := launch.InitELF(runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("pod-init", flags|unix.MFD_EXEC) // Linux 6.3; needed where vm.memfd_noexec is set
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("pod-init", flags)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "pod-init")
	if _, err := f.Write(elf); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
