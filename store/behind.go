// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"crishim.dev/internal/fsx"
)

// behindDelay is how long a change waits for others to the same record before it goes to disk.
const behindDelay = 200 * time.Millisecond

// behind copies records to disk in the background. A record that changes ten times in a moment is written once.
type behind struct {
	dir  string
	log  *slog.Logger
	wake chan struct{} // holds one element when there is something to do
	stop chan struct{}
	done chan struct{}

	mu sync.Mutex
	// pending has the newest content of each record that the disk does not have yet; nil deletes. Guarded by mu.
	pending map[string][]byte
}

func startBehind(dir string, log *slog.Logger) *behind {
	b := &behind{
		dir: dir, log: log, pending: map[string][]byte{},
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	go b.run() // ends with close
	return b
}

func (b *behind) put(id string, data []byte) {
	b.mu.Lock()
	b.pending[id] = data
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *behind) close() {
	close(b.stop)
	<-b.done
}

func (b *behind) run() {
	defer close(b.done)
	for {
		select {
		case <-b.stop:
			b.flush()
			return
		case <-b.wake:
		}
		select {
		case <-b.stop:
		case <-time.After(behindDelay):
		}
		b.flush()
	}
}

func (b *behind) flush() {
	b.mu.Lock()
	todo := b.pending
	b.pending = map[string][]byte{}
	b.mu.Unlock()
	for id, data := range todo {
		if err := b.write(id, data); err != nil {
			// The copy only serves the next boot; the truth on tmpfs is written.
			b.log.Warn("record was not copied to disk", "record", id, "error", err)
		}
	}
}

func (b *behind) write(id string, data []byte) error {
	path := filepath.Join(b.dir, id)
	if data != nil {
		return fsx.WriteFileAtomic(path, data, 0o600, true)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
