// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
	"crishim.dev/internal/fsx"
	"crishim.dev/internal/thread"
)

// IsImage says whether a mount is an image's file system.
func IsImage(mt *cri.Mount) bool { return mt.GetImage().GetImage() != "" }

// OpenSubPath opens the part of an image that a mount is of.
func OpenSubPath(root *os.File, mt *cri.Mount) (*os.File, error) {
	f, err := fsx.OpenInRoot(root, mt.GetImageSubPath(), unix.O_PATH, 0)
	if errors.Is(err, os.ErrNotExist) {
		err = errs.As(errs.Invalid, err)
	}
	if err != nil {
		return nil, fmt.Errorf("image_sub_path in image %s: %w", mt.GetImage().GetImage(), err)
	}
	return f, nil
}

// Part makes a detached mount of the sub-path of a detached one, which is used up.
func Part(root *os.File, mt *cri.Mount) (*os.File, error) {
	defer root.Close()
	sub, err := OpenSubPath(root, mt)
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

// partInThread is Part for older kernels: it attaches root in a mount namespace that a thread makes for itself. That thread ends here.
func partInThread(root *os.File, mt *cri.Mount) (f *os.File, err error) {
	thread.Discard(func() { f, err = partIn(root, mt) })
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
	sub, err := OpenSubPath(root, mt)
	if err != nil {
		return nil, err
	}
	defer sub.Close()
	return cloneOf(sub)
}
