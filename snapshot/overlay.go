// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
	"crishim.dev/internal/kernel"
)

// Mount gives the root directory of a new detached overlay of the snapshot; the caller closes it. One descriptor is one launch
// attempt: before the next Mount of the same snapshot, close the last one and see its processes end. ReadOnly mounts are exempt.
func (s *Store) Mount(ctx context.Context, id string, m Mount) (*os.File, error) {
	layers, err := s.index.layersOf(id)
	if err != nil {
		return nil, fmt.Errorf("mount snapshot: %w", err)
	}
	unlock, err := s.keys.Lock(ctx, "snapshot "+id)
	if err != nil {
		return nil, fmt.Errorf("mount snapshot: %w", err)
	}
	defer unlock()
	o := overlay{userNS: m.UserNS, lowers: s.disk.lowers(layers)}
	if !m.ReadOnly {
		o.upper, o.work = s.disk.upper(id), s.disk.work(id)
		if err := s.disk.renew(o.work); err != nil {
			return nil, fmt.Errorf("mount snapshot %s: %w", id, err)
		}
		if m.UserNS != nil {
			if err := os.Chown(o.upper, m.UID, m.GID); err != nil {
				return nil, fmt.Errorf("mount snapshot: %w", err)
			}
		}
	}
	f, err := s.mounter.mount(o)
	if err != nil {
		return nil, fmt.Errorf("mount snapshot %s: %w", id, err)
	}
	return f, nil
}

// View mounts layers, bottom first, read-only, without a snapshot. Without layers it shows an empty directory.
func (s *Store) View(ctx context.Context, layers []Key) (*os.File, error) {
	defer s.Hold(layers...)()
	for _, k := range layers {
		if !s.Has(k) {
			return nil, errs.Newf(errs.NotFound, "mount layers: find layer %s", k)
		}
	}
	if len(layers) > MaxLayers {
		return nil, errs.Newf(errs.Invalid, "mount layers: %d of them; Linux stacks at most %d", len(layers), MaxLayers)
	}
	f, err := s.mounter.mount(overlay{lowers: s.disk.lowers(layers)})
	if err != nil {
		return nil, fmt.Errorf("mount layers: %w", err)
	}
	return f, ctx.Err()
}

// overlay is what one overlay is made of. An empty upper means read-only.
type overlay struct {
	lowers      []string // top first
	upper, work string
	userNS      *os.File
}

// mounter makes overlays by what the kernel offers. Safe for concurrent use.
type mounter struct {
	disk  *disk
	probe probe
}

// probe remembers what the kernel can do. Only conclusive answers are kept. The zero value is ready.
type probe struct {
	lowerPlus  atomic.Int32 // lowerdir+ of fsconfig(2): Linux 6.7
	mappedPlus atomic.Int32 // lowerdir+ of a detached id-mapped mount, by descriptor
	volatile   atomic.Int32 // the option volatile: Linux 5.10
}

const (
	unknown int32 = iota
	yes
	no
)

// mount takes the quick way where the kernel has it.
func (m *mounter) mount(o overlay) (*os.File, error) {
	if err := m.fillUp(&o); err != nil {
		return nil, err
	}
	plus, err := m.probe.hasLowerPlus()
	if err != nil {
		return nil, err
	}
	if plus && (o.userNS == nil || m.probe.mappedPlus.Load() != no) {
		f, err := m.detached(o)
		if err == nil || o.userNS == nil || m.probe.mappedPlus.Load() == yes {
			return f, err
		}
		m.probe.mappedPlus.Store(no)
		if o.upper != "" { // the attempt may have left its mark
			if err := m.disk.renew(o.work); err != nil {
				return nil, err
			}
		}
	}
	return m.inWorker(o)
}

// fillUp adds empty layers: overlayfs refuses an overlay without any, and a read-only one of a single directory.
func (m *mounter) fillUp(o *overlay) error {
	need := 1
	if o.upper == "" {
		need = 2
	}
	for i := 0; len(o.lowers) < need; i++ {
		dir := fmt.Sprintf("%s/empty%d", m.disk.dir, i)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		o.lowers = append(o.lowers, dir)
	}
	return nil
}

// hasLowerPlus asks the kernel once.
func (p *probe) hasLowerPlus() (bool, error) {
	if v := p.lowerPlus.Load(); v != unknown {
		return v == yes, nil
	}
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false, errs.Newf(errs.Unsupported, "open overlay file system (CONFIG_OVERLAY_FS, Linux 5.11): %w", err)
	}
	_ = unix.Close(fd)
	if !kernel.TakesOption("overlay", "lowerdir+", "/") {
		p.lowerPlus.Store(no)
		return false, nil
	}
	p.lowerPlus.Store(yes)
	return true, nil
}

// detached makes the overlay through fsopen(2), without a mount table of any kind.
func (m *mounter) detached(o overlay) (*os.File, error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen overlay", err)
	}
	defer unix.Close(fd)
	closeLowers, err := addLowers(fd, o)
	defer closeLowers()
	if err != nil {
		return nil, fsError(fd, "add layer", err)
	}
	if o.upper != "" {
		for _, p := range [][2]string{{"upperdir", o.upper}, {"workdir", o.work}} {
			if err := setDir(fd, p[0], p[1]); err != nil {
				return nil, fsError(fd, "set "+p[0], err)
			}
		}
		m.setVolatile(fd)
	}
	if err := unix.FsconfigSetString(fd, "source", "overlay"); err != nil {
		return nil, fsError(fd, "set source", err)
	}
	if err := unix.FsconfigSetString(fd, "index", "off"); err != nil {
		return nil, fsError(fd, "set index=off", err)
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, fsError(fd, "create overlay", err)
	}
	made, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fsmount overlay", err)
	}
	if o.userNS != nil {
		m.probe.mappedPlus.Store(yes)
	}
	return os.NewFile(uintptr(made), "overlay"), nil
}

// setVolatile asks for no syncing: after a power cut no container continues on its writable layer.
func (m *mounter) setVolatile(fs int) {
	if m.probe.volatile.Load() == no {
		return
	}
	if err := unix.FsconfigSetFlag(fs, "volatile"); err != nil {
		m.probe.volatile.Store(no)
		return
	}
	m.probe.volatile.Store(yes)
}

// maxValue is the longest string fsconfig(2) takes, its zero included.
const maxValue = 256

// addLowers adds the layers, top first. The clones of id-mapped ones must stay open until the overlay is made: a detached mount
// ends with its last descriptor.
func addLowers(fs int, o overlay) (closeAll func(), err error) {
	var open []int
	closeAll = func() {
		for _, fd := range open {
			_ = unix.Close(fd)
		}
	}
	for _, dir := range o.lowers {
		if o.userNS == nil {
			if err := setDir(fs, "lowerdir+", dir); err != nil {
				return closeAll, err
			}
			continue
		}
		fd, err := mappedClone(dir, o.userNS)
		if err != nil {
			return closeAll, err
		}
		open = append(open, fd)
		if err := unix.FsconfigSetFd(fs, "lowerdir+", fd); err != nil {
			return closeAll, err
		}
	}
	return closeAll, nil
}

// setDir sets an option to a directory: by its path, which is what the kernel then shows, or through /proc/self/fd if the path is
// too long or has characters with a meaning to overlayfs.
func setDir(fs int, key, dir string) error {
	if len(dir) < maxValue && !strings.ContainsAny(dir, `\:,`) {
		return unix.FsconfigSetString(fs, key, dir)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.FsconfigSetString(fs, key, fmt.Sprintf("/proc/self/fd/%d", fd))
}

// mappedClone makes a detached, read-only mount of dir whose owners are mapped by the user namespace.
func mappedClone(dir string, userNS *os.File) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("open_tree "+dir, err)
	}
	attr := unix.MountAttr{
		Attr_set:  unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_RDONLY,
		Userns_fd: uint64(userNS.Fd()),
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return -1, errors.Join(errs.Newf(errs.Unsupported, "map the owners of %s (id-mapped mounts under overlay need Linux 5.19): %w", dir, err), unix.Close(fd))
	}
	return fd, nil
}

// fsError adds what the kernel wrote into the file system context's log.
func fsError(fs int, what string, err error) error {
	var notes []string
	buf := make([]byte, 512)
	for range 8 {
		n, e := unix.Read(fs, buf)
		if e != nil || n <= 0 {
			break
		}
		notes = append(notes, strings.TrimSpace(string(buf[:n])))
	}
	if len(notes) > 0 {
		return fmt.Errorf("%s: %w (kernel: %s)", what, err, strings.Join(notes, "; "))
	}
	return fmt.Errorf("%s: %w", what, err)
}
