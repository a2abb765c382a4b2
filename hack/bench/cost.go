// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cost is what the runtime's own processes take at one moment.
type cost struct {
	Processes int   `json:"processes"`
	PSSKB     int64 `json:"pss_kb"`
	TmpfsKB   int64 `json:"tmpfs_kb"`
	// CPU is milliseconds of CPU time per second of doing nothing.
	CPU float64 `json:"idle_cpu_ms_per_s"`
}

// cost waits idle for the time asked for and then reads the processes: memory as it is after the garbage of starting
// pods has had its chance to go, without forcing anything.
func (b *bench) cost(ctx context.Context) (cost, error) {
	ticks := b.ticks()
	select {
	case <-time.After(b.idle):
	case <-ctx.Done():
		return cost{}, ctx.Err()
	}
	c := cost{}
	if b.idle > 0 {
		const perTick = 10 // milliseconds; USER_HZ is 100 on every architecture Go runs on
		c.CPU = float64(b.ticks()-ticks) * perTick / b.idle.Seconds()
	}
	for _, pid := range b.pids() {
		kb, err := pss(pid)
		if err != nil {
			return c, err
		}
		c.Processes++
		c.PSSKB += kb
	}
	for _, dir := range split(b.dirs) {
		kb, err := usage(dir)
		if err != nil {
			return c, err
		}
		c.TmpfsKB += kb
	}
	return c, nil
}

// pids are the processes with one of the names.
func (b *bench) pids() []int {
	var out []int
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return nil
	}
	for _, path := range comms {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for _, name := range split(b.comms) {
			if strings.HasPrefix(string(text), name) {
				if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
					out = append(out, pid)
				}
				break
			}
		}
	}
	return out
}

// pss reads a process's proportional share of memory.
func pss(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			return strconv.ParseInt(f[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("read memory of process %d: no Pss", pid)
}

// ticks is the CPU time of all the processes so far.
func (b *bench) ticks() int64 {
	var sum int64
	for _, pid := range b.pids() {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		if f := strings.Fields(rest); len(f) > 12 {
			for _, field := range f[11:13] {
				n, err := strconv.ParseInt(field, 10, 64)
				if err != nil {
					continue
				}
				sum += n
			}
		}
	}
	return sum
}

// usage is what the files below dir take, in KB of blocks.
func usage(dir string) (int64, error) {
	var blocks int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what vanishes meanwhile takes nothing
		}
		info, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // what vanishes meanwhile takes nothing
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			blocks += st.Blocks
		}
		return nil
	})
	return blocks / 2, err
}
