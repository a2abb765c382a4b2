// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"io"

	"golang.org/x/sys/unix"
)

// Receive reads one packet, without waiting unless flags has MSG_WAITALL. ECONNRESET only says that the peer has gone with packets unread; what it had sent before is still
// to be read.
func Receive(fd int, data, oob []byte, flags int) (n int, fds []int, err error) {
	if flags&unix.MSG_WAITALL == 0 {
		flags |= unix.MSG_DONTWAIT
	}
	var oobn, got int
	for {
		n, oobn, got, _, err = unix.Recvmsg(fd, data, oob, flags|unix.MSG_CMSG_CLOEXEC)
		if err == nil {
			break
		}
		if err != unix.EINTR && err != unix.ECONNRESET {
			return 0, nil, err
		}
	}
	if oobn > 0 {
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return 0, nil, err
		}
		for i := range msgs {
			if f, err := unix.ParseUnixRights(&msgs[i]); err == nil {
				fds = append(fds, f...)
			}
		}
	}
	if got&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		CloseAll(fds)
		return 0, nil, unix.EMSGSIZE
	}
	if n == 0 {
		CloseAll(fds)
		return 0, nil, io.EOF
	}
	return n, fds, nil
}

// CloseAll closes descriptors.
func CloseAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// Dup duplicates a descriptor.
func Dup(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) }
