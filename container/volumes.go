// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crishim.dev/container/rootfs"
	"crishim.dev/internal/errs"
	"crishim.dev/launch"
)

// volumeDir is the directory of a container's i-th image VOLUME.
func (m *Manager) volumeDir(id ID, i int) string {
	return filepath.Join(m.dir(id), "volumes", strconv.Itoa(i))
}

// seedVolumes makes a directory for each VOLUME of the image and copies into it what the image has there (KUBELET.md 24).
func (m *Manager) seedVolumes(ctx context.Context, r *record) error {
	if len(r.Volumes) == 0 {
		return nil
	}
	root, err := m.o.Snapshots.View(ctx, r.Layers)
	if err != nil {
		return fmt.Errorf("seed image volumes: %w", err)
	}
	defer root.Close()
	for i, target := range r.Volumes {
		if err := rootfs.SeedVolume(ctx, root, target, m.volumeDir(r.ID, i)); err != nil {
			return fmt.Errorf("seed image volume %s: %w", target, err)
		}
	}
	return nil
}

// openMount opens the i-th of the request's mounts.
func (l *launching) openMount(ctx context.Context, i int, mt *cri.Mount) (*os.File, error) {
	if !rootfs.IsImage(mt) {
		return rootfs.OpenVolume(mt, l.userNS)
	}
	f, err := l.openImageVolume(ctx, i, mt)
	return f, errs.As(crierrors.ErrImageVolumeMountFailed, err)
}

// volumes opens all that is mounted into the container besides the standard mounts: the request's mounts, the pod's files, the
// image's VOLUMEs. The descriptors are collected in files, which the caller closes.
func (l *launching) volumes(ctx context.Context) ([]launch.Mount, error) {
	var out []launch.Mount
	add := func(target string, f *os.File) error {
		st, err := f.Stat()
		if err != nil {
			return errors.Join(err, f.Close())
		}
		out = append(out, launch.Mount{Target: target, FD: l.files.Add(f), File: !st.IsDir()})
		return nil
	}
	taken := map[string]bool{}
	ids, _ := l.box.Users()
	for i, mt := range l.r.CDI.AllMounts(l.r.Config, ids) {
		target := path.Clean("/" + mt.GetContainerPath())
		f, err := l.openMount(ctx, i, mt)
		if err == nil {
			err = add(target, f)
		}
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", target, err)
		}
		taken[target] = true
	}
	own := map[string]string{
		"/etc/hostname":    l.m.o.Layout.Hostname(l.box.ID),
		"/etc/hosts":       l.m.o.Layout.Hosts(l.box.ID),
		"/etc/resolv.conf": l.m.o.Layout.ResolvConf(l.box.ID),
	}
	for target, source := range own {
		if taken[target] {
			continue
		}
		f, err := rootfs.CloneMount(source)
		if err == nil && security(l.r.Config).GetReadonlyRootfs() {
			if err = rootfs.SetAttr(f, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, 0); err != nil {
				err = errors.Join(err, f.Close())
			}
		}
		if err == nil {
			err = add(target, f)
		}
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", target, err)
		}
	}
	for i, target := range l.r.Volumes {
		f, err := rootfs.CloneMount(l.m.volumeDir(l.r.ID, i))
		if err == nil && l.userNS != nil {
			if err = rootfs.MapOwners(f, l.userNS); err != nil {
				err = errors.Join(err, f.Close())
			}
		}
		if err == nil {
			err = add(target, f)
		}
		if err != nil {
			return nil, fmt.Errorf("mount image volume %s: %w", target, err)
		}
	}
	return out, nil
}

// deviceOutsideDev mounts a device whose path in the container is not below /dev.
func (l *launching) deviceOutsideDev(d *launch.Description, dev rootfs.Device) error {
	if len(dev.Target) > len("/dev/") && dev.Target[:len("/dev/")] == "/dev/" {
		return nil
	}
	f, err := rootfs.CloneMount(dev.Host)
	if err != nil {
		return fmt.Errorf("mount device %s: %w", dev.Target, err)
	}
	d.Mounts = append(d.Mounts, launch.Mount{Target: dev.Target, FD: l.files.Add(f), File: true})
	return nil
}

// devices are those that the container gets besides the standard ones.
func (l *launching) devices() ([]rootfs.Device, error) {
	list, err := rootfs.Devices(l.r.Config)
	return append(list, l.r.CDI.DeviceList(uint32(l.rootID()))...), err
}
