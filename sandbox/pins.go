// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// shmSize is what Kubernetes runtimes give /dev/shm: 64 MiB.
const shmSize = "64m"

// pin bind-mounts the namespace behind ns over a new file, which keeps it alive without a process.
func (m *Manager) pin(id ID, kind string, ns *os.File) error {
	path := m.o.Layout.Pin(id, kind)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return fmt.Errorf("pin %s namespace: %w", kind, err)
	}
	_ = f.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), path, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("pin %s namespace: %w", kind, err), os.Remove(path))
	}
	return nil
}

// mountShm mounts the pod's /dev/shm, which lives as long as the pod's namespaces.
func (m *Manager) mountShm(r *record) error {
	path := m.o.Layout.Shm(r.ID)
	ids, _ := users(r.Config)
	if err := os.Mkdir(path, 0o700); err != nil {
		return fmt.Errorf("mount /dev/shm: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("shm", path, "tmpfs", flags, fmt.Sprintf("mode=1777,size=%s,uid=%[2]d,gid=%[2]d", shmSize, ids.Host)); err != nil {
		return errors.Join(fmt.Errorf("mount /dev/shm: %w", err), os.Remove(path))
	}
	return nil
}

// unpinAll takes away every pin and mount of the pod but that of the kind keep; what is not there is fine. Umount alone is not enough: copies of the mount
// in other mount namespaces would keep the namespace alive; unlinking the file under the mount ends them too.
func (m *Manager) unpinAll(id ID, keep string) error {
	if keep == "" {
		_ = os.Remove(m.netnsLink(id))
	}
	dir := m.o.Layout.Pins(id)
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unpin namespaces: %w", err)
	}
	var all []error
	for _, e := range list {
		if e.Name() == keep {
			continue
		}
		path := filepath.Join(dir, e.Name())
		for {
			err = unix.Unmount(path, unix.MNT_DETACH)
			if err != nil {
				break
			}
		}
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			all = append(all, fmt.Errorf("unpin %s: %w", e.Name(), err))
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = append(all, fmt.Errorf("unpin %s: %w", e.Name(), err))
		}
	}
	if len(all) == 0 && keep == "" {
		all = append(all, os.Remove(dir))
	}
	return errors.Join(all...)
}

// netnsLink is where `ip netns` finds the pod's network namespace; empty when links are not wanted.
func (m *Manager) netnsLink(id ID) string {
	if m.o.NetNSLinks == "" {
		return ""
	}
	return filepath.Join(m.o.NetNSLinks, "shim-"+string(id[:min(len(id), 12)]))
}

// linkNetNS shows the namespace to `ip netns`; a convenience for people, so a host without the directory goes without.
func (m *Manager) linkNetNS(id ID) {
	if m.o.NetNSLinks == "" {
		return
	}
	_ = os.MkdirAll(m.o.NetNSLinks, 0o755)
	_ = os.Symlink(m.o.Layout.Pin(id, "net"), m.netnsLink(id))
}
