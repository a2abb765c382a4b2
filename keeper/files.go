// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crishim.dev/proto"
)

// readFile reads at most limit bytes of a small file.
func readFile(dir int, name string, limit int) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := make([]byte, limit)
	n := 0
	for n < limit {
		m, err := unix.Read(fd, b[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return b[:n], nil
}

// entries gives the names in a directory.
func entries(dir int, name string) []string {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var names []string
	b := make([]byte, 4096)
	for {
		n, err := unix.ReadDirent(fd, b)
		if err != nil || n <= 0 {
			return names
		}
		_, _, names = unix.ParseDirent(b[:n], -1, names)
	}
}

// unlink removes a file that may not exist.
func unlink(dir int, name string) {
	unix.Unlinkat(dir, name, 0) //nolint:errcheck // what can't be removed is found by whoever creates it again
}

// validID says whether id can name a process: it is a directory's name too, and never one of the keeper's own files.
func validID(id string) bool {
	if id == "" || len(id) > 128 || id[0] == '.' || id == socketName {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.', c == ':':
		default:
			return false
		}
	}
	return true
}

// The names of a process's files, in the directory of its id: the FIFOs 0, 1 and 2, the spools and the exit record.
var (
	fifoNames  = [3]string{"0", "1", "2"}
	spoolNames = [2]string{"spool1", "spool2"}
)

const exitName = "exit"

// removeProcess removes a process's directory. Nothing in it was made by anyone else.
func removeProcess(id string) {
	for _, n := range fifoNames {
		unlink(fdDir, id+"/"+n)
	}
	for _, n := range spoolNames {
		unlink(fdDir, id+"/"+n)
	}
	unlink(fdDir, id+"/"+exitName)
	unlink(fdDir, id+"/"+exitName+".new")
	unix.Unlinkat(fdDir, id, unix.AT_REMOVEDIR) //nolint:errcheck // most have none
}

// makeProcess makes the directory of a process, empty.
func makeProcess(id string) error {
	err := unix.Mkdirat(fdDir, id, 0o700)
	if err == unix.EEXIST {
		removeProcess(id)
		err = unix.Mkdirat(fdDir, id, 0o700)
	}
	return err
}

// writeExit writes a process's exit record: its wait status and the time, both decimal, replaced by rename.
func writeExit(id string, status uint32, time int64) error {
	if err := unix.Mkdirat(fdDir, id, 0o700); err != nil && err != unix.EEXIST {
		return err
	}
	tmp := id + "/" + exitName + ".new"
	fd, err := unix.Openat(fdDir, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, []byte(strconv.FormatUint(uint64(status), 10)+" "+strconv.FormatInt(time, 10)+"\n"))
	unix.Close(fd)
	if err != nil {
		return err
	}
	return unix.Renameat(fdDir, tmp, fdDir, id+"/"+exitName)
}

// stat is what /proc/PID/stat says of a process.
type stat struct {
	comm     string
	state    byte
	flags    uint64
	start    uint64
	exitCode uint32
}

// neverExecuted is PF_FORKNOEXEC: the process has not called execve since it was made.
const neverExecuted = 0x40

func readStat(pid int32) (stat, error) {
	b, err := readFile(unix.AT_FDCWD, "/proc/"+strconv.Itoa(int(pid))+"/stat", 1024)
	if err != nil {
		return stat{}, err
	}
	return parseStat(string(b))
}

// parseStat parses proc_pid_stat(5). The second field is in parentheses and may hold anything, parentheses too.
func parseStat(s string) (stat, error) {
	open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if open < 0 || end < open {
		return stat{}, unix.EINVAL
	}
	f := strings.Fields(s[end+1:])
	if len(f) < 50 || len(f[0]) != 1 { // from field 3 to 52
		return stat{}, unix.EINVAL
	}
	flags, err1 := strconv.ParseUint(f[9-3], 10, 64)
	start, err2 := strconv.ParseUint(f[22-3], 10, 64)
	code, err3 := strconv.ParseUint(f[52-3], 10, 32)
	if err1 != nil || err2 != nil || err3 != nil {
		return stat{}, unix.EINVAL
	}
	return stat{comm: s[open+1 : end], state: f[0][0], flags: flags, start: start, exitCode: uint32(code)}, nil
}

// exitOf learns the wait status of a process that is not our child: from its pidfd once it has been reaped (Linux 6.15), or
// from /proc while it is a zombie. ok is false if neither tells.
func exitOf(pidfd int, pid int32, start uint64) (status uint32, ok bool) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(pidfd, &info); err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
		return uint32(info.Exit_code), true
	}
	if st, err := readStat(pid); err == nil && st.state == 'Z' && (st.start == start || start == 0) {
		return st.exitCode, true
	}
	return proto.StatusUnknown, false
}

// pidOf gives the pid behind a pidfd, 0 if it has been reaped.
func pidOf(pidfd int) int32 {
	b, err := readFile(unix.AT_FDCWD, "/proc/self/fdinfo/"+strconv.Itoa(pidfd), 512)
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
