// SPDX-License-Identifier: Apache-2.0

package pump

import (
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/sys"
)

// outcome is what became of a write to the log.
type outcome int

const (
	wrote outcome = iota
	closing
	reopened
)

const maxBackoff = 2 * time.Second

// write does what the intent in force says with its text, and puts the position after it in force. An error of the log file (no
// space, a quota, a broken disk) stops nothing but this container's output: the write is tried again until it succeeds, the log
// is reopened, or the pump is closed; the container meanwhile blocks when its pipe is full.
func (p *Pump) write(text []byte, b *buffers) outcome {
	pos := p.progress.at()
	i := int(pos.mode-1) & 1
	told := false
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, maxBackoff) {
		off := int64(pos.log)
		err := format(b.out[:0], text, pos.time, i, func(lines []byte) error {
			err := sys.WriteAt(p.owner.LogFile(pos.gen), lines, off)
			off += int64(len(lines))
			return err
		})
		if err == nil {
			pos.log, pos.spool[i], pos.mode = uint64(off), pos.end, 0
			p.progress.set(pos)
			return wrote
		}
		if wait == maxBackoff && !told {
			told = true
			p.owner.Failed("write log", err)
		}
		if !p.pause(wait) {
			return closing
		}
		if p.switchLog() {
			return reopened
		}
	}
}

// reopen is a request for another log file.
type reopen struct {
	fd   int
	done func(error)
}

// Reopen goes on in another log file, and calls done when all output goes there, or nothing has changed. The descriptor becomes the pump's.
func (p *Pump) Reopen(fd int, done func(error)) error {
	p.mu.Lock()
	if p.closed || !p.logged {
		p.mu.Unlock()
		unix.Close(fd)
		return unix.EINVAL
	}
	p.reopens = append(p.reopens, reopen{fd, done})
	p.mu.Unlock()
	p.kick(doReopen)
	return nil
}

// switchLog goes on in the newest log file that was asked for, at its end, and says whether there was one. It is called at points where no
// write is under way, or the one under way can't succeed: that one is taken back.
//
// The owner has the file before the position names it, and loses the old one after.
func (p *Pump) switchLog() bool {
	p.mu.Lock()
	asked := p.reopens
	p.reopens = nil
	p.mu.Unlock()
	if len(asked) == 0 {
		return false
	}
	pos := p.progress.at()
	next := pos.gen + 1
	if pos.mode != 0 {
		unix.Ftruncate(p.owner.LogFile(pos.gen), int64(pos.log)) //nolint:errcheck // a part of a line stays in a file that can't be written anyway
	}
	newest := asked[len(asked)-1]
	size, err := logSize(newest.fd)
	if err == nil {
		p.owner.HoldLog(next, newest.fd)
		pos.gen, pos.log, pos.mode = next, size, 0
		p.progress.set(pos)
		p.owner.KeepLog(next)
	} else {
		unix.Close(newest.fd)
	}
	for i, a := range asked {
		if i < len(asked)-1 {
			unix.Close(a.fd)
		}
		a.done(err)
	}
	return err == nil
}
