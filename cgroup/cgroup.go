// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// The drivers: who makes the groups, and how they are named.
const (
	// Cgroupfs makes directories itself.
	Cgroupfs = "cgroupfs"
	// Systemd asks systemd for slices and scopes.
	Systemd = "systemd"
)

// Options are the choices of a Manager; the zero value is good.
type Options struct {
	// Driver is Cgroupfs, Systemd, or "" for what PID 1 is.
	Driver string
	// Root is where cgroups are mounted: the cgroup2 mount itself or the directory with the version 1 mounts.
	// Default: /sys/fs/cgroup.
	Root string
	// Parent is the parent of pods whose request names none: a path (cgroupfs; default /shim) or a slice's name
	// (systemd; default shim.slice).
	Parent string
	// Prefix stands before the container's id in the name of a systemd scope. Default: shim.
	Prefix string
	// Units talks to systemd; without it the systemd driver can name groups but not make them.
	Units Units
	// Log receives what is degraded, once each. Default: discard.
	Log *slog.Logger
}

// Manager knows the hierarchies of this host. Safe for concurrent use.
type Manager struct {
	driver, parent, prefix string
	version                int
	units                  Units
	log                    *slog.Logger
	// all lists every hierarchy that a process joins; by has the one of each controller.
	all []*hierarchy
	by  map[string]*hierarchy

	// mu guards warned.
	mu     sync.Mutex
	warned map[string]bool
}

// New looks at what is mounted below o.Root.
func New(o Options) (*Manager, error) {
	if o.Root == "" {
		o.Root = "/sys/fs/cgroup"
	}
	root, err := filepath.EvalSymlinks(o.Root)
	if err != nil {
		return nil, fmt.Errorf("find cgroup mount: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: root, Err: err}
	}
	if fs.Type == unix.CGROUP2_SUPER_MAGIC {
		h, err := openHierarchy(root, true, nil)
		if err != nil {
			return nil, err
		}
		return newManager(o, 2, []*hierarchy{h})
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	found, err := findMounts(f, root)
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	var hs []*hierarchy
	for _, mnt := range found {
		h, err := openHierarchy(mnt.dir, mnt.v2, mnt.controllers)
		if err != nil {
			return nil, errors.Join(err, closeAll(hs))
		}
		hs = append(hs, h)
	}
	if len(hs) == 0 {
		return nil, errs.Newf(errs.Unsupported, "find cgroup hierarchies: nothing is mounted on or below %s", root)
	}
	return newManager(o, 1, hs)
}

// coreFiles stands in Manager.by for the cgroup2 hierarchy itself, hybrid or not.
const coreFiles = "core"

// newManager makes a Manager of hierarchies that it then owns.
func newManager(o Options, version int, hs []*hierarchy) (*Manager, error) {
	m := &Manager{
		driver: o.Driver, parent: o.Parent, prefix: o.Prefix, version: version, units: o.Units, log: o.Log,
		all: hs, by: map[string]*hierarchy{}, warned: map[string]bool{},
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if m.prefix == "" {
		m.prefix = "shim"
	}
	if m.driver == "" {
		m.driver = DefaultDriver()
	}
	if m.parent == "" {
		m.parent = map[string]string{Cgroupfs: "/shim", Systemd: "shim.slice"}[m.driver]
	}
	for _, h := range hs {
		controllers := h.controllers
		if version == 2 {
			b, err := h.read("", "cgroup.controllers")
			if err != nil {
				return nil, errors.Join(err, m.Close())
			}
			for c := range bytes.FieldsSeq(b) {
				controllers = append(controllers, string(c))
			}
		}
		if h.v2 {
			controllers = append(controllers, coreFiles)
		}
		for _, c := range controllers {
			m.by[c] = h
		}
	}
	if m.driver != Cgroupfs && m.driver != Systemd {
		return nil, errors.Join(errs.Newf(errs.Invalid, "choose cgroup driver: %q is neither %s nor %s", m.driver, Cgroupfs, Systemd), m.Close())
	}
	if m.driver == Systemd && m.units != nil && version == 1 {
		return nil, errors.Join(errs.Newf(errs.Unsupported, "choose cgroup driver: %s needs cgroup v2, and this host has v1: use %s, for the kubelet too", Systemd, Cgroupfs), m.Close())
	}
	if _, err := m.Pod("", "x"); err != nil {
		return nil, errors.Join(fmt.Errorf("check default cgroup parent: %w", err), m.Close())
	}
	return m, nil
}

// DefaultDriver is Systemd where systemd is process 1, which is where this directory exists (sd_booted(3)).
func DefaultDriver() string {
	if fi, err := os.Lstat("/run/systemd/system"); err == nil && fi.IsDir() {
		return Systemd
	}
	return Cgroupfs
}

// Close gives back the descriptors of the mount points.
func (m *Manager) Close() error { return closeAll(m.all) }

func closeAll(hs []*hierarchy) error {
	var err error
	for _, h := range hs {
		err = errors.Join(err, h.Close())
	}
	return err
}

// Driver is Cgroupfs or Systemd.
func (m *Manager) Driver() string { return m.driver }

// Version is 1 (hybrid too) or 2.
func (m *Manager) Version() int { return m.version }

// Has tells whether a controller ("memory", "hugetlb", …) can be used on this host.
func (m *Manager) Has(controller string) bool { return m.by[controller] != nil }

// warnOnce logs one degradation, the first time only.
func (m *Manager) warnOnce(msg string, args ...any) {
	m.mu.Lock()
	seen := m.warned[msg]
	m.warned[msg] = true
	m.mu.Unlock()
	if !seen {
		m.log.Warn(msg, args...)
	}
}

var _ io.Closer = (*Manager)(nil)
