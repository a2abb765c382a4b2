// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// trash deletes what was moved into its directory, one entry after the other, apart from who moved it: a container that wrote a
// million files must not hold up its removal. What a crash leaves is deleted at the next start.
type trash struct {
	dir  *os.File
	log  *slog.Logger
	wake chan struct{} // capacity 1
	quit chan struct{}
	done chan struct{} // closed when the worker has ended
	once sync.Once

	mu sync.Mutex
	// waiting lists the entries not yet deleted, oldest first; a channel closes when its entry is gone. Guarded by mu.
	waiting []trashed
	moved   uint64 // names handed out for directories that were too deep; guarded by mu
}

type trashed struct {
	name string
	gone chan struct{}
}

// start begins to delete what lies there.
func (t *trash) start(log *slog.Logger) {
	t.log, t.wake, t.quit, t.done = log, make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	entries, err := t.dir.ReadDir(-1)
	if err != nil {
		log.Warn("Cannot list removed snapshots.", "err", err)
	}
	for _, e := range entries {
		t.put(e.Name())
	}
	go t.work()
}

// put tells of a new entry.
func (t *trash) put(name string) {
	t.mu.Lock()
	known := slices.ContainsFunc(t.waiting, func(w trashed) bool { return w.name == name })
	if !known {
		t.waiting = append(t.waiting, trashed{name, make(chan struct{})})
	}
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// drain waits until all entries of now are gone, or could not be removed.
func (t *trash) drain(ctx context.Context) error {
	t.mu.Lock()
	all := slices.Clone(t.waiting)
	t.mu.Unlock()
	for _, w := range all {
		select {
		case <-w.gone:
		case <-t.done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("remove snapshots: %w", context.Cause(ctx))
		}
	}
	return nil
}

func (t *trash) stop() {
	if t.quit == nil {
		return
	}
	t.once.Do(func() { close(t.quit) })
	<-t.done
}

func (t *trash) work() {
	defer close(t.done)
	for {
		select {
		case <-t.quit:
			return
		case <-t.wake:
		}
		for t.step() {
		}
	}
}

// step deletes the oldest entry and says whether there may be more.
func (t *trash) step() bool {
	t.mu.Lock()
	if len(t.waiting) == 0 {
		t.mu.Unlock()
		return false
	}
	w := t.waiting[0]
	t.mu.Unlock()
	err := t.remove(w.name)
	if errors.Is(err, errStopped) {
		return false
	}
	if err != nil {
		t.log.Warn("Cannot delete a removed snapshot; the next start tries again.", "path", t.dir.Name()+"/"+w.name, "err", err)
	}
	t.mu.Lock()
	t.waiting = t.waiting[1:]
	more := len(t.waiting) > 0
	t.mu.Unlock()
	close(w.gone)
	return more
}

// errStopped is returned when Close came in the middle of a deletion.
var errStopped = errors.New("stopped")

// maxDepth bounds the open directories of one deletion. A container can nest directories far deeper than a process may open
// files; what lies deeper is moved to the top of the trash and deleted from there.
const maxDepth = 48

func (t *trash) remove(name string) error { return t.removeAt(int(t.dir.Fd()), name, 0) }

// removeAt deletes name in the directory dir, whatever it is. Something that is not there is fine.
func (t *trash) removeAt(dir int, name string, depth int) error {
	err := unlink(dir, name, 0)
	if err == nil || !errors.Is(err, unix.EISDIR) {
		return err
	}
	if depth > maxDepth {
		return t.raise(dir, name)
	}
	fd, err := openDir(dir, name)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	// Entries deleted while the directory is read may hide others from this pass: read it again until it is empty.
	for range 16 {
		if err := t.empty(f, depth); err != nil {
			return err
		}
		err := unlink(dir, name, unix.AT_REMOVEDIR)
		if !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	return &os.PathError{Op: "rmdir", Path: name, Err: unix.ENOTEMPTY}
}

// empty deletes the entries of a directory.
func (t *trash) empty(f *os.File, depth int) error {
	for {
		select {
		case <-t.quit:
			return errStopped
		default:
		}
		names, err := f.Readdirnames(512)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := t.removeAt(int(f.Fd()), n, depth+1); err != nil {
				return err
			}
		}
	}
}

// raise moves a directory that lies too deep to the top of the trash.
func (t *trash) raise(dir int, name string) error {
	t.mu.Lock()
	t.moved++
	top := "deep." + strconv.Itoa(os.Getpid()) + "." + strconv.FormatUint(t.moved, 10)
	t.mu.Unlock()
	if err := unix.Renameat(dir, name, int(t.dir.Fd()), top); err != nil {
		return &os.PathError{Op: "rename", Path: name, Err: err}
	}
	t.put(top)
	return nil
}

// unlink is unlinkat(2) that clears the immutable and append-only flags which a container with CAP_LINUX_IMMUTABLE may have
// set on the entry or its directory. A missing entry is fine. EISDIR is returned for a directory without AT_REMOVEDIR.
func unlink(dir int, name string, flags int) error {
	err := unix.Unlinkat(dir, name, flags)
	if errors.Is(err, unix.EPERM) {
		clearFlags(dir, ".")
		clearFlags(dir, name)
		err = unix.Unlinkat(dir, name, flags)
	}
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTEMPTY):
		return err
	}
	return &os.PathError{Op: "unlink", Path: name, Err: err}
}

// openDir opens a directory to read it, whatever its mode says and whatever flags it has.
func openDir(dir int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags, 0)
	if errors.Is(err, unix.EACCES) { // no CAP_DAC_OVERRIDE: overlay's own work directories are mode 000
		if unix.Fchmodat(dir, name, 0o700, 0) == nil {
			fd, err = unix.Openat(dir, name, flags, 0)
		}
	}
	return fd, err
}

// clearFlags removes what chattr +ia set. Best effort: the unlink that follows says what is wrong.
func clearFlags(dir int, name string) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return
	}
	have, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	const immutable, appendOnly = 0x10, 0x20 // FS_IMMUTABLE_FL, FS_APPEND_FL of <linux/fs.h>
	if err != nil || have&(immutable|appendOnly) == 0 {
		return
	}
	_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(have&^(immutable|appendOnly)))
}
