// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Hierarchy is a mounted cgroup v1 hierarchy.
type Hierarchy struct {
	// Dir is the last component of its mount point: "cpu,cpuacct".
	Dir string
	// Controllers are attached to it; none to a named one.
	Controllers []string
	// Name is that of a named hierarchy: "systemd".
	Name string
}

// ParseRelease reads major and minor version from uname's release.
func ParseRelease(release string) (major, minor int, err error) {
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return 0, 0, fmt.Errorf("parse kernel version %q: %w", release, err)
	}
	return major, minor, nil
}

// ParseCaps reads the capabilities that a process has and can pass on from its /proc/PID/status: permitted and bounding.
func ParseCaps(r io.Reader) (uint64, error) {
	set, found := ^uint64(0), 0
	s := bufio.NewScanner(r)
	for s.Scan() {
		name, value, _ := strings.Cut(s.Text(), ":")
		if name != "CapPrm" && name != "CapBnd" {
			continue
		}
		v, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			return 0, fmt.Errorf("parse %s: %w", name, err)
		}
		set, found = set&v, found+1
	}
	if err := s.Err(); err != nil {
		return 0, fmt.Errorf("read process status: %w", err)
	}
	if found != 2 {
		return 0, fmt.Errorf("parse process status: no CapPrm and CapBnd")
	}
	return set, nil
}

// ParseHierarchies finds the cgroup v1 hierarchies in a mountinfo file (proc_pid_mountinfo(5)), each once, in its order.
func ParseHierarchies(r io.Reader) ([]Hierarchy, error) {
	var out []Hierarchy
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		before, after, ok := strings.Cut(s.Text(), " - ")
		mount, super := strings.Fields(before), strings.Fields(after)
		if !ok || len(mount) < 5 || len(super) < 3 || super[0] != "cgroup" {
			continue
		}
		h := Hierarchy{Dir: path.Base(mount[4])}
		for o := range strings.SplitSeq(super[2], ",") {
			key, value, assigned := strings.Cut(o, "=")
			switch {
			case key == "name" && assigned:
				h.Name = value
			case !assigned && !slices.Contains(hierarchyFlags(), o):
				h.Controllers = append(h.Controllers, o)
			}
		}
		same := func(x Hierarchy) bool { return x.Name == h.Name && slices.Equal(x.Controllers, h.Controllers) }
		if !slices.ContainsFunc(out, same) {
			out = append(out, h)
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return out, nil
}

// hierarchyFlags are the options of a v1 hierarchy that name no controller (Linux kernel/cgroup/cgroup-v1.c).
func hierarchyFlags() []string {
	return []string{"rw", "ro", "none", "all", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods", "nofavordynmods"}
}
