// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// point is one mount of a container: a standard one or a volume.
type point struct {
	target    string
	std, file bool
	// fd is the detached mount, unless make makes it; finish, if set, runs when it is attached.
	fd     FD
	make   func(p *prog) reg
	finish func(p *prog, m reg)
}

// parts are the components of an absolute, clean path; none for "/".
func parts(target string) []string {
	return strings.FieldsFunc(target, func(r rune) bool { return r == '/' })
}

// below says whether target is inside dir (and not dir itself).
func below(target, dir string) bool {
	return strings.HasPrefix(target, strings.TrimSuffix(dir, "/")+"/") && target != dir
}

// procMountable are the only files in /proc that a volume may cover: each shows the container its own limits (lxcfs).
// Anything else there could deceive what reads it, or undo a masked path. Runc keeps the same list.
const procMountable = " /proc/cpuinfo /proc/diskstats /proc/meminfo /proc/stat /proc/swaps /proc/uptime /proc/loadavg /proc/slabinfo " +
	"/proc/net/dev /proc/sys/kernel/ns_last_pid /proc/sys/crypto/fips_enabled "

// checkTarget says why target can't be mounted on.
func checkTarget(target string) error {
	switch {
	case !path.IsAbs(target) || strings.ContainsRune(target, 0):
		return errs.Newf(errs.Invalid, "mount target %q: not an absolute path", target)
	case target == "/":
		return errs.Newf(errs.Invalid, "mount target %q: it is the root file system", target)
	case below(target, "/proc") && !strings.Contains(procMountable, " "+target+" "):
		return errs.Newf(errs.Invalid, "mount target %q: not inside /proc", target)
	}
	return nil
}

// points lists a container's mounts, each after those it lies in.
func points(d *Description, f Facts) ([]point, error) {
	var volumes []point
	given := map[string]bool{}
	for _, v := range d.Mounts {
		target := path.Clean(v.Target)
		if err := checkTarget(target); err != nil {
			return nil, err
		}
		given[target] = true
		volumes = append(volumes, point{target: target, file: v.File, fd: v.FD})
	}
	var all []point
	for _, s := range standard(d, f) {
		if given[s.target] || (given["/dev"] && below(s.target, "/dev") && s.fd == NoFD) {
			continue
		}
		s.std = true
		all = append(all, s)
	}
	all = append(all, volumes...)
	slices.SortStableFunc(all, func(a, b point) int { return len(parts(a.target)) - len(parts(b.target)) })
	return all, nil
}

// holder is the mount in points[:i] that target lies in by its name, or nil for the root file system.
func holder(points []point, target string) *point {
	var h *point
	for i := range points {
		m := &points[i]
		if below(target, m.target) && (h == nil || len(m.target) >= len(h.target)) {
			h = m
		}
	}
	return h
}

// madeInside says from which of its components on the program makes target itself: those of the mount that it lies in exist.
// -1: nothing is to be made, the caller has (Targets) or the mount brings it.
//
// A target whose name is not below another mount may still be, through a link of the image (/var/run -> /run): after any
// volume that is a directory the program looks at every component.
func madeInside(before []point, target string, std bool) int {
	h := holder(before, target)
	switch {
	case h != nil && h.std && std:
		return -1
	case h != nil:
		return len(parts(h.target))
	case !std && slices.ContainsFunc(before, func(m point) bool { return !m.std && !m.file }):
		return 0
	}
	return -1
}

// Targets lists what the caller must make in the root file system before the launch, parents first:
// directories 0755 and empty files 0644, owned by the container's root. The working directory is among them.
func Targets(d *Description) ([]Target, error) {
	all, err := points(d, Facts{})
	if err != nil {
		return nil, err
	}
	var targets []Target
	for i, m := range all {
		if holder(all[:i], m.target) == nil {
			targets = append(targets, Target{Path: m.target, File: m.file})
		}
	}
	if cwd := path.Clean(d.Cwd); path.IsAbs(cwd) && cwd != "/" && holder(all, cwd) == nil {
		targets = append(targets, Target{Path: cwd})
	}
	return targets, nil
}

// mountAll attaches the mounts in list below root, where those in before are already.
func (p *prog) mountAll(root arg, before, list []point) {
	for i := range list {
		m := &list[i]
		if from := madeInside(slices.Concat(before, list[:i]), m.target, m.std); from >= 0 {
			p.step("make mount point " + m.target)
			p.makePath(root, parts(m.target), from, m.file, exists)
		}
		p.step("mount " + m.target)
		p.mountOne(root, m)
	}
}

func (p *prog) mountOne(root arg, m *point) {
	flags := unix.O_PATH
	if !m.file {
		flags |= unix.O_DIRECTORY
	}
	t := p.target(root, m, flags)
	if m.make == nil {
		p.attach(p.fd(m.fd), t.arg())
		p.close(t)
		return
	}
	detached := m.make(p)
	p.attach(detached.arg(), t.arg())
	p.close(t)
	if m.finish != nil {
		m.finish(p, detached)
	}
	p.close(detached)
}

// target opens a mount point. A link must not be able to say where proc and sysfs are: paths in them are masked by their usual names.
func (p *prog) target(root arg, m *point, flags int) reg {
	if m.std && (m.target == "/proc" || m.target == "/sys") {
		return p.at(nil, root, m.target[1:], flags|unix.O_NOFOLLOW)
	}
	return p.in(nil, root, m.target, flags)
}

// makePath makes the components of a path from number from on, each in the directory that those before it lead to.
func (p *prog) makePath(root arg, names []string, from int, file bool, ignore []unix.Errno) {
	for i := from; i < len(names); i++ {
		dir := p.in(opening(ignore), root, "/"+strings.Join(names[:i], "/"), unix.O_PATH|unix.O_DIRECTORY)
		p.ifOpen(dir, func() {
			p.owned(func() {
				if file && i == len(names)-1 {
					p.try(ignore, unix.SYS_MKNODAT, dir.arg(), p.str(names[i]), imm(unix.S_IFREG|0o644), imm(0))
				} else {
					p.try(ignore, unix.SYS_MKDIRAT, dir.arg(), p.str(names[i]), imm(0o755))
				}
			})
		})
		p.close(dir)
	}
}

// owned makes files as p.owner: on id-mapped mounts the host's root has no id.
func (p *prog) owned(body func()) {
	as := func(id uint32) {
		p.do(unix.SYS_SETFSGID, imm(uint64(id)))
		p.do(unix.SYS_SETFSUID, imm(uint64(id)))
	}
	if p.owner == 0 {
		body()
		return
	}
	as(p.owner)
	body()
	as(0)
}

// opening are those of the errnos ignored by makePath that opening a directory may give.
func opening(ignore []unix.Errno) []unix.Errno {
	if slices.Contains(ignore, unix.EACCES) {
		return []unix.Errno{unix.EACCES}
	}
	return nil
}
