// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crishim.dev/container"
	"crishim.dev/internal/kernel"
	"crishim.dev/sandbox"
	"crishim.dev/server"
)

// checker answers `shim check`. It only looks.
type checker struct {
	sandboxes  server.Sandboxes
	containers server.Containers
	network    interface {
		Status() error
		// Findings tells what others on the host do to pod traffic.
		Findings() ([]string, error)
	}
	// proc is /proc.
	proc string
}

// Check implements server.Checker: the kernel first, then the store against it.
func (c *checker) Check(context.Context) []server.Finding {
	var out []server.Finding
	facts, err := kernel.Probe()
	if err != nil {
		out = append(out, server.Finding{Level: server.Bad, Subject: "kernel", Detail: err.Error()})
	} else {
		out = append(out, c.kernel(facts)...)
	}
	out = append(out, c.cgroups(facts)...)
	out = append(out, c.traffic()...)
	return append(out, c.store()...)
}

// traffic says whether pods can be attached, and what becomes of their packets.
func (c *checker) traffic() []server.Finding {
	const subject = "network"
	if err := c.network.Status(); err != nil {
		return []server.Finding{{Level: server.Note, Subject: subject, Detail: err.Error()}}
	}
	texts, err := c.network.Findings()
	if err != nil {
		return []server.Finding{{Level: server.Note, Subject: subject, Detail: err.Error()}}
	}
	if len(texts) == 0 {
		return []server.Finding{{Subject: subject}}
	}
	var out []server.Finding
	for _, text := range texts {
		out = append(out, server.Finding{Level: server.Bad, Subject: subject, Detail: text})
	}
	return out
}

// need is one feature of the kernel: what is missing without it, and whether pods run at all then.
type need struct {
	subject string
	has     bool
	without string
	level   server.Level
}

func findings(needs []need) []server.Finding {
	var out []server.Finding
	for _, n := range needs {
		f := server.Finding{Subject: n.subject}
		if !n.has {
			f.Level, f.Detail = n.level, n.without
		}
		out = append(out, f)
	}
	return out
}

func (c *checker) kernel(f kernel.Facts) []server.Finding {
	needs := []need{
		{"kernel: Linux 5.6 or later", f.AtLeast(5, 6), f.Release + " has no openat2 and no pidfd_getfd", server.Bad},
		{"kernel: mount_setattr (5.12)", f.Features.MountSetattr, "no recursive read-only mounts, no user namespaces", server.Note},
		{"kernel: clone into a cgroup (5.7)", f.Features.CloneIntoCgroup || f.CgroupVersion == 1, "containers are moved into their cgroups after the fork", server.Note},
		{"kernel: memfd exec seals (6.3)", f.Features.MemfdExec, "the keeper's binary is sealed without MFD_EXEC", server.Note},
		{"kernel: lowerdir+ (6.7)", f.Features.LowerdirPlus, "overlays are mounted by mount(2)", server.Note},
		{"kernel: seccomp filters", f.Features.Seccomp, "pods that ask for a seccomp profile are refused", server.Note},
		{"kernel: AppArmor", f.AppArmor, "pods that ask for a profile are refused", server.Note},
		{"kernel: SELinux", f.SELinux, "labels have no effect", server.Note},
	}
	for _, ns := range []string{"mnt", "net", "ipc", "uts", "pid", "cgroup"} {
		_, err := os.Lstat(filepath.Join(c.proc, "self/ns", ns))
		needs = append(needs, need{"kernel: " + ns + " namespaces", err == nil, "not in this kernel", server.Bad})
	}
	_, err := os.Lstat(filepath.Join(c.proc, "self/ns/user"))
	needs = append(needs, need{"kernel: user namespaces", err == nil, "pods with hostUsers: false are refused", server.Note})
	have, err := os.ReadFile(filepath.Join(c.proc, "filesystems"))
	for _, fs := range []string{"overlay", "tmpfs", "proc", "sysfs", "devpts", "mqueue"} {
		known := err == nil && slices.Contains(strings.Fields(string(have)), fs)
		needs = append(needs, need{"kernel: file system " + fs, known, "not in " + c.proc + "/filesystems (a module may have to be loaded)", server.Bad})
	}
	return findings(needs)
}

// cgroups checks for the controllers that limits are made with.
func (c *checker) cgroups(f kernel.Facts) []server.Finding {
	var have []string
	for _, h := range f.Hierarchies {
		have = append(have, h.Controllers...)
	}
	if f.CgroupVersion == 2 {
		data, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		if err != nil {
			return []server.Finding{{Level: server.Bad, Subject: "cgroup", Detail: err.Error()}}
		}
		have = strings.Fields(string(data))
	}
	var needs []need
	for _, n := range []struct {
		name  string
		level server.Level
	}{{"cpu", server.Bad}, {"memory", server.Bad}, {"pids", server.Bad}, {"cpuset", server.Note}, {"hugetlb", server.Note}} {
		needs = append(needs, need{"cgroup: controller " + n.name, slices.Contains(have, n.name), "its limits can't be set", n.level})
	}
	return findings(needs)
}

// store compares what is recorded as alive with what is.
func (c *checker) store() []server.Finding {
	out := []server.Finding{}
	bad := func(kind, id, detail string) {
		out = append(out, server.Finding{Level: server.Bad, Subject: "store: " + kind + " " + short(id), Detail: detail})
	}
	pods := map[sandbox.ID]bool{}
	for _, p := range c.sandboxes.List() {
		pods[p.ID] = true
		if detail := c.pod(p); detail != "" && c.stillReady(p.ID) {
			bad("pod", string(p.ID), detail)
		}
	}
	for _, ctr := range c.containers.List() {
		if !pods[ctr.Sandbox] && c.orphan(ctr) {
			bad("container", string(ctr.ID), "its pod "+short(string(ctr.Sandbox))+" is not recorded")
		}
		if ctr.State == container.Running && !c.alive(ctr.PID) && c.stillRunning(ctr.ID) {
			bad("container", string(ctr.ID), fmt.Sprintf("recorded as running, but process %d is gone", ctr.PID))
		}
	}
	if len(out) == 0 {
		out = append(out, server.Finding{Subject: "store: pods and containers are as recorded"})
	}
	return out
}

// pod says what a ready pod lacks, if anything.
func (c *checker) pod(p sandbox.Sandbox) string {
	if p.State != sandbox.Ready {
		return ""
	}
	if p.NetNS != "" {
		if err := isNamespace(p.NetNS); err != nil {
			return "network namespace: " + err.Error()
		}
	}
	if p.InitPID != 0 && !c.alive(p.InitPID) {
		return fmt.Sprintf("its init, process %d, is gone", p.InitPID)
	}
	return ""
}

// What was listed may have ended while it was looked at: a fault is one only if the record still says the same.

func (c *checker) stillReady(id sandbox.ID) bool {
	now, err := c.sandboxes.Get(string(id))
	return err == nil && now.State == sandbox.Ready
}

func (c *checker) orphan(ctr container.Container) bool {
	_, err := c.containers.Get(string(ctr.ID))
	_, noPod := c.sandboxes.Get(string(ctr.Sandbox))
	return err == nil && noPod != nil
}

func (c *checker) stillRunning(id container.ID) bool {
	now, err := c.containers.Get(string(id))
	return err == nil && now.State == container.Running
}

func (c *checker) alive(pid int) bool {
	_, err := os.Lstat(filepath.Join(c.proc, fmt.Sprint(pid)))
	return err == nil
}

// isNamespace is nil for a pinned namespace.
func isNamespace(path string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return errors.New(path + " is no pinned namespace")
	}
	return nil
}
