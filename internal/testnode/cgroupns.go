// SPDX-License-Identifier: Apache-2.0

package testnode

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// EnvCgroupNS, when it is set, gives the node a cgroup namespace with the hierarchies mounted anew inside, so that it sees
// its own part as the whole tree. A kubelet needs that: it makes its groups at the root.
const EnvCgroupNS = "SHIM_NODE_CGROUPNS"

// ownCgroups moves this process into groups of the node's name and makes them the roots of a new cgroup namespace. The
// mounts of the machine are left out of this mount namespace only: it is a slave, so they stay where they are elsewhere.
func ownCgroups() error {
	hierarchies, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if err != nil {
		return err
	}
	var controllers []string
	for _, h := range hierarchies {
		dir := filepath.Dir(h)
		if _, err := os.Stat(filepath.Join(dir, "cgroup.subtree_control")); err == nil {
			continue // the version 2 hierarchy of a hybrid machine; a kubelet takes it for a machine of that version
		}
		if err := joinGroup(filepath.Join(dir, filepath.Base(Dir()))); err != nil {
			return err
		}
		controllers = append(controllers, filepath.Base(dir))
	}
	if len(controllers) == 0 {
		return ownUnified()
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make cgroup namespace: %w", err)
	}
	if err := unix.Unmount("/sys/fs/cgroup", unix.MNT_DETACH); err != nil { //nolint:forbidigo // host path in a mount namespace of our own
		return fmt.Errorf("leave the machine's control groups: %w", err)
	}
	if err := unix.Mount("tmpfs", "/sys/fs/cgroup", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil { //nolint:forbidigo // host path in a mount namespace of our own
		return fmt.Errorf("mount control groups: %w", err)
	}
	for _, c := range controllers {
		dir, option := "/sys/fs/cgroup/"+c, c
		if c == "systemd" {
			option = "none,name=systemd"
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("mount control groups: %w", err)
		}
		if err := unix.Mount("cgroup", dir, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, option); err != nil { //nolint:forbidigo // host path in a mount namespace of our own
			return fmt.Errorf("mount control groups of %s: %w", c, err)
		}
	}
	return nil
}

// ownUnified is ownCgroups for a machine with version 2 only.
func ownUnified() error {
	if err := joinGroup(filepath.Join("/sys/fs/cgroup", filepath.Base(Dir()))); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make cgroup namespace: %w", err)
	}
	if err := unix.Unmount("/sys/fs/cgroup", unix.MNT_DETACH); err != nil { //nolint:forbidigo // host path in a mount namespace of our own
		return fmt.Errorf("leave the machine's control groups: %w", err)
	}
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil { //nolint:forbidigo // host path in a mount namespace of our own
		return fmt.Errorf("mount control groups: %w", err)
	}
	return nil
}

// joinGroup makes a group and moves this process into it.
func joinGroup(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("make control group: %w", err)
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} { // empty in a new group of version 1, which nobody may join then
		parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil || strings.TrimSpace(string(parent)) == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, file), parent, 0); err != nil {
			return fmt.Errorf("set %s: %w", file, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("join control group: %w", err)
	}
	return nil
}
