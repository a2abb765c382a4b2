// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/sys"
	"crishim.dev/proto"
)

// succeed makes this process the elder: the next image starts with everything this one keeps, children included. It returns
// only when that fails. What other goroutines are in the middle of is as if they had been killed there.
func (y *younger) succeed() error {
	y.mu.Lock() // for ever
	h := proto.Handover{YoungerPIDFD: -1}
	return y.handOver(&h, "elder", "succeed")
}

// handOver executes the image at fdImage with the ledger in h.
func (l *ledger) handOver(h *proto.Handover, role, how string) error {
	var inherit []int
	for fd := fdDir; fd <= fdHandover; fd++ {
		inherit = append(inherit, fd)
	}
	for _, r := range l.records {
		if r.PID == 0 { // its launch has not happened: the child, if there is one, leaves when the report socket ends with this image
			continue
		}
		k, fds := r.everything()
		h.Keep = append(h.Keep, *k)
		for _, fd := range fds {
			h.FDs = append(h.FDs, int32(fd))
		}
		inherit = append(inherit, fds...)
	}
	if h.YoungerPIDFD >= 0 {
		inherit = append(inherit, int(h.YoungerPIDFD))
	}
	fd, err := unix.MemfdCreate("handover", unix.MFD_CLOEXEC)
	if err != nil {
		return sys.At("make handover", err)
	}
	defer unix.Close(fd)
	if err := sys.WriteAt(fd, proto.Marshal(0, h), 0); err != nil {
		return sys.At("write handover", err)
	}
	if err := unix.Dup3(fd, fdHandover, 0); err != nil {
		return sys.At("write handover", err)
	}
	for _, fd := range inherit {
		unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0) //nolint:errcheck // it is open
	}
	err = unix.Exec("/proc/self/fd/"+strconv.Itoa(fdImage), []string{"shim-keeper", role, how}, syscall.Environ())
	for _, fd := range inherit {
		unix.CloseOnExec(fd)
	}
	return sys.At("execute "+role, err)
}

// inherit reads what the image before left. Without anything, it was executed by boot.
func (e *elder) inherit() error {
	var st unix.Stat_t
	if err := unix.Fstat(fdHandover, &st); err != nil {
		return sys.At("read handover", err)
	}
	b := make([]byte, st.Size)
	for n := 0; n < len(b); {
		m, err := unix.Pread(fdHandover, b[n:], int64(n))
		if err != nil || m == 0 {
			return sys.At("read handover", err)
		}
		n += m
	}
	_, m, err := proto.Unmarshal(b)
	if err != nil {
		return sys.At("read handover", err)
	}
	h, ok := m.(*proto.Handover)
	if !ok {
		return sys.At("read handover", unix.EBADMSG)
	}
	fds := h.FDs
	for i := range h.Keep {
		k := &h.Keep[i]
		n := min(len(k.Add), len(fds))
		own := make([]int, n)
		for j, fd := range fds[:n] {
			unix.CloseOnExec(int(fd))
			own[j] = int(fd)
		}
		fds = fds[n:]
		e.applyLocked(k, own)
	}
	if h.Younger != 0 {
		unix.CloseOnExec(int(h.YoungerPIDFD))
		e.younger, e.pidfd = h.Younger, int(h.YoungerPIDFD)
	}
	return sys.At("read handover", unix.Dup3(fdDir, fdHandover, unix.O_CLOEXEC))
}
