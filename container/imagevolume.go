// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crishim.dev/container/rootfs"
	"crishim.dev/internal/errs"
	"crishim.dev/snapshot"
)

// An image volume is an image's file system as a volume. It has a snapshot of its own, which keeps the layers when the image is removed.

// imageVolumeID names the snapshot of a container's i-th mount; ownerOf gives back the container.
func imageVolumeID(id ID, i int) string { return string(id) + "-mount-" + strconv.Itoa(i) }

func ownerOf(snapshotID string) ID {
	id, _, _ := strings.Cut(snapshotID, "-")
	return ID(id)
}

// addImageVolumes makes the snapshots of the image volumes and refuses sub-paths that are not there. Kubelet knows the errors by name.
func (m *Manager) addImageVolumes(ctx context.Context, r *record) error {
	for i, mt := range r.Config.GetMounts() {
		if !rootfs.IsImage(mt) {
			continue
		}
		if err := m.addImageVolume(ctx, imageVolumeID(r.ID, i), mt); err != nil {
			return errs.As(crierrors.ErrImageVolumeMountFailed, fmt.Errorf("mounts[%d].image: %w", i, err))
		}
	}
	return nil
}

func (m *Manager) addImageVolume(ctx context.Context, id string, mt *cri.Mount) error {
	img, err := m.o.Images.Resolve(mt.GetImage().GetImage())
	if err != nil {
		return err
	}
	if err := m.o.Snapshots.Create(ctx, id, img.Layers); err != nil || mt.GetImageSubPath() == "" {
		return err
	}
	root, err := m.o.Snapshots.Mount(ctx, id, snapshot.Mount{ReadOnly: true})
	if err != nil {
		return err
	}
	defer root.Close()
	sub, err := rootfs.OpenSubPath(root, mt)
	if err != nil {
		return err
	}
	return sub.Close()
}

// removeImageVolumes removes the snapshots of the image volumes; those not there are fine.
func (m *Manager) removeImageVolumes(ctx context.Context, r *record) error {
	var all []error
	for i, mt := range r.Config.GetMounts() {
		if rootfs.IsImage(mt) {
			all = append(all, m.o.Snapshots.Remove(ctx, imageVolumeID(r.ID, i)))
		}
	}
	return errors.Join(all...)
}

// openImageVolume mounts the container's i-th mount, detached: read-only, and nothing in it can be executed, as Kubernetes
// promises of image volumes. In a pod with a user namespace it belongs to the pod's users.
func (l *launching) openImageVolume(ctx context.Context, i int, mt *cri.Mount) (f *os.File, err error) {
	f, err = l.m.o.Snapshots.Mount(ctx, imageVolumeID(l.r.ID, i), snapshot.Mount{ReadOnly: true, UserNS: l.userNS})
	if err == nil && mt.GetImageSubPath() != "" {
		f, err = rootfs.Part(f, mt)
	}
	if err != nil {
		return nil, err
	}
	const attrs = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	err = rootfs.SetAttr(f, &unix.MountAttr{Attr_set: attrs}, 0)
	if err == nil {
		err = rootfs.SetOptions(f, mt.GetMountOptions())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
