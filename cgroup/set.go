// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// apply writes what r names. r has been checked.
func (g *Group) apply(r *Resources) error {
	steps := []func(*Resources) error{g.setCPUSet, g.setCPUV1, g.setMemoryV1, g.setPids, g.setHugepages, g.setDevicesV1}
	if g.m.version == 2 {
		steps = []func(*Resources) error{g.setCPUSet, g.setCPUV2, g.setMemoryV2, g.setPids, g.setHugepages, g.setDevicesV2, g.setUnified}
	}
	for _, step := range steps {
		if err := step(r); err != nil {
			return err
		}
	}
	return nil
}

// set writes one value; field names what the caller asked for, as CRI calls it.
func (g *Group) set(field, controller, file, value string) error {
	h := g.m.by[controller]
	if h == nil {
		return errs.Newf(errs.Unsupported, "set %s: this host has no %s cgroup controller", field, controller)
	}
	if err := h.write(g.path, file, value); err != nil {
		if errors.Is(err, fs.ErrNotExist) && h.exists(g.path) {
			return errs.Newf(errs.Unsupported, "set %s: no %s here: the kernel lacks it or the %s controller is not handed down: %w", field, file, controller, err)
		}
		return refused(field, notFound(g.path, err))
	}
	return nil
}

// refused gives the kernel's refusal of a value its kind.
func refused(field string, err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("set %s: %w", field, err)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EACCES), errors.Is(err, unix.EOVERFLOW):
		return errs.As(errs.Invalid, err)
	case errors.Is(err, unix.EBUSY):
		return errs.As(errs.Precondition, err)
	}
	return err
}

func (g *Group) setCPUSet(r *Resources) error {
	if r.CPUs != "" {
		if err := g.set("cpuset_cpus", "cpuset", "cpuset.cpus", r.CPUs); err != nil {
			return err
		}
	}
	if r.Mems != "" {
		return g.set("cpuset_mems", "cpuset", "cpuset.mems", r.Mems)
	}
	return nil
}

// setCPUV1 tries the period again after the quota: a shorter period with the old quota may exceed what the parent allows.
func (g *Group) setCPUV1(r *Resources) error {
	if r.CPUShares != 0 {
		if err := g.set("cpu_shares", "cpu", "cpu.shares", strconv.FormatUint(r.CPUShares, 10)); err != nil {
			return err
		}
	}
	period := func() error {
		return g.set("cpu_period", "cpu", "cpu.cfs_period_us", strconv.FormatUint(r.CPUPeriod, 10))
	}
	again := false
	if r.CPUPeriod != 0 {
		if err := period(); err != nil {
			if again = errors.Is(err, unix.EINVAL) && r.CPUQuota != 0; !again {
				return err
			}
		}
	}
	if r.CPUQuota != 0 {
		if err := g.set("cpu_quota", "cpu", "cpu.cfs_quota_us", strconv.FormatInt(max(r.CPUQuota, -1), 10)); err != nil {
			return err
		}
	}
	if again {
		return period()
	}
	return nil
}

func (g *Group) setCPUV2(r *Resources) error {
	if r.CPUShares != 0 {
		if err := g.set("cpu_shares", "cpu", "cpu.weight", strconv.FormatUint(weight(r.CPUShares), 10)); err != nil {
			return err
		}
	}
	if r.CPUQuota == 0 && r.CPUPeriod == 0 {
		return nil
	}
	// cpu.max is "QUOTA PERIOD"; the period alone can't be written, so an absent quota is read back.
	quota := limit(r.CPUQuota)
	if r.CPUQuota == 0 {
		quota = "max"
		if b, err := g.read("cpu", "cpu.max"); err == nil {
			quota, _, _ = strings.Cut(string(b), " ")
		}
	}
	if r.CPUPeriod != 0 {
		quota += " " + strconv.FormatUint(r.CPUPeriod, 10)
	}
	return g.set("cpu_quota", "cpu", "cpu.max", quota)
}

// memsw is the version 1 limit of memory and swap together. Kernels booted with swapaccount=0 or built without swap lack it.
const memsw = "memory.memsw.limit_in_bytes"

// setMemoryV1 writes the limit and the limit with swap in the order that never has the first above the second.
func (g *Group) setMemoryV1(r *Resources) error {
	swap := r.MemorySwap
	if swap == 0 && r.Memory == -1 {
		swap = -1
	}
	if swap != 0 && g.m.Has("memory") {
		if _, err := g.read("memory", memsw); errors.Is(err, fs.ErrNotExist) && g.m.by["memory"].exists(g.path) {
			g.m.warnOnce("swap limits are ignored: this kernel does not account swap", "file", memsw)
			swap = 0
		}
	}
	setSwap := func() error {
		return g.set("memory_swap_limit_in_bytes", "memory", memsw, strconv.FormatInt(swap, 10))
	}
	setLimit := func() error {
		err := g.set("memory_limit_in_bytes", "memory", "memory.limit_in_bytes", strconv.FormatInt(r.Memory, 10))
		if errors.Is(err, unix.EBUSY) {
			use, _ := g.read("memory", "memory.usage_in_bytes")
			return fmt.Errorf("%w (in use: %s bytes)", err, strings.TrimSpace(string(use)))
		}
		return err
	}
	switch {
	case swap == 0 && r.Memory == 0:
		return nil
	case swap == 0:
		return setLimit()
	case r.Memory == 0:
		return setSwap()
	}
	now, err := g.number("memory", "memory.limit_in_bytes")
	if err != nil {
		return refused("memory_limit_in_bytes", notFound(g.path, err))
	}
	first, second := setLimit, setSwap
	if swap == -1 || now < uint64(swap) {
		first, second = setSwap, setLimit
	}
	if err := first(); err != nil {
		return err
	}
	return second()
}

// setMemoryV2 turns memory plus swap into swap alone. A container that may not swap gets memory.swap.max 0, not "".
func (g *Group) setMemoryV2(r *Resources) error {
	swap := ""
	switch {
	case r.MemorySwap == -1, r.MemorySwap == 0 && r.Memory == -1:
		swap = "max"
	case r.MemorySwap > 0:
		memory := r.Memory
		if memory == 0 {
			now, err := g.number("memory", "memory.max")
			if err != nil || now == noLimit || now > uint64(r.MemorySwap) {
				return errs.Newf(errs.Invalid, "set memory_swap_limit_in_bytes: it includes the memory limit, which is absent or larger")
			}
			memory = int64(now)
		}
		swap = strconv.FormatInt(r.MemorySwap-memory, 10)
	}
	if swap != "" {
		err := g.set("memory_swap_limit_in_bytes", "memory", "memory.swap.max", swap)
		if errors.Is(err, errs.Unsupported) && g.m.Has("memory") {
			g.m.warnOnce("swap limits are ignored: this kernel does not account swap", "file", "memory.swap.max")
			err = nil
		}
		if err != nil {
			return err
		}
	}
	if r.Memory == 0 {
		return nil
	}
	return g.set("memory_limit_in_bytes", "memory", "memory.max", limit(r.Memory))
}

func (g *Group) setPids(r *Resources) error {
	if r.Pids == 0 {
		return nil
	}
	return g.set("pids_limit", "pids", "pids.max", limit(r.Pids))
}

// setHugepages also limits reservations, where the kernel can (5.7), so that a process fails at mmap rather than by SIGBUS.
// The kubelet sends a limit of 0 for each size of the host to containers that never asked: a host without the controller is
// no reason to refuse them.
func (g *Group) setHugepages(r *Resources) error {
	if len(r.Hugepages) != 0 && !g.m.Has("hugetlb") {
		g.m.warnOnce("huge page limits are ignored: this host has no hugetlb cgroup controller")
		return nil
	}
	for _, size := range slices.Sorted(maps.Keys(r.Hugepages)) {
		value, suffix := strconv.FormatUint(r.Hugepages[size], 10), map[int]string{1: "limit_in_bytes", 2: "max"}[g.m.version]
		if err := g.set("hugepage_limits", "hugetlb", "hugetlb."+size+"."+suffix, value); err != nil {
			return err
		}
		err := g.set("hugepage_limits", "hugetlb", "hugetlb."+size+".rsvd."+suffix, value)
		if err != nil && !errors.Is(err, errs.Unsupported) {
			return err
		}
	}
	return nil
}

func (g *Group) setUnified(r *Resources) error {
	for _, k := range slices.Sorted(maps.Keys(r.Unified)) {
		controller, _, _ := strings.Cut(k, ".")
		h := g.m.all[0]
		if controller != "cgroup" && !g.m.Has(controller) {
			return errs.Newf(errs.Unsupported, "set unified %s: this host has no %s cgroup controller", k, controller)
		}
		if err := h.write(g.path, k, r.Unified[k]); err != nil {
			if errors.Is(err, fs.ErrNotExist) && h.exists(g.path) {
				return errs.Newf(errs.Invalid, "set unified %s: the group has no such file: %w", k, err)
			}
			return refused("unified "+k, notFound(g.path, err))
		}
	}
	return nil
}

// setDevicesV1: a new group has its parent's rules, which allow everything above the kubelet's pods.
func (g *Group) setDevicesV1(r *Resources) error {
	const all = "a *:* rwm"
	if r.Devices == nil {
		return nil
	}
	h := g.m.by["devices"]
	if h == nil {
		if r.Devices.All {
			return nil
		}
		return errs.Newf(errs.Unsupported, "set devices: this host has no devices cgroup controller")
	}
	if r.Devices.All {
		if b, err := h.read(g.path, "devices.list"); err == nil && strings.TrimSpace(string(b)) == all {
			return nil
		}
		return refused("devices", h.write(g.path, "devices.allow", all))
	}
	if err := h.write(g.path, "devices.deny", all); err != nil {
		return refused("devices", notFound(g.path, err))
	}
	rules := r.Devices.rules()
	values := make([]string, len(rules))
	for i, d := range rules {
		values[i] = d.String()
	}
	if err := h.write(g.path, "devices.allow", values...); err != nil {
		return refused("devices", notFound(g.path, err))
	}
	return nil
}

func (g *Group) setDevicesV2(r *Resources) error {
	if r.Devices == nil {
		return nil
	}
	dir, err := g.m.all[0].open(g.path, "", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return notFound(g.path, err)
	}
	defer dir.Close()
	if r.Devices.All {
		err = setDeviceFilter(dir, nil)
		if errors.Is(err, unix.EINVAL) { // a kernel without CONFIG_CGROUP_BPF filters nothing
			err = nil
		}
	} else {
		err = setDeviceFilter(dir, r.Devices.rules())
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return errs.Newf(errs.Unsupported, "set devices: needs CONFIG_CGROUP_BPF and the capabilities BPF and NET_ADMIN or SYS_ADMIN: %w", err)
	}
	if err != nil {
		return fmt.Errorf("set devices: %w", err)
	}
	return nil
}
