// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/image/registry"
	"crishim.dev/internal/errs"
)

// partials keeps the beginnings of layers that take long, so that a pull that is cut off, by a restart of the daemon too, goes on by
// Range where it was. Why not of all layers, and how much: docs/decisions/006. Safe for concurrent use.
//
// The beginning of a blob is the file DIR/BOOT/DIGEST. Nothing is synced: what an earlier boot wrote may be torn, and is removed.
// What is kept is trusted as little as what a registry sends: the whole is compared with the digest.
type partials struct {
	dir  string
	slow time.Duration // what a layer must be expected to take
	log  *slog.Logger

	mu   sync.Mutex
	busy map[string]bool // digests with a reader; guarded by mu
}

// keepWindow is how much of a layer shows whether it is slow, and is kept in any case.
const keepWindow = 4 << 20

func openPartials(dir string, slow time.Duration, log *slog.Logger) (*partials, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	p := &partials{dir: filepath.Join(dir, strings.TrimSpace(string(boot))), slow: slow, log: log, busy: map[string]bool{}}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, fmt.Errorf("keep partial layers: %w", err)
	}
	entries, err := os.ReadDir(dir)
	all := []error{err}
	for _, e := range entries {
		if e.Name() != filepath.Base(p.dir) {
			all = append(all, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return p, errors.Join(all...)
}

// open reads a blob: what is kept of it, then the rest from the registry. errDone as the cause of ctx's end says that whoever reads
// has what it wants, or wants no more.
func (p *partials) open(ctx context.Context, repo *registry.Repository, d registry.Descriptor) (io.ReadCloser, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy[d.Digest] {
		return repo.Blob(ctx, d, 0), nil
	}
	r := &partial{table: p, ctx: ctx, d: d, start: time.Now(), path: filepath.Join(p.dir, strings.TrimPrefix(d.Digest, "sha256:"))}
	if f, err := os.OpenFile(r.path, os.O_RDWR|unix.O_NOFOLLOW, 0); err == nil {
		r.file = f
		if fi, err := f.Stat(); err == nil && fi.Size() <= d.Size {
			r.have, r.at = fi.Size(), fi.Size()
			p.log.InfoContext(ctx, "Resuming layer.", "digest", d.Digest, "at", r.have, "bytes", d.Size)
		} else {
			r.forget()
		}
	}
	r.kept, r.rest = io.NewSectionReader(r.file, 0, r.have), repo.Blob(ctx, d, r.have)
	p.busy[d.Digest] = true
	return r, nil
}

// collect removes what has not grown for an age.
func (p *partials) collect(age time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	entries, err := os.ReadDir(p.dir)
	all := []error{err}
	for _, e := range entries {
		fi, err := e.Info()
		if err == nil && !p.busy["sha256:"+e.Name()] && time.Since(fi.ModTime()) >= age {
			all = append(all, os.Remove(filepath.Join(p.dir, e.Name())))
		}
	}
	return errors.Join(all...)
}

var (
	// errDone ends the work on a layer that is complete, or can't be.
	errDone = errors.New("done")
	// errFast says that a layer is not worth keeping.
	errFast = errors.New("fast enough")
)

// partial is a blob being read, whose beginning may be kept. Not safe for concurrent use.
type partial struct {
	table *partials
	ctx   context.Context //nolint:containedctx // a reader's: it lives as long as the blob is read
	d     registry.Descriptor
	path  string
	start time.Time
	have  int64     // what was kept before
	kept  io.Reader // reads it
	rest  io.ReadCloser

	file *os.File // nil: nothing is kept (yet)
	at   int64    // its size
	off  bool     // nothing will be kept
	err  error    // of rest
}

// Read reads on.
func (p *partial) Read(b []byte) (int, error) {
	if n, err := p.kept.Read(b); n > 0 || err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	n, err := p.rest.Read(b)
	p.err = err
	if n > 0 && !p.off {
		p.keep(b[:n])
	}
	return n, err
}

// keep keeps b, as long as the layer is slow.
func (p *partial) keep(b []byte) {
	if p.file == nil {
		if !p.room() {
			p.off = true
			return
		}
		f, err := os.OpenFile(p.path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			p.off = true
			return
		}
		p.file, p.at = f, 0
	}
	n, err := p.file.WriteAt(b, p.at)
	before := p.at
	p.at += int64(n)
	if err == nil && before < keepWindow && p.at >= keepWindow {
		left := float64(p.d.Size-p.at) / float64(p.at-p.have) * float64(time.Since(p.start))
		if time.Duration(left) < p.table.slow {
			err = errFast
		}
	}
	if err != nil { // the layer itself comes first
		p.forget()
	}
}

// room says whether the file system has plenty for the layer and its beginning.
func (p *partial) room() bool {
	var st unix.Statfs_t
	const unpacked = 4 // times the size, in most cases less
	return unix.Statfs(p.table.dir, &st) == nil && st.Bavail*uint64(st.Bsize) > (unpacked+1)*uint64(p.d.Size)
}

// forget removes what is kept.
func (p *partial) forget() {
	p.off = true
	if p.file != nil {
		_ = p.file.Close()
		_ = os.Remove(p.path)
		p.file = nil
	}
}

// Close leaves what is kept to the next reader if the registry or the pull was cut off, and removes it otherwise.
func (p *partial) Close() error {
	cutOff := errors.Is(p.err, errs.Unavailable) || p.ctx.Err() != nil && !errors.Is(context.Cause(p.ctx), errDone)
	err := p.rest.Close()
	if cutOff && p.file != nil {
		err = errors.Join(err, p.file.Close())
	} else {
		p.forget()
	}
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	delete(p.table.busy, p.d.Digest)
	return err
}
