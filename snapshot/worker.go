// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/thread"
)

// inWorker makes the overlay by mount(2), for kernels whose fsconfig(2) can't take many layers (before 6.7), or none that
// are id-mapped. mount(2) takes one page of options, so the layers need short names, and it attaches what it makes: both happen
// in a mount namespace that only this thread has. What is returned is a detached clone, so nothing of it remains but that.
func (m *mounter) inWorker(o overlay) (*os.File, error) {
	var f *os.File
	var err error
	thread.Discard(func() { f, err = m.privately(o) })
	return f, err
}

// privately must run on a thread that ends afterwards.
func (m *mounter) privately(o overlay) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, os.NewSyscallError("unshare mount namespace", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, os.NewSyscallError("make mounts private", err)
	}
	// Everything below is relative to a scratch tmpfs laid over the trash directory of this namespace only.
	scratch := m.disk.trash.dir.Name()
	if err := unix.Mount("scratch", scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4m,mode=700"); err != nil {
		return nil, os.NewSyscallError("mount scratch", err)
	}
	// The directories' paths are looked up before the scratch hides one of them; none lies in the trash.
	names, err := shortNames(o, scratch)
	if err != nil {
		return nil, err
	}
	if err := unix.Chdir(scratch); err != nil {
		return nil, os.NewSyscallError("chdir to scratch", err)
	}
	if err := unix.Mkdir("m", 0o700); err != nil {
		return nil, os.NewSyscallError("mkdir in scratch", err)
	}
	if err := m.legacy(o, names); err != nil {
		return nil, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, "m", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("open_tree overlay", err)
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

// shortNames puts the layers into the scratch under their numbers: as symbolic links, or attached where they are id-mapped.
func shortNames(o overlay, scratch string) ([]string, error) {
	var names []string
	for i, dir := range o.lowers {
		name := strconv.FormatInt(int64(i), 36)
		if name == "m" || name == "u" || name == "w" {
			name = "_" + name
		}
		names = append(names, name)
		path := scratch + "/" + name
		if o.userNS == nil {
			if err := unix.Symlink(dir, path); err != nil {
				return nil, os.NewSyscallError("symlink in scratch", err)
			}
			continue
		}
		fd, err := mappedClone(dir, o.userNS)
		if err != nil {
			return nil, err
		}
		if err = unix.Mkdir(path, 0o700); err == nil {
			err = unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
		}
		_ = unix.Close(fd)
		if err != nil {
			return nil, os.NewSyscallError("attach layer", err)
		}
	}
	if o.upper != "" {
		for _, l := range [][2]string{{o.upper, "u"}, {o.work, "w"}} {
			if err := unix.Symlink(l[0], scratch+"/"+l[1]); err != nil {
				return nil, os.NewSyscallError("symlink in scratch", err)
			}
		}
	}
	return names, nil
}

// legacy mounts the overlay on "m" in the working directory.
func (m *mounter) legacy(o overlay, names []string) error {
	options := "index=off,lowerdir=" + strings.Join(names, ":")
	if o.upper == "" {
		return mountError(len(names), unix.Mount("overlay", "m", "overlay", 0, options))
	}
	options += ",upperdir=u,workdir=w"
	if m.probe.volatile.Load() != no {
		if unix.Mount("overlay", "m", "overlay", 0, "volatile,"+options) == nil {
			m.probe.volatile.Store(yes)
			return nil
		}
	}
	err := unix.Mount("overlay", "m", "overlay", 0, options)
	if err == nil {
		m.probe.volatile.Store(no) // it was volatile that the kernel refused
	}
	return mountError(len(names), err)
}

func mountError(layers int, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("mount overlay of %d layers: %w", layers, err)
}
