// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// durableFile marks a layer whose content is known to be on disk. Within the boot that made it a layer needs no mark: the kernel
// shows what was written, written back or not. After another boot, one without the mark may be torn, and is dropped.
//
// So a pull need not wait for the disk, and a power cut costs at most the layers of the last seconds, which are pulled again.
const durableFile = "durable"

// Writing back waits until no layer has been in the making for quiet: beside it, what a pull does wait for, the record of its image,
// would have to wait for all of its layers too (ext4 and others commit in order). After late it waits no more.
const (
	quiet = time.Second
	late  = 30 * time.Second
)

// syncer writes layers back to disk behind their commit, all that wait with one syncfs(2), and marks them.
type syncer struct {
	log  *slog.Logger
	boot string
	// dir is on the file system. It is opened before anything is written, so that syncfs reports every write-back error
	// since (Linux 5.8).
	dir  *os.File
	wake chan struct{} // capacity 1: something waits to be written
	now  chan struct{} // capacity 1: somebody waits for it
	quit chan struct{}
	done chan struct{} // closes when the worker has ended
	once sync.Once

	mu sync.Mutex
	// drafts counts layers in the making, last is when there was one. Guarded by mu.
	drafts int
	last   time.Time
	// waiting are the directories of layers to be marked, with their inodes: a layer of the same name may take one's place.
	// Guarded by mu.
	waiting map[string]uint64
	idle    chan struct{} // closed while nothing waits and nothing runs; guarded by mu
}

// bootID tells boots apart.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

func (y *syncer) start(dir *os.File, boot string, log *slog.Logger) {
	y.dir, y.boot, y.log = dir, boot, log
	y.wake, y.now, y.quit, y.done = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	y.waiting, y.idle = map[string]uint64{}, make(chan struct{})
	close(y.idle)
	go y.work()
}

// put asks for a layer's directory to be made durable.
func (y *syncer) put(layer string) {
	var st unix.Stat_t
	if err := unix.Lstat(layer, &st); err != nil {
		return // removed already
	}
	y.mu.Lock()
	if len(y.waiting) == 0 {
		select {
		case <-y.idle:
			y.idle = make(chan struct{})
		default: // a round runs
		}
	}
	y.waiting[layer] = st.Ino
	y.mu.Unlock()
	tell(y.wake)
}

func tell(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // told already
	}
}

// draft notes that a layer is in the making (+1), or no longer (-1).
func (y *syncer) draft(by int) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.drafts += by
	y.last = time.Now()
}

// flush has what waits written back now. The channel closes when nothing waits any more.
func (y *syncer) flush() <-chan struct{} {
	tell(y.now)
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.idle
}

func (y *syncer) stop() {
	if y.quit == nil {
		return
	}
	y.once.Do(func() { close(y.quit) })
	<-y.done
}

func (y *syncer) work() {
	defer close(y.done)
	for {
		select {
		case <-y.quit:
			return
		case <-y.wake:
		}
		if !y.calm() {
			return
		}
		y.round()
	}
}

// calm waits for the moment to write back. It is false when the store is closed instead.
func (y *syncer) calm() bool {
	for end := time.Now().Add(late); ; {
		y.mu.Lock()
		wait := quiet - time.Since(y.last)
		if y.drafts > 0 {
			wait = quiet
		}
		y.mu.Unlock()
		if wait = min(wait, time.Until(end)); wait <= 0 {
			return true
		}
		select {
		case <-y.quit:
			return false
		case <-y.now:
			return true
		case <-time.After(wait):
		}
	}
}

// round makes durable what waits. A layer that comes meanwhile has to wait for the next: syncfs may have passed it by.
func (y *syncer) round() {
	y.mu.Lock()
	now := y.waiting
	y.waiting = map[string]uint64{}
	y.mu.Unlock()
	if len(now) == 0 {
		return
	}
	if err := unix.Syncfs(int(y.dir.Fd())); err != nil {
		// The layers stay usable in this boot and unmarked.
		y.log.Error("Cannot write image layers to disk; they will be gone after a reboot.", "err", os.NewSyscallError("syncfs", err))
	} else {
		for layer, ino := range now {
			if err := mark(layer, ino); err != nil {
				y.log.Warn("Cannot mark an image layer as written to disk.", "layer", filepath.Base(layer), "err", err)
			}
		}
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	if len(y.waiting) == 0 {
		close(y.idle)
	}
}

// mark needs no syncing itself: without the mark the layer is dropped, which is the safe side. A layer removed meanwhile is fine.
func mark(layer string, ino uint64) error {
	dir, err := unix.Open(layer, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil || st.Ino != ino {
		return os.NewSyscallError("stat", err)
	}
	return os.NewSyscallError("create "+durableFile, unix.Mknodat(dir, durableFile, unix.S_IFREG|0o600, 0))
}

// intact says whether a layer found at Open can be trusted.
func (y *syncer) intact(dir string, l Layer) (durable bool, err error) {
	_, err = os.Lstat(filepath.Join(dir, durableFile))
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	if l.Boot != y.boot {
		return false, fmt.Errorf("it was not yet on disk when the machine went down")
	}
	return false, nil
}
