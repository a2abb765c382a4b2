// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// killRounds bounds how often the container's cgroup is searched for the children of a killed exec: each round finds those that
// were forked during the one before.
const killRounds = 20

// family is an exec process and what it started, by pid, with the start time that makes a pid a process. The dead stay in it, for
// the sake of their children.
type family map[int]uint64

// killExec kills an exec process and all that it started: whoever is in its session or descends from it. Its cgroup is the
// container's, so membership alone does not tell.
func (m *Manager) killExec(p *running) error {
	group, err := m.o.Cgroups.Open(p.cgroup)
	if errors.Is(err, errs.NotFound) {
		return nil // the container has ended with all its processes
	}
	if err != nil {
		return fmt.Errorf("kill exec process: %w", err)
	}
	kin := family{p.pid: 0}
	for range killRounds {
		pids, err := group.PIDs()
		if err != nil && !errors.Is(err, errs.NotFound) {
			return fmt.Errorf("kill exec process: %w", err)
		}
		alive := kin.grow(p.pid, pids)
		// First the process itself, once its children are known: afterwards they have another parent.
		if err := unix.PidfdSendSignal(int(p.pidfd.Fd()), unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill exec process: %w", err)
		}
		if len(alive) == 0 {
			return nil
		}
		for _, pid := range alive {
			if err := killPID(pid, kin[pid]); err != nil {
				return fmt.Errorf("kill exec process: %w", err)
			}
		}
	}
	return fmt.Errorf("kill exec process: its children fork faster than they can be killed")
}

// grow adds those of pids that belong to the family of first, and lists the members that live, first left out.
func (kin family) grow(first int, pids []int) []int {
	stats := map[int]stat{}
	for _, pid := range pids {
		if st, ok := readStat(pid); ok && !st.dead && pid != first {
			stats[pid] = st
		}
	}
	for added := true; added; { // children may be listed before their parents
		added = false
		for pid, st := range stats {
			_, known := kin[pid]
			_, child := kin[st.parent]
			if !known && (child || st.session == first) {
				kin[pid], added = st.start, true
			}
		}
	}
	var alive []int
	for pid, st := range stats {
		if start, known := kin[pid]; known && start == st.start {
			alive = append(alive, pid)
		}
	}
	return alive
}

// killPID kills the process that has this pid and this start time.
func killPID(pid int, start uint64) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	if st, ok := readStat(pid); !ok || st.start != start {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	return nil
}

type stat struct {
	parent, session int
	// start is the start time in clock ticks since boot.
	start uint64
	dead  bool
}

// readStat reads fields 3, 4, 6 and 22 of /proc/PID/stat (proc_pid_stat(5)).
func readStat(pid int) (stat, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, false
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]) // the name before it may have anything in it
	if len(fields) < 20 {
		return stat{}, false
	}
	parent, err1 := strconv.Atoi(string(fields[1]))
	session, err2 := strconv.Atoi(string(fields[3]))
	start, err3 := strconv.ParseUint(string(fields[19]), 10, 64)
	dead := fields[0][0] == 'Z' || fields[0][0] == 'X'
	return stat{parent: parent, session: session, start: start, dead: dead}, errors.Join(err1, err2, err3) == nil
}
