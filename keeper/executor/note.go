// SPDX-License-Identifier: Apache-2.0

package executor

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/sys"
)

// Note is a packet from the new process to the keeper.
type Note struct {
	What  uint32
	Index uint32 // of the op
	Value uint32 // errno, tag or pid
}

const noteSize = 12

// What a Note says.
const (
	NoteFailed = 'E' // value: errno
	NoteCloned = 'C' // value: pid of the second process; with its pidfd
	NoteAside  = 'A' // value: pid of an aside
	NoteFD     = 'F' // value: tag; with the descriptor
)

// OpenGate lets the child go. It may be done twice: the child reads once.
func OpenGate(report int) {
	unix.Sendmsg(report, []byte{1}, nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT) //nolint:errcheck // a child that is gone shows by its socket's end
}

// PeekNote reads the next note and leaves it where it is. EAGAIN: there is none yet; io.EOF: execve has succeeded, or the process is at its end.
func PeekNote(report int) (Note, []int, error) {
	var data [noteSize + 1]byte
	var oob [64]byte
	n, fds, err := sys.Receive(report, data[:], oob[:], unix.MSG_PEEK)
	if err != nil {
		return Note{}, nil, err
	}
	if n != noteSize {
		sys.CloseAll(fds)
		return Note{}, nil, unix.EBADMSG
	}
	u := binary.NativeEndian.Uint32
	return Note{u(data[:]), u(data[4:]), u(data[8:])}, fds, nil
}

// TakeNote takes a note out; the kernel closes descriptors that have no room.
func TakeNote(report int) {
	var data [noteSize]byte
	unix.Recvfrom(report, data[:], unix.MSG_DONTWAIT) //nolint:errcheck // it was there a moment ago
}
