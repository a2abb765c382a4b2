// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// watch calls a function when a file may have changed. It watches the directory: files are replaced by rename, and those of a
// ConfigMap are links through another link that is replaced.
type watch struct {
	path   string
	events *os.File
	done   chan struct{}
}

func watchFile(path string, changed func()) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	w := &watch{path: path, events: os.NewFile(uintptr(fd), "inotify"), done: make(chan struct{})}
	const mask = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_CREATE
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), mask); err != nil {
		_ = w.events.Close()
		return nil, fmt.Errorf("watch %s: %w", filepath.Dir(path), err)
	}
	before, _ := os.ReadFile(path)
	go w.run(before, changed)
	return w, nil
}

// run ends when close closes the descriptor.
func (w *watch) run(before []byte, changed func()) {
	defer close(w.done)
	buf := make([]byte, 16*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	for {
		if _, err := w.events.Read(buf); err != nil {
			return
		}
		// Whatever happened in the directory: what counts is the content.
		now, err := os.ReadFile(w.path)
		if err != nil || bytes.Equal(now, before) {
			continue
		}
		before = now
		changed()
	}
}

func (w *watch) close() {
	if w == nil {
		return
	}
	_ = w.events.Close()
	<-w.done
}

// of says that the watch is of that file; no watch is of no file.
func (w *watch) of(path string) bool {
	if w == nil {
		return path == ""
	}
	return w.path == path
}
