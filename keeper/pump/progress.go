// SPDX-License-Identifier: Apache-2.0

package pump

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Progress is how far a log has been written. It lives in memory that outlives the process that writes it: a reader after a crash sees
// every store that was made before it, so the order of stores is the whole protocol. The zero value is the beginning.
//
// The position in force is half[seq&1]. A change writes the other half, then seq+1.
type Progress struct {
	seq  atomic.Uint64
	half [2]position
}

// position is what is in force at one moment. See the package comment for the rules.
type position struct {
	log   uint64    // bytes of the log file that are final
	spool [2]uint64 // bytes of each spool that are in the log
	end   uint64    // with mode: the spool offset up to which a write is under way
	time  int64     // with mode: the time on its lines
	gen   uint32    // which log file
	mode  uint32    // 0, or whose output is being written: 1 + the stream
}

// Begin makes the end of a log file the place of the first line. It fails for what can't be a log.
func (p *Progress) Begin(log int) error {
	size, err := logSize(log)
	if err == nil {
		p.set(position{log: size})
	}
	return err
}

// at is the position in force.
func (p *Progress) at() position { return p.half[p.seq.Load()&1] }

// set puts a position in force, atomically.
func (p *Progress) set(to position) {
	n := p.seq.Load() + 1
	p.half[n&1] = to
	p.seq.Store(n)
}

// logSize is where writing to a log file starts. Appending writes would ignore the offset, so the flag is taken away.
func logSize(fd int) (uint64, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return 0, err
	}
	if flags&unix.O_ACCMODE == unix.O_RDONLY {
		return 0, unix.EBADF
	}
	if flags&unix.O_APPEND != 0 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&^unix.O_APPEND); err != nil {
			return 0, err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, unix.EINVAL
	}
	return uint64(st.Size), nil
}
