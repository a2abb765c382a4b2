// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"path"
	"strings"

	"crishim.dev/internal/errs"
)

// Pod gives the path of a pod's group.
//
// parent is the request's cgroup_parent. The kubelet sends a path with the cgroupfs driver
// (/kubepods/burstable/pod<uid>) and the slice's own name with the systemd driver
// (kubepods-burstable-pod<uid>.slice, which lies below the slices that its dashes spell); each is the pod's group itself.
// Without a parent the pod gets a group of its own below the configured one. A malformed parent is errs.Invalid.
func (m *Manager) Pod(parent, sandboxID string) (string, error) {
	own := parent == ""
	if own {
		parent = m.parent
	}
	if m.driver == Systemd {
		slice := path.Base(parent)
		if own {
			slice = strings.TrimSuffix(slice, ".slice") + "-" + sandboxID + ".slice"
		}
		return slicePath(slice)
	}
	if strings.HasSuffix(parent, ".slice") && !strings.Contains(parent, "/") {
		return "", errs.Newf(errs.Invalid, "check cgroup_parent: %q is a systemd slice, but the cgroup driver is %s", parent, Cgroupfs)
	}
	p := path.Clean("/" + parent)
	if own {
		p = path.Join(p, sandboxID)
	}
	if err := checkPath(p); err != nil {
		return "", err
	}
	if strings.Contains("/"+parent+"/", "/../") {
		return "", errs.Newf(errs.Invalid, "check cgroup_parent: %q contains \"..\"", parent)
	}
	return p, nil
}

// Container gives the path of a container's group in its pod's: the leaf that the kubelet matches statistics by.
func (m *Manager) Container(podPath, id string) string {
	if m.driver == Systemd {
		return podPath + "/" + m.prefix + "-" + id + ".scope"
	}
	return podPath + "/" + id
}

// OCIPath gives a container's group in the form that OCI runtimes take as linux.cgroupsPath: the path itself, or
// "slice:prefix:id" for the systemd driver.
func (m *Manager) OCIPath(podPath, id string) string {
	if m.driver == Systemd {
		return path.Base(podPath) + ":" + m.prefix + ":" + id
	}
	return m.Container(podPath, id)
}

// slicePath spells out where systemd puts a slice: a-b.slice is /a.slice/a-b.slice, -.slice is the root (systemd.slice(5)).
func slicePath(slice string) (string, error) {
	name, ok := strings.CutSuffix(slice, ".slice")
	bad := !ok || name == "" || strings.ContainsAny(slice, "/\n\x00") || len(slice) > 255
	p, prefix := "", ""
	if name != "-" {
		for part := range strings.SplitSeq(name, "-") {
			bad = bad || part == ""
			prefix += part
			p += "/" + prefix + ".slice"
			prefix += "-"
		}
	}
	if bad || p == "" {
		return "", errs.Newf(errs.Invalid, "check cgroup_parent: %q is not the name of a systemd slice", slice)
	}
	return p, nil
}

// checkPath refuses what is no path of a group: the root (whose settings are never touched), relative paths, "..", names that
// the kernel refuses or that would read as a control file.
func checkPath(p string) error {
	if !strings.HasPrefix(p, "/") || p == "/" || len(p) > 4000 || path.Clean(p) != p || strings.ContainsAny(p, "\n\x00") {
		return errs.Newf(errs.Invalid, "check cgroup path: %q is not an absolute path below the root", p)
	}
	for part := range strings.SplitSeq(p[1:], "/") {
		if len(part) > 255 || strings.HasPrefix(part, "cgroup.") {
			return errs.Newf(errs.Invalid, "check cgroup path: %q can't be the name of a group", part)
		}
	}
	return nil
}
