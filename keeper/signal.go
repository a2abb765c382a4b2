// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/sys"
)

// terminable says whether signals that ask a process to end may end this one: only while it keeps nothing. Being killed by one is then
// as good as an orderly exit, since there is nothing to put in order.
func terminable(yes bool) {
	handler := uintptr(sys.SigIgnore)
	if yes {
		handler = sys.SigDefault
	}
	for _, s := range []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT} {
		sys.SetSignal(s, handler)
	}
}

// settle makes a new image safe to hold descriptors: nobody may read its memory, and little may kill it.
func settle() {
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	for _, task := range sys.Entries(unix.AT_FDCWD, "/proc/self/task") { // the runtime's threads too: children inherit one's name
		writeProc("/proc/self/task/"+task+"/comm", "shim-keeper")
	}
	writeProc("/proc/self/oom_score_adj", "-999") // not allowed everywhere
	sys.SetSignal(unix.SIGPIPE, sys.SigIgnore)
}

func writeProc(name, text string) {
	if fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
		unix.Write(fd, []byte(text))
		unix.Close(fd)
	}
}

// nofileEnv carries the limits the first image started with, which children get back.
const nofileEnv = "SHIM_KEEPER_NOFILE="

// raiseFiles lets the keeper open as many files as the kernel allows and returns the limits from before: those in the
// environment if an earlier image has raised them already.
func raiseFiles() unix.Rlimit {
	var old unix.Rlimit
	unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &old)
	if v, ok := syscall.Getenv(strings.TrimSuffix(nofileEnv, "=")); ok {
		soft, hard, _ := strings.Cut(v, ":")
		s, err1 := strconv.ParseUint(soft, 10, 64)
		h, err2 := strconv.ParseUint(hard, 10, 64)
		if err1 == nil && err2 == nil {
			return unix.Rlimit{Cur: s, Max: h}
		}
	}
	const enough = 1 << 20
	if unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: enough, Max: max(enough, old.Max)}, nil) != nil {
		unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: old.Max, Max: old.Max}, nil)
	}
	return old
}

// environ is the environment of a next image: a small heap for a small program.
func environ(nofile unix.Rlimit) []string {
	return []string{
		"GOGC=25", "GOMAXPROCS=2", "GODEBUG=asyncpreemptoff=1",
		nofileEnv + strconv.FormatUint(nofile.Cur, 10) + ":" + strconv.FormatUint(nofile.Max, 10),
	}
}
