// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/cgroup"
	"crishim.dev/internal/errs"
	"crishim.dev/launch"
)

// Device is a node that a container gets besides the standard ones.
type Device struct {
	// Host is the node on the host, empty for one that CDI brings; Target is where the container has it. Both are absolute.
	Host, Target string
	Mode         uint32 // S_IFCHR or S_IFBLK and permissions
	Dev          uint64
	UID, GID     uint32
	// Access is made of r, w and m.
	Access string
}

// Devices finds what the request names on the host; a directory stands for the devices below it. A privileged container gets
// all of the host's.
func Devices(cfg *cri.ContainerConfig) ([]Device, error) {
	var out []Device
	if cfg.GetLinux().GetSecurityContext().GetPrivileged() {
		found, err := devicesBelow("/dev", "/dev", "rwm")
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	for i, d := range cfg.GetDevices() {
		target := d.GetContainerPath()
		if target == "" {
			target = d.GetHostPath()
		}
		access := d.GetPermissions()
		if access == "" {
			access = "rwm"
		}
		if !path.IsAbs(target) || strings.Trim(access, "rwm") != "" {
			return nil, errs.Newf(errs.Invalid, "devices[%d]: %s with permissions %q", i, target, d.GetPermissions())
		}
		found, err := devicesBelow(d.GetHostPath(), path.Clean(target), access)
		if err != nil {
			return nil, fmt.Errorf("devices[%d]: %w", i, err)
		}
		out = append(out, found...)
	}
	return out, nil
}

// devicesBelow gives the device at host, or all below it if that is a directory.
func devicesBelow(host, target, access string) ([]Device, error) {
	host, err := filepath.EvalSymlinks(host)
	if err != nil {
		return nil, errs.As(errs.Invalid, err)
	}
	var out []Device
	top := true
	err = filepath.WalkDir(host, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // unplugged meanwhile
			return nil
		}
		if err != nil {
			return err
		}
		if e.IsDir() {
			if host == "/dev" && skippedDev(p) {
				return filepath.SkipDir
			}
			top = false
			return nil
		}
		d, ok, err := statDevice(p)
		if err != nil || (!ok && !top) {
			return err
		}
		if !ok {
			return errs.Newf(errs.Invalid, "%s is not a device", p)
		}
		d.Host, d.Target, d.Access = p, target+strings.TrimPrefix(p, host), access
		if p != "/dev/console" {
			out = append(out, d)
		}
		return nil
	})
	return out, err
}

// skippedDev names the directories of /dev that a container has its own of.
func skippedDev(p string) bool {
	switch p {
	case "/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.udev", "/dev/hugepages":
		return true
	}
	return false
}

func statDevice(p string) (Device, bool, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return Device{}, false, &os.PathError{Op: "lstat", Path: p, Err: err}
	}
	t := st.Mode & unix.S_IFMT
	if t != unix.S_IFCHR && t != unix.S_IFBLK {
		return Device{}, false, nil
	}
	return Device{Mode: st.Mode, Dev: st.Rdev, UID: st.Uid, GID: st.Gid}, true, nil
}

// Rules are the device cgroup's.
func Rules(cfg *cri.ContainerConfig, list []Device) *cgroup.Devices {
	if cfg.GetLinux().GetSecurityContext().GetPrivileged() {
		return &cgroup.Devices{All: true}
	}
	out := &cgroup.Devices{}
	for _, d := range list {
		if d.Access == "" {
			continue
		}
		kind := byte('c')
		if d.Mode&unix.S_IFMT == unix.S_IFBLK {
			kind = 'b'
		}
		out.Allow = append(out.Allow, cgroup.Device{
			Type: kind, Major: int64(unix.Major(d.Dev)), Minor: int64(unix.Minor(d.Dev)), Access: d.Access,
		})
	}
	return out
}

// MakeDev makes the container's /dev: a detached tmpfs with the standard entries and those of list that lie in /dev.
// The standard ones belong to owner, the others to whom they belong on the host.
func MakeDev(tty bool, list []Device, owner int) (*os.File, error) {
	root, err := detachedTmpfs("mode", "0755", "size", "65536k")
	if err != nil {
		return nil, fmt.Errorf("make /dev: %w", err)
	}
	if err := fillDev(root, tty, list, owner); err != nil {
		return nil, errors.Join(fmt.Errorf("make /dev: %w", err), root.Close())
	}
	return root, nil
}

func fillDev(root *os.File, tty bool, list []Device, owner int) error {
	dir := int(root.Fd())
	for _, n := range launch.DevNodes(tty) {
		if err := makeNode(dir, n); err != nil {
			return fmt.Errorf("%s: %w", n.Path, err)
		}
	}
	if err := giveDev(dir, launch.DevNodes(tty), owner); err != nil {
		return err
	}
	for _, d := range list {
		rel, ok := strings.CutPrefix(d.Target, "/dev/")
		if !ok {
			continue
		}
		if err := mkdirs(dir, path.Dir(rel), owner); err != nil {
			return fmt.Errorf("devices: %s: %w", d.Target, errs.OfPath(err))
		}
		err := makeNode(dir, launch.Node{Path: rel, Mode: d.Mode, Dev: d.Dev})
		if errors.Is(err, unix.EEXIST) { // a standard one; privileged containers ask for those too
			continue
		}
		if err == nil {
			err = unix.Fchownat(dir, rel, int(d.UID), int(d.GID), unix.AT_SYMLINK_NOFOLLOW)
		}
		if err != nil {
			return fmt.Errorf("devices: %s: %w", d.Target, errs.OfPath(err))
		}
	}
	return nil
}

func makeNode(dir int, n launch.Node) error {
	switch n.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return unix.Symlinkat(n.Link, dir, n.Path)
	case unix.S_IFDIR:
		if err := unix.Mkdirat(dir, n.Path, n.Mode&0o7777); err != nil {
			return err
		}
	default:
		if err := unix.Mknodat(dir, n.Path, n.Mode, int(n.Dev)); err != nil {
			return err
		}
	}
	return unix.Fchmodat(dir, n.Path, n.Mode&0o7777, 0) // whatever our umask is
}

// giveDev gives /dev itself and its entries to owner.
func giveDev(dir int, nodes []launch.Node, owner int) error {
	if owner == 0 {
		return nil
	}
	err := unix.Fchownat(dir, "", owner, owner, unix.AT_EMPTY_PATH)
	for _, n := range nodes {
		if err == nil {
			err = unix.Fchownat(dir, n.Path, owner, owner, unix.AT_SYMLINK_NOFOLLOW)
		}
	}
	return err
}

func mkdirs(dir int, rel string, owner int) error {
	if rel == "." {
		return nil
	}
	if err := mkdirs(dir, path.Dir(rel), owner); err != nil {
		return err
	}
	err := unix.Mkdirat(dir, rel, 0o755)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err == nil && owner != 0 {
		err = unix.Fchownat(dir, rel, owner, owner, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("make directory %s: %w", rel, err)
	}
	return nil
}

// detachedTmpfs makes a tmpfs that is mounted nowhere; options come in pairs. Needs Linux 5.2.
func detachedTmpfs(options ...string) (*os.File, error) {
	ctx, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(ctx)
	for i := 0; i+1 < len(options); i += 2 {
		if err := unix.FsconfigSetString(ctx, options[i], options[i+1]); err != nil {
			return nil, os.NewSyscallError("fsconfig", err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return os.NewFile(uintptr(fd), "tmpfs"), nil
}
