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

// limits writes Resources, which have been checked, to a group.
type limits struct {
	*Group
	*Resources
}

// apply writes what the Resources name.
func (l limits) apply() error {
	steps := []func() error{l.setCPUSet, l.setCPUV1, l.setMemoryV1, l.setPids, l.setHugepages, l.setDevicesV1}
	if l.m.version == 2 {
		steps = []func() error{l.setCPUSet, l.setCPUV2, l.setMemoryV2, l.setPids, l.setHugepages, l.setDevicesV2, l.setUnified}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// set writes one value; field names what the caller asked for, as CRI calls it.
func (l limits) set(field, controller, file, value string) error {
	h := l.m.by[controller]
	if h == nil {
		return errs.Newf(errs.Unsupported, "set %s: this host has no %s cgroup controller", field, controller)
	}
	if err := h.write(l.path, file, value); err != nil {
		if errors.Is(err, fs.ErrNotExist) && h.exists(l.path) {
			return errs.Newf(errs.Unsupported, "set %s: no %s here: the kernel lacks it or the %s controller is not handed down: %w", field, file, controller, err)
		}
		return refused(field, notFound(l.path, err))
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

func (l limits) setCPUSet() error {
	if l.CPUs != "" {
		if err := l.set("cpuset_cpus", "cpuset", "cpuset.cpus", l.CPUs); err != nil {
			return err
		}
	}
	if l.Mems != "" {
		return l.set("cpuset_mems", "cpuset", "cpuset.mems", l.Mems)
	}
	return nil
}

// setCPUV1 tries the period again after the quota: a shorter period with the old quota may exceed what the parent allows.
func (l limits) setCPUV1() error {
	if l.CPUShares != 0 {
		if err := l.set("cpu_shares", "cpu", "cpu.shares", strconv.FormatUint(l.CPUShares, 10)); err != nil {
			return err
		}
	}
	period := func() error {
		return l.set("cpu_period", "cpu", "cpu.cfs_period_us", strconv.FormatUint(l.CPUPeriod, 10))
	}
	again := false
	if l.CPUPeriod != 0 {
		if err := period(); err != nil {
			if again = errors.Is(err, unix.EINVAL) && l.CPUQuota != 0; !again {
				return err
			}
		}
	}
	if l.CPUQuota != 0 {
		if err := l.set("cpu_quota", "cpu", "cpu.cfs_quota_us", strconv.FormatInt(max(l.CPUQuota, -1), 10)); err != nil {
			return err
		}
	}
	if again {
		return period()
	}
	return nil
}

func (l limits) setCPUV2() error {
	if l.CPUShares != 0 {
		if err := l.set("cpu_shares", "cpu", "cpu.weight", strconv.FormatUint(weight(l.CPUShares), 10)); err != nil {
			return err
		}
	}
	if l.CPUQuota == 0 && l.CPUPeriod == 0 {
		return nil
	}
	// cpu.max is "QUOTA PERIOD"; the period alone can't be written, so an absent quota is read back.
	quota := limit(l.CPUQuota)
	if l.CPUQuota == 0 {
		quota = "max"
		if b, err := l.read("cpu", "cpu.max"); err == nil {
			quota, _, _ = strings.Cut(string(b), " ")
		}
	}
	if l.CPUPeriod != 0 {
		quota += " " + strconv.FormatUint(l.CPUPeriod, 10)
	}
	return l.set("cpu_quota", "cpu", "cpu.max", quota)
}

// memsw is the version 1 limit of memory and swap together. Kernels booted with swapaccount=0 or built without swap lack it.
const memsw = "memory.memsw.limit_in_bytes"

// setMemoryV1 writes the limit and the limit with swap in the order that never has the first above the second.
func (l limits) setMemoryV1() error {
	swap := l.MemorySwap
	if swap == 0 && l.Memory == -1 {
		swap = -1
	}
	if swap != 0 && l.m.Has("memory") {
		if _, err := l.read("memory", memsw); errors.Is(err, fs.ErrNotExist) && l.m.by["memory"].exists(l.path) {
			l.m.warnOnce("swap limits are ignored: this kernel does not account swap", "file", memsw)
			swap = 0
		}
	}
	setSwap := func() error {
		return l.set("memory_swap_limit_in_bytes", "memory", memsw, strconv.FormatInt(swap, 10))
	}
	setLimit := func() error {
		err := l.set("memory_limit_in_bytes", "memory", "memory.limit_in_bytes", strconv.FormatInt(l.Memory, 10))
		if errors.Is(err, unix.EBUSY) {
			use, _ := l.read("memory", "memory.usage_in_bytes")
			return fmt.Errorf("%w (in use: %s bytes)", err, strings.TrimSpace(string(use)))
		}
		return err
	}
	switch {
	case swap == 0 && l.Memory == 0:
		return nil
	case swap == 0:
		return setLimit()
	case l.Memory == 0:
		return setSwap()
	}
	now, err := l.number("memory", "memory.limit_in_bytes")
	if err != nil {
		return refused("memory_limit_in_bytes", notFound(l.path, err))
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
func (l limits) setMemoryV2() error {
	swap := ""
	switch {
	case l.MemorySwap == -1, l.MemorySwap == 0 && l.Memory == -1:
		swap = "max"
	case l.MemorySwap > 0:
		memory := l.Memory
		if memory == 0 {
			now, err := l.number("memory", "memory.max")
			if err != nil || now == noLimit || now > uint64(l.MemorySwap) {
				return errs.Newf(errs.Invalid, "set memory_swap_limit_in_bytes: it includes the memory limit, which is absent or larger")
			}
			memory = int64(now)
		}
		swap = strconv.FormatInt(l.MemorySwap-memory, 10)
	}
	if swap != "" {
		err := l.set("memory_swap_limit_in_bytes", "memory", "memory.swap.max", swap)
		if errors.Is(err, errs.Unsupported) && l.m.Has("memory") {
			l.m.warnOnce("swap limits are ignored: this kernel does not account swap", "file", "memory.swap.max")
			err = nil
		}
		if err != nil {
			return err
		}
	}
	if l.Memory == 0 {
		return nil
	}
	return l.set("memory_limit_in_bytes", "memory", "memory.max", limit(l.Memory))
}

// makeRoom refuses a memory limit below what is in use. Version 1 does so itself; version 2 reclaims what it can and then kills, hence
// the reclaiming before (memory.reclaim, Linux 5.19). What is allocated between the two is the container's risk, as at any limit.
func (l limits) makeRoom() error {
	if l.m.version == 1 || l.Memory <= 0 || !l.m.Has("memory") {
		return nil
	}
	use := func() (over uint64) {
		now, err := l.number("memory", "memory.current")
		if err != nil { // what is wrong here is for apply to say
			return 0
		}
		return now - min(now, uint64(l.Memory))
	}
	over := use()
	if over == 0 {
		return nil
	}
	// EAGAIN: less than that could be reclaimed.
	_ = l.m.by["memory"].write(l.path, "memory.reclaim", strconv.FormatUint(over, 10))
	if over = use(); over > 0 {
		return errs.Newf(errs.Precondition, "set memory_limit_in_bytes: %d bytes are in use", uint64(l.Memory)+over)
	}
	return nil
}

func (l limits) setPids() error {
	if l.Pids == 0 {
		return nil
	}
	return l.set("pids_limit", "pids", "pids.max", limit(l.Pids))
}

// setHugepages also limits reservations, where the kernel can (5.7), so that a process fails at mmap rather than by SIGBUS.
// The kubelet sends a limit of 0 for each size of the host to containers that never asked: a host without the controller is
// no reason to refuse them.
func (l limits) setHugepages() error {
	if len(l.Hugepages) != 0 && !l.m.Has("hugetlb") {
		for size, v := range l.Hugepages {
			if v != 0 {
				return errs.Newf(errs.Unsupported, "set hugepage_limits: %s of %s pages: this host has no hugetlb cgroup controller", strconv.FormatUint(v, 10), size)
			}
		}
		l.m.warnOnce("huge page limits of 0 are ignored: this host has no hugetlb cgroup controller")
		return nil
	}
	for _, size := range slices.Sorted(maps.Keys(l.Hugepages)) {
		value, suffix := strconv.FormatUint(l.Hugepages[size], 10), map[int]string{1: "limit_in_bytes", 2: "max"}[l.m.version]
		if err := l.set("hugepage_limits", "hugetlb", "hugetlb."+size+"."+suffix, value); err != nil {
			return err
		}
		err := l.set("hugepage_limits", "hugetlb", "hugetlb."+size+".rsvd."+suffix, value)
		if err != nil && !errors.Is(err, errs.Unsupported) {
			return err
		}
	}
	return nil
}

func (l limits) setUnified() error {
	for _, k := range slices.Sorted(maps.Keys(l.Unified)) {
		controller, _, _ := strings.Cut(k, ".")
		h := l.m.all[0]
		if controller != "cgroup" && !l.m.Has(controller) {
			return errs.Newf(errs.Unsupported, "set unified %s: this host has no %s cgroup controller", k, controller)
		}
		if err := h.write(l.path, k, l.Unified[k]); err != nil {
			if errors.Is(err, fs.ErrNotExist) && h.exists(l.path) {
				return errs.Newf(errs.Invalid, "set unified %s: the group has no such file: %w", k, err)
			}
			return refused("unified "+k, notFound(l.path, err))
		}
	}
	return nil
}

// setDevicesV1: a new group has its parent's rules, which allow everything above the kubelet's pods.
func (l limits) setDevicesV1() error {
	const all = "a *:* rwm"
	if l.Devices == nil {
		return nil
	}
	h := l.m.by["devices"]
	if h == nil {
		if l.Devices.All {
			return nil
		}
		return errs.Newf(errs.Unsupported, "set devices: this host has no devices cgroup controller")
	}
	if l.Devices.All {
		if b, err := h.read(l.path, "devices.list"); err == nil && strings.TrimSpace(string(b)) == all {
			return nil
		}
		return refused("devices", h.write(l.path, "devices.allow", all))
	}
	if err := h.write(l.path, "devices.deny", all); err != nil {
		return refused("devices", notFound(l.path, err))
	}
	rules := l.Devices.rules()
	values := make([]string, len(rules))
	for i, d := range rules {
		values[i] = d.String()
	}
	if err := h.write(l.path, "devices.allow", values...); err != nil {
		return refused("devices", notFound(l.path, err))
	}
	return nil
}

func (l limits) setDevicesV2() error {
	if l.Devices == nil {
		return nil
	}
	dir, err := l.m.all[0].open(l.path, "", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return notFound(l.path, err)
	}
	defer dir.Close()
	if l.Devices.All {
		err = setDeviceFilter(dir, nil)
		if errors.Is(err, unix.EINVAL) { // a kernel without CONFIG_CGROUP_BPF filters nothing
			err = nil
		}
	} else {
		err = setDeviceFilter(dir, l.Devices.rules())
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return errs.Newf(errs.Unsupported, "set devices: needs CONFIG_CGROUP_BPF and the capabilities BPF and NET_ADMIN or SYS_ADMIN: %w", err)
	}
	if err != nil {
		return fmt.Errorf("set devices: %w", err)
	}
	return nil
}
