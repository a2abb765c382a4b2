// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Stat is what /proc/PID/stat says of a process.
type Stat struct {
	Comm     string
	State    byte
	Flags    uint64
	Start    uint64 // in clock ticks since boot
	ExitCode uint32 // a wait status, of a zombie
}

// NeverExecuted is PF_FORKNOEXEC: the process has not called execve since it was made.
const NeverExecuted = 0x40

// ReadStat reads the stat of a process.
func ReadStat(pid int32) (Stat, error) {
	b, err := ReadFile(unix.AT_FDCWD, "/proc/"+strconv.Itoa(int(pid))+"/stat", 1024)
	if err != nil {
		return Stat{}, err
	}
	return parseStat(string(b))
}

// parseStat parses proc_pid_stat(5). The second field is in parentheses and may hold anything, parentheses too.
func parseStat(s string) (Stat, error) {
	open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if open < 0 || end < open {
		return Stat{}, unix.EINVAL
	}
	f := strings.Fields(s[end+1:])
	if len(f) < 50 || len(f[0]) != 1 { // from field 3 to 52
		return Stat{}, unix.EINVAL
	}
	flags, err1 := strconv.ParseUint(f[9-3], 10, 64)
	start, err2 := strconv.ParseUint(f[22-3], 10, 64)
	code, err3 := strconv.ParseUint(f[52-3], 10, 32)
	if err1 != nil || err2 != nil || err3 != nil {
		return Stat{}, unix.EINVAL
	}
	return Stat{Comm: s[open+1 : end], State: f[0][0], Flags: flags, Start: start, ExitCode: uint32(code)}, nil
}

// ExitOf learns the wait status of a process that is not our child: from its pidfd once it has been reaped (Linux 6.15), or
// from /proc while it is a zombie. ok is false if neither tells.
func ExitOf(pidfd int, pid int32, start uint64) (status uint32, ok bool) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(pidfd, &info); err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
		return uint32(info.Exit_code), true
	}
	if st, err := ReadStat(pid); err == nil && st.State == 'Z' && (st.Start == start || start == 0) {
		return st.ExitCode, true
	}
	return 0, false
}

// PIDOf gives the pid behind a pidfd, 0 if it has been reaped.
func PIDOf(pidfd int) int32 {
	b, err := ReadFile(unix.AT_FDCWD, "/proc/self/fdinfo/"+strconv.Itoa(pidfd), 512)
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(b), "\nPid:\t")
	line, _, _ := strings.Cut(after, "\n")
	pid, err := strconv.ParseInt(line, 10, 32)
	if err != nil || pid < 0 {
		return 0
	}
	return int32(pid)
}

// Readable says whether something can be read from a descriptor, or a pidfd's process has ended.
func Readable(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}
