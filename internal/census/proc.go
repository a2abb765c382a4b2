// SPDX-License-Identifier: Apache-2.0

package census

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// vanished tells whether an error only says that a process or file went away meanwhile.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV)
}

// pids lists all processes.
func pids() ([]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	var ps []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			ps = append(ps, pid)
		}
	}
	return ps, err
}

func proc(pid int, file string) string {
	if pid == 0 {
		return "/proc/thread-self/" + file
	}
	return fmt.Sprintf("/proc/%d/%s", pid, file)
}

// process is a line of /proc/PID/stat.
type process struct {
	pid, parent int
	start       string
	comm, state string
}

// readStat parses proc_pid_stat(5); the name, in parentheses, may hold anything, parentheses too.
func readStat(pid int) (process, error) {
	b, err := os.ReadFile(proc(pid, "stat"))
	if err != nil {
		return process{}, err
	}
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return process{}, fmt.Errorf("parse /proc/%d/stat: %q", pid, b)
	}
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 20 {
		return process{}, fmt.Errorf("parse /proc/%d/stat: %q", pid, b)
	}
	parent, err := strconv.Atoi(f[1])
	return process{pid: pid, parent: parent, start: f[19], comm: string(b[open+1 : end]), state: f[0]}, err
}

// processes lists those that the options select. A process is its pid and start time.
func (t *taker) processes() error {
	if len(t.Descendants)+len(t.InCgroups)+len(t.InNamespaces) == 0 {
		return nil
	}
	ps, err := pids()
	if err != nil {
		return err
	}
	all := map[int]process{}
	for _, pid := range ps {
		switch p, err := readStat(pid); {
		case err == nil:
			all[pid] = p
		case !vanished(err):
			return err
		}
	}
	for _, p := range all {
		if t.descends(all, p) || t.inCgroup(p.pid) || t.inNamespace(p.pid) {
			cmdline, _ := os.ReadFile(proc(p.pid, "cmdline"))
			args := strings.TrimRight(strings.ReplaceAll(string(cmdline), "\x00", " "), " ")
			if len(args) > 100 {
				args = args[:100] + "…"
			}
			t.add("process", fmt.Sprintf("%d started at tick %s", p.pid, p.start), strings.TrimSpace(p.comm+" "+p.state+" "+args))
		}
	}
	return nil
}

func (t *taker) descends(all map[int]process, p process) bool {
	for range len(all) { // a parent that died while we read may make a loop
		if slices.Contains(t.Descendants, p.parent) {
			return true
		}
		up, ok := all[p.parent]
		if !ok {
			return false
		}
		p = up
	}
	return false
}

func (t *taker) inCgroup(pid int) bool {
	if len(t.InCgroups) == 0 {
		return false
	}
	b, _ := os.ReadFile(proc(pid, "cgroup"))
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, g := range t.InCgroups {
			if len(f) == 3 && strings.HasPrefix(f[2]+"/", strings.TrimSuffix(g, "/")+"/") {
				return true
			}
		}
	}
	return false
}

func (t *taker) inNamespace(pid int) bool {
	if len(t.InNamespaces) == 0 {
		return false
	}
	for _, kind := range []string{"net", "mnt", "pid", "ipc", "uts", "user", "cgroup", "time"} {
		if link, err := os.Readlink(proc(pid, "ns/"+kind)); err == nil && slices.Contains(t.InNamespaces, link) {
			return true
		}
	}
	return false
}

var number = regexp.MustCompile(`\[\d+\]`)

// descriptors counts by target; sockets, pipes and the like have no name that means anything later.
func (t *taker) descriptors() error {
	for name, pid := range t.FDsOf {
		d, err := os.Open(proc(pid, "fd"))
		if err != nil {
			return fmt.Errorf("list descriptors of %s: %w", name, err)
		}
		fds, err := d.Readdirnames(-1)
		self := strconv.Itoa(int(d.Fd()))
		if e := d.Close(); err != nil || e != nil {
			return fmt.Errorf("list descriptors of %s: %w", name, errors.Join(err, e))
		}
		for _, fd := range fds {
			target, err := os.Readlink(proc(pid, "fd/"+fd))
			if err != nil || (pid == 0 || pid == os.Getpid()) && fd == self {
				continue
			}
			t.add("descriptor", "of "+name+" to "+number.ReplaceAllString(target, ""), "fd "+fd+" "+target)
		}
	}
	return nil
}

// mounts lists mount tables without the numbers that differ from run to run.
func (t *taker) mounts() error {
	for name, pid := range t.MountsOf {
		b, err := os.ReadFile(proc(pid, "mountinfo"))
		if err != nil {
			return fmt.Errorf("list mounts of %s: %w", name, err)
		}
		for line := range strings.Lines(string(b)) {
			m, err := parseMount(line)
			if err != nil {
				return err
			}
			t.add("mount", fmt.Sprintf("of %s at %s: %s %s from %s %s", name, m.point, m.fstype, m.options, m.source, m.root), m.propagation)
		}
	}
	return nil
}

// mountLine is a line of proc_pid_mountinfo(5).
type mountLine struct{ root, point, options, propagation, fstype, source string }

func parseMount(line string) (mountLine, error) {
	before, after, ok := strings.Cut(line, " - ")
	f, g := strings.Fields(before), strings.Fields(after)
	if !ok || len(f) < 6 || len(g) < 2 {
		return mountLine{}, fmt.Errorf("parse mountinfo: %q", line)
	}
	return mountLine{root: f[3], point: f[4], options: f[5], propagation: strings.Join(f[6:], " "), fstype: g[0], source: g[1]}, nil
}

// netNamespaces looks at every process's namespace and descriptors, and once at each mount namespace's table.
func (t *taker) netNamespaces() error {
	if !t.NetNamespaces {
		return nil
	}
	ps, err := pids()
	if err != nil {
		return err
	}
	holders, tables := map[string][]string{}, map[string]bool{}
	hold := func(ns, who string) { holders[ns] = append(holders[ns], who) }
	for _, pid := range ps {
		if ns, err := os.Readlink(proc(pid, "ns/net")); err == nil {
			hold(ns, fmt.Sprintf("process %d", pid))
		}
		fds, _ := os.ReadDir(proc(pid, "fd"))
		for _, fd := range fds {
			if target, err := os.Readlink(proc(pid, "fd/"+fd.Name())); err == nil && strings.HasPrefix(target, "net:[") {
				hold(target, fmt.Sprintf("fd %s of process %d", fd.Name(), pid))
			}
		}
		if mnt, err := os.Readlink(proc(pid, "ns/mnt")); err == nil && !tables[mnt] {
			tables[mnt] = true
			b, _ := os.ReadFile(proc(pid, "mountinfo"))
			for line := range strings.Lines(string(b)) {
				if m, err := parseMount(line); err == nil && m.fstype == "nsfs" && strings.HasPrefix(m.root, "net:[") {
					hold(m.root, fmt.Sprintf("mount %s seen by process %d", m.point, pid))
				}
			}
		}
	}
	for ns, who := range holders {
		note := strings.Join(who[:min(len(who), 3)], ", ")
		t.add("network namespace", ns, "held by "+note)
	}
	return nil
}
