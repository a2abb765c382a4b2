// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"bytes"
	"errors"
	"slices"
	"strings"
)

// wanted are the controllers that a container's group should have, where the kernel and the groups above have them.
func wanted() []string {
	return []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc"}
}

// delegate makes the wanted controllers work in path, version 2: each group above, from the top, must list them in
// cgroup.subtree_control. When the parent lists all that the root has, those above do too.
//
// A controller that can't be handed down (the tree above belongs to somebody else, or has processes in an inner group, which
// the kernel allows only without controllers) is skipped: it is an error only for who sets its limits, and set says so.
func (m *Manager) delegate(h *hierarchy, path string) error {
	var want []string
	for _, c := range wanted() {
		if m.by[c] == h {
			want = append(want, c)
		}
	}
	end := strings.LastIndexByte(path, '/')
	missing, err := h.missing(path[:end], want)
	if err != nil || len(missing) == 0 {
		return err
	}
	for i := range path {
		if path[i] != '/' || i > end {
			continue
		}
		if missing, err = h.missing(path[:i], want); err != nil {
			return err
		}
		if len(missing) == 0 || h.write(path[:i], "cgroup.subtree_control", "+"+strings.Join(missing, " +")) == nil {
			continue
		}
		// All or nothing: one at a time finds those that work.
		want = slices.DeleteFunc(want, func(c string) bool {
			if !slices.Contains(missing, c) {
				return false
			}
			err := h.write(path[:i], "cgroup.subtree_control", "+"+c)
			if err != nil {
				m.warnOnce("cgroup controller "+c+" is not handed down", "group", h.dir+path[:i], "error", errors.Unwrap(err))
			}
			return err != nil
		})
	}
	return nil
}

// missing lists which of want a group does not hand down.
func (h *hierarchy) missing(path string, want []string) ([]string, error) {
	b, err := h.read(path, "cgroup.subtree_control")
	if err != nil {
		return nil, err
	}
	has := bytes.Fields(b)
	var missing []string
	for _, c := range want {
		if !slices.ContainsFunc(has, func(f []byte) bool { return string(f) == c }) {
			missing = append(missing, c)
		}
	}
	return missing, nil
}
