// SPDX-License-Identifier: Apache-2.0

package powercut

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Mount mounts the file system on the disk, of the given type, on a directory. The function it returns unmounts it; the directory
// must not be in use then.
//
// Other processes may use the file system, but not this one, which could wait for itself: a page fault stops its garbage collector, and
// that stops who would answer. The mounts end with the mount namespace; the calling thread should have one of its own.
func (d *Disk) Mount(fstype, dir string) (unmount func() error, err error) {
	var undo []func() error
	down := func() error {
		var all []error
		for _, f := range slices.Backward(undo) {
			all = append(all, f())
		}
		undo = nil
		return errors.Join(all...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, down())
		}
	}()
	file, err := os.CreateTemp("", "powercut")
	if err != nil {
		return nil, err
	}
	undo = append(undo, func() error { return os.Remove(file.Name()) })
	if err := file.Close(); err != nil {
		return nil, err
	}
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	_ = unix.SetNonblock(int(dev.Fd()), false)
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0", dev.Fd(), unix.S_IFREG)
	if err := unix.Mount("powercut", file.Name(), "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil { //nolint:forbidigo // a test's own path
		return nil, errors.Join(os.NewSyscallError("mount fuse", err), dev.Close())
	}
	served := make(chan struct{})
	go func() { defer close(served); d.serve(dev) }()
	undo = append(undo, func() error {
		err := unix.Unmount(file.Name(), unix.MNT_DETACH) //nolint:forbidigo // a test's own path; something may look at new block devices: it goes when that is done
		<-served
		return errors.Join(os.NewSyscallError("unmount fuse", err), dev.Close())
	})
	unmount, err = MountFile(file.Name(), fstype, dir)
	if err != nil {
		return nil, err
	}
	undo = append(undo, unmount)
	return down, nil
}

// MountFile mounts the file system in a file, of the given type, on a directory, by a loop device. The function it returns unmounts it;
// the directory must not be in use then.
func MountFile(path, fstype, dir string) (unmount func() error, err error) {
	loop, err := attach(path)
	if err != nil {
		return nil, err
	}
	detach := func() error {
		err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0)
		return errors.Join(os.NewSyscallError("detach loop device", err), loop.Close())
	}
	if err := unix.Mount(loop.Name(), dir, fstype, 0, ""); err != nil { //nolint:forbidigo // a test's own path
		return nil, errors.Join(os.NewSyscallError("mount "+fstype, err), detach())
	}
	return func() error {
		err := unix.Unmount(dir, 0) //nolint:forbidigo // a test's own path
		return errors.Join(os.NewSyscallError("unmount "+dir, err), detach())
	}, nil
}

// attach makes a loop device of a file.
func attach(path string) (*os.File, error) {
	// Not by package os, which would ask the file system, and so this process, whether the file can be waited for.
	file, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(file)
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range 20 { // another process may take the free one first
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, os.NewSyscallError("find a loop device", err)
		}
		name := filepath.Join("/dev", fmt.Sprint("loop", n))
		_ = unix.Mknod(name, unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(n)))) // where no udev does
		loop, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		c := unix.LoopConfig{Fd: uint32(file)}
		c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		if err = unix.IoctlLoopConfigure(int(loop.Fd()), &c); err == nil {
			return loop, nil
		}
		if err = errors.Join(err, loop.Close()); !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("attach %s: %w", name, err)
		}
	}
	return nil, errors.New("attach loop device: all are taken")
}
