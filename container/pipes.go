// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/stream"
)

// pipes connect a caller's streams with an exec process. With a terminal there are none, but the pty's master.
type pipes struct {
	stdin, stdout, stderr pipeEnd
	master                *os.File
	// copies counts the goroutines that read the process's output; they end when ours ends are closed or at EOF.
	copies sync.WaitGroup
}

// pipeEnd is one pipe: our end and the one that the process gets. Both are nil when the stream was not asked for.
type pipeEnd struct{ ours, theirs *os.File }

// give hands the process's end over to the launch.
func (p *pipeEnd) give() *os.File {
	f := p.theirs
	p.theirs = nil
	return f
}

func openPipes(s stream.IO) (*pipes, error) {
	p := &pipes{}
	if s.TTY {
		return p, nil
	}
	var errIn, errOut, errErr error
	if s.Stdin != nil {
		p.stdin.theirs, p.stdin.ours, errIn = os.Pipe()
	}
	if s.Stdout != nil {
		p.stdout.ours, p.stdout.theirs, errOut = os.Pipe()
	}
	if s.Stderr != nil {
		p.stderr.ours, p.stderr.theirs, errErr = os.Pipe()
	}
	if err := errors.Join(errIn, errOut, errErr); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// started begins to copy. Input is copied by a goroutine that nobody waits for: its reader is the caller's connection, which ends
// with the call.
func (p *pipes) started(s stream.IO, master *os.File) {
	p.master = master
	if master != nil {
		p.output(s.Stdout, master)
		p.input(s.Stdin, master, false)
		if s.Resize != nil {
			go resize(master, s.Resize) // ends with the connection, which closes Resize
		}
		return
	}
	p.output(s.Stdout, p.stdout.ours)
	p.output(s.Stderr, p.stderr.ours)
	p.input(s.Stdin, p.stdin.ours, true)
}

func (p *pipes) output(w io.Writer, r *os.File) {
	if w == nil || r == nil {
		return
	}
	p.copies.Go(func() {
		// A writer that fails is a client that has gone; the process must not stall on its full pipe before it is killed.
		if _, err := io.Copy(w, r); err != nil {
			_, _ = io.Copy(io.Discard, r)
		}
	})
}

func (p *pipes) input(r io.Reader, w *os.File, closeAtEnd bool) {
	if r == nil || w == nil {
		return
	}
	go func() {
		_, _ = io.Copy(w, r)
		if closeAtEnd {
			_ = w.Close()
		}
	}()
}

// drain waits for the rest of the output, for a bounded time.
func (p *pipes) drain() {
	limit := time.Now().Add(drainLimit)
	for _, f := range []*os.File{p.stdout.ours, p.stderr.ours, p.master} {
		if f != nil {
			_ = f.SetReadDeadline(limit)
		}
	}
	p.copies.Wait()
}

func (p *pipes) close() {
	for _, f := range []*os.File{
		p.stdin.ours, p.stdin.theirs, p.stdout.ours, p.stdout.theirs, p.stderr.ours, p.stderr.theirs, p.master,
	} {
		if f != nil {
			_ = f.Close()
		}
	}
	p.copies.Wait()
}

func resize(master *os.File, sizes <-chan stream.Size) {
	for size := range sizes {
		raw, err := master.SyscallConn()
		if err != nil {
			return
		}
		_ = raw.Control(func(fd uintptr) {
			_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
		})
	}
}

// budget is what several capped writers may keep together.
type budget struct {
	mu   sync.Mutex
	left int // guarded by mu
}

// capped keeps what the budget allows and swallows the rest.
type capped struct {
	budget *budget
	data   []byte
}

func (c *capped) Write(b []byte) (int, error) {
	c.budget.mu.Lock()
	n := min(len(b), c.budget.left)
	c.budget.left -= n
	c.budget.mu.Unlock()
	c.data = append(c.data, b[:n]...)
	return len(b), nil
}
