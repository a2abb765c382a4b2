// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crishim.dev/internal/errs"
	"crishim.dev/internal/fsx"
	"crishim.dev/snapshot"
)

// An image volume is an image's file system as a volume. It has a snapshot of its own, which keeps the layers when the image is removed.

// imageVolume says whether a mount is one.
func imageVolume(mt *cri.Mount) bool { return mt.GetImage().GetImage() != "" }

// imageVolumeID names the snapshot of a container's i-th mount; ownerOf gives back the container.
func imageVolumeID(id ID, i int) string { return string(id) + "-mount-" + strconv.Itoa(i) }

func ownerOf(snapshotID string) ID {
	id, _, _ := strings.Cut(snapshotID, "-")
	return ID(id)
}

// addImageVolumes makes the snapshots of the image volumes and refuses sub-paths that are not there. Kubelet knows the errors by name.
func (m *Manager) addImageVolumes(ctx context.Context, r *record) error {
	for i, mt := range r.Config.GetMounts() {
		if !imageVolume(mt) {
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
	sub, err := openSubPath(root, mt)
	if err != nil {
		return err
	}
	return sub.Close()
}

func openSubPath(root *os.File, mt *cri.Mount) (*os.File, error) {
	f, err := fsx.OpenInRoot(root, mt.GetImageSubPath(), unix.O_PATH, 0)
	if errors.Is(err, os.ErrNotExist) {
		err = errs.As(errs.Invalid, err)
	}
	if err != nil {
		return nil, fmt.Errorf("image_sub_path in image %s: %w", mt.GetImage().GetImage(), err)
	}
	return f, nil
}

// removeImageVolumes removes the snapshots of the image volumes; those not there are fine.
func (m *Manager) removeImageVolumes(ctx context.Context, r *record) error {
	var all []error
	for i, mt := range r.Config.GetMounts() {
		if imageVolume(mt) {
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
		f, err = part(f, mt)
	}
	if err != nil {
		return nil, err
	}
	const attrs = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	err = setattr(f, &unix.MountAttr{Attr_set: attrs}, 0)
	if err == nil {
		err = setOptions(f, mt.GetMountOptions())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// part makes a detached mount of the sub-path of a detached one, which is used up.
func part(root *os.File, mt *cri.Mount) (*os.File, error) {
	defer root.Close()
	sub, err := openSubPath(root, mt)
	if err != nil {
		return nil, err
	}
	defer sub.Close()
	f, err := cloneOf(sub)
	if errors.Is(err, unix.EINVAL) {
		return partInThread(root, mt)
	}
	return f, err
}

// cloneOf copies the mount at an open file into a detached one. On a detached mount it needs Linux 6.15.
func cloneOf(f *os.File) (*os.File, error) {
	fd, err := unix.OpenTree(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// partInThread is part for older kernels: it attaches root in a mount namespace that a thread makes for itself. That thread ends here.
func partInThread(root *os.File, mt *cri.Mount) (f *os.File, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: a thread with another mount namespace must not run anything else
		f, err = partIn(root, mt)
	}()
	<-done
	return f, err
}

// partIn works in a mount namespace of the calling thread's own.
func partIn(root *os.File, mt *cri.Mount) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return nil, os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil { //nolint:forbidigo // the root of our own mount namespace
		return nil, os.NewSyscallError("mount", err)
	}
	if err := unix.MoveMount(int(root.Fd()), "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, os.NewSyscallError("move_mount", err)
	}
	sub, err := openSubPath(root, mt)
	if err != nil {
		return nil, err
	}
	defer sub.Close()
	return cloneOf(sub)
}
