// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crishim.dev/internal/errs"
	"crishim.dev/launch"
)

// checkMounts refuses mounts that no launch should be tried with.
func checkMounts(mounts []*cri.Mount) error {
	seen := map[string]bool{}
	for i, mt := range mounts {
		field := fmt.Sprintf("mounts[%d]", i)
		target := path.Clean("/" + mt.GetContainerPath())
		switch {
		case mt.GetContainerPath() == "" || target == "/":
			return errs.Newf(errs.Invalid, "%s.container_path: %q can't be mounted over", field, mt.GetContainerPath())
		case strings.ContainsRune(mt.GetContainerPath()+mt.GetHostPath(), 0):
			return errs.Newf(errs.Invalid, "%s: a path has a zero byte", field)
		case seen[target]:
			return errs.Newf(errs.Invalid, "%s.container_path: %s is mounted twice", field, target)
		case target == "/proc" || (strings.HasPrefix(target, "/proc/") && !slices.Contains(mountableProc(), target)):
			return errs.Newf(errs.Invalid, "%s.container_path: %s is inside /proc", field, target)
		case imageVolume(mt) && mt.GetPropagation() != cri.MountPropagation_PROPAGATION_PRIVATE:
			return errs.Newf(errs.Invalid, "%s.propagation: an image volume has private propagation only", field)
		case !imageVolume(mt) && !filepath.IsAbs(mt.GetHostPath()):
			return errs.Newf(errs.Invalid, "%s.host_path: %q is not an absolute path", field, mt.GetHostPath())
		}
		if _, err := attributes(mt.GetMountOptions()); err != nil {
			return fmt.Errorf("%s.%w", field, err)
		}
		seen[target] = true
		if !mt.GetRecursiveReadOnly() {
			continue
		}
		if !mt.GetReadonly() {
			return errs.Newf(errs.Invalid, "%s.recursive_read_only: it needs readonly", field)
		}
		if mt.GetPropagation() != cri.MountPropagation_PROPAGATION_PRIVATE {
			return errs.Newf(errs.Invalid, "%s.recursive_read_only: it needs private propagation", field)
		}
	}
	return nil
}

// mountableProc lists the files of /proc that may be mounted over, as runc has it: lxcfs does.
func mountableProc() []string {
	return []string{
		"/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime", "/proc/loadavg",
		"/proc/slabinfo", "/proc/net/dev", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled",
	}
}

// openVolume makes a detached copy of a host path with the attributes that the request wants; where it maps owners, by userNS.
func openVolume(mt *cri.Mount, userNS *os.File) (f *os.File, err error) {
	host := mt.GetHostPath()
	if _, err := os.Stat(host); errors.Is(err, os.ErrNotExist) {
		// As containerd and Docker do: kubelet checks hostPath types itself before.
		if err := os.MkdirAll(host, 0o755); err != nil {
			return nil, fmt.Errorf("make missing host path: %w", err)
		}
	}
	if mt.GetPropagation() == cri.MountPropagation_PROPAGATION_BIDIRECTIONAL {
		if err := requireShared(host); err != nil {
			return nil, err
		}
	}
	f, err = cloneTree(host, unix.AT_RECURSIVE)
	if err != nil {
		return nil, err
	}
	if len(mt.GetUidMappings()) > 0 {
		if err := mapOwners(f, userNS); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	attr := unix.MountAttr{}
	switch mt.GetPropagation() {
	case cri.MountPropagation_PROPAGATION_PRIVATE:
		attr.Propagation = unix.MS_PRIVATE
	case cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		attr.Propagation = unix.MS_SLAVE
	case cri.MountPropagation_PROPAGATION_BIDIRECTIONAL: // a clone of a shared mount is its peer
	default:
		return nil, errors.Join(errs.Newf(errs.Invalid, "unknown propagation %d", mt.GetPropagation()), f.Close())
	}
	if attr.Propagation != 0 {
		err = setattr(f, &attr, unix.AT_RECURSIVE)
	}
	if err == nil && mt.GetReadonly() {
		var flags uint
		if mt.GetRecursiveReadOnly() {
			flags = unix.AT_RECURSIVE
		}
		err = setattr(f, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, flags)
		if mt.GetRecursiveReadOnly() {
			err = errs.As(crierrors.ErrRROUnsupported, err)
		}
	}
	if err == nil {
		err = setOptions(f, mt.GetMountOptions())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// cloneTree copies the mount at path (with AT_RECURSIVE also those below it) into a detached one. Needs Linux 5.2.
func cloneTree(path string, flags uint) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|flags)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// setattr is mount_setattr(2) on a detached mount. Needs Linux 5.12.
func setattr(f *os.File, attr *unix.MountAttr, flags uint) error {
	if err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH|flags, attr); err != nil {
		return &os.PathError{Op: "mount_setattr", Path: f.Name(), Err: err}
	}
	return nil
}

// requireShared refuses bidirectional propagation from a mount that is not shared: it would silently reach nobody.
func requireShared(path string) error {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st); err != nil { // Linux 5.8
		return &os.PathError{Op: "statx", Path: path, Err: err}
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	shared, err := isShared(f, st.Mnt_id)
	if err != nil {
		return err
	}
	if !shared {
		return errs.Newf(errs.Invalid, "bidirectional propagation: %s is not on a shared mount", path)
	}
	return nil
}

// isShared looks a mount up in mountinfo (proc_pid_mountinfo(5)): "36 35 98:0 / /mnt rw shared:1 - ext4 …".
func isShared(mountinfo io.Reader, id uint64) (bool, error) {
	s := bufio.NewScanner(mountinfo)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) < 7 || fields[0] != strconv.FormatUint(id, 10) {
			continue
		}
		for _, f := range fields[6:] {
			if f == "-" {
				return false, nil
			}
			if strings.HasPrefix(f, "shared:") {
				return true, nil
			}
		}
	}
	return false, s.Err()
}

// openMount opens the i-th of the request's mounts.
func (l *launching) openMount(ctx context.Context, i int, mt *cri.Mount) (*os.File, error) {
	if !imageVolume(mt) {
		return openVolume(mt, l.userNS)
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
	for i, mt := range l.r.CDI.mounts(l.r.Config, ids) {
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
		f, err := cloneTree(source, 0)
		if err == nil && security(l.r.Config).GetReadonlyRootfs() {
			if err = setattr(f, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, 0); err != nil {
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
		f, err := cloneTree(l.m.volumeDir(l.r.ID, i), 0)
		if err == nil && l.userNS != nil {
			if err = mapOwners(f, l.userNS); err != nil {
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
