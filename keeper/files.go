// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"strconv"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/sys"
)

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

// fifoNames are the FIFOs in a process's directory, which has the spools and the exit record too.
var fifoNames = [3]string{"0", "1", "2"}

const exitName = "exit"

// removeProcess removes a process's directory.
func removeProcess(id string) {
	for _, n := range sys.Entries(fdDir, id) {
		sys.Unlink(fdDir, id+"/"+n)
	}
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
