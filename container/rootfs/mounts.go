// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"bufio"
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
)

// CheckMounts refuses mounts that no launch should be tried with.
func CheckMounts(mounts []*cri.Mount) error {
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
		case IsImage(mt) && mt.GetPropagation() != cri.MountPropagation_PROPAGATION_PRIVATE:
			return errs.Newf(errs.Invalid, "%s.propagation: an image volume has private propagation only", field)
		case !IsImage(mt) && !filepath.IsAbs(mt.GetHostPath()):
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

// OpenVolume makes a detached copy of a host path with the attributes that the request wants; where it maps owners, by userNS.
func OpenVolume(mt *cri.Mount, userNS *os.File) (f *os.File, err error) {
	host := mt.GetHostPath()
	if _, err := os.Stat(host); errors.Is(err, os.ErrNotExist) {
		// As containerd and Docker do: kubelet checks hostPath types itself before.
		if err := os.MkdirAll(host, 0o755); err != nil {
			return nil, fmt.Errorf("make missing host_path: %w", errs.OfPath(err))
		}
	}
	if err := checkPropagation(host, mt.GetPropagation()); err != nil {
		return nil, err
	}
	f, err = openTree(host, unix.AT_RECURSIVE)
	if err != nil {
		return nil, fmt.Errorf("host_path: %w", errs.OfPath(err))
	}
	if len(mt.GetUidMappings()) > 0 {
		if err := MapOwners(f, userNS); err != nil {
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
		err = SetAttr(f, &attr, unix.AT_RECURSIVE)
	}
	if err == nil && mt.GetReadonly() {
		var flags uint
		if mt.GetRecursiveReadOnly() {
			flags = unix.AT_RECURSIVE
		}
		err = SetAttr(f, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, flags)
		if mt.GetRecursiveReadOnly() {
			err = errs.As(crierrors.ErrRROUnsupported, err)
		}
	}
	if err == nil {
		err = SetOptions(f, mt.GetMountOptions())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// CloneMount copies the mount at path into a detached one, private: the copy of a shared mount is its peer, and what a container then
// mounts below it would be mounted on the host.
func CloneMount(path string) (*os.File, error) {
	f, err := openTree(path, 0)
	if err != nil {
		return nil, err
	}
	if err := SetAttr(f, &unix.MountAttr{Propagation: unix.MS_PRIVATE}, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// openTree copies the mount at path (with AT_RECURSIVE also those below it) into a detached one, a peer if it is shared. Needs Linux 5.2.
func openTree(path string, flags uint) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|flags)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// SetAttr is mount_setattr(2) on a detached mount. Needs Linux 5.12.
func SetAttr(f *os.File, attr *unix.MountAttr, flags uint) error {
	if err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH|flags, attr); err != nil {
		return &os.PathError{Op: "mount_setattr", Path: f.Name(), Err: err}
	}
	return nil
}

// checkPropagation refuses propagation that the host's mount can't give: mounts would silently reach nobody, or never come.
func checkPropagation(path string, want cri.MountPropagation) error {
	if want == cri.MountPropagation_PROPAGATION_PRIVATE {
		return nil
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st); err != nil { // Linux 5.8
		return fmt.Errorf("host_path: %w", errs.OfPath(&os.PathError{Op: "statx", Path: path, Err: err}))
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	shared, slave, err := peers(f, st.Mnt_id)
	if err != nil || shared || slave && want == cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER {
		return err
	}
	return errs.Newf(errs.Precondition, "propagation: %s can't be had: the host's mount of %s is not shared", want, path)
}

// peers looks a mount up in mountinfo (proc_pid_mountinfo(5)): "36 35 98:0 / /mnt rw shared:1 master:2 - ext4 …".
func peers(mountinfo io.Reader, id uint64) (shared, slave bool, err error) {
	s := bufio.NewScanner(mountinfo)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) < 7 || fields[0] != strconv.FormatUint(id, 10) {
			continue
		}
		for _, f := range fields[6:] {
			if f == "-" {
				break
			}
			shared = shared || strings.HasPrefix(f, "shared:")
			slave = slave || strings.HasPrefix(f, "master:")
		}
		return shared, slave, nil
	}
	return false, false, s.Err()
}

// MapOwners makes a detached mount show its files as those of the pod's user namespace: owner 0 on disk is its root. Nothing is
// changed on disk.
//
// What is mounted below is mapped too, unless one of those file systems can't be: then it is the volume itself that must be.
func MapOwners(f, userNS *os.File) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userNS.Fd())}
	err := SetAttr(f, &attr, unix.AT_RECURSIVE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		err = SetAttr(f, &attr, 0)
	}
	if err == nil {
		return nil
	}
	var fs unix.Statfs_t
	if e := unix.Fstatfs(int(f.Fd()), &fs); e != nil {
		return errors.Join(err, e)
	}
	var u unix.Utsname
	_ = unix.Uname(&u)
	return errs.Newf(errs.Unsupported, "map the owners of %s to the pod's users: its file system (type %#x) has no id-mapped mounts in Linux %s "+
		"(tmpfs has them from 6.3 on, overlayfs never): %w", f.Name(), fs.Type, unix.ByteSliceToString(u.Release[:]), err)
}
