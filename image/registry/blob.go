// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"crishim.dev/internal/errs"
)

// Blob reads a blob's content, all d.Size bytes of it and no more. It connects with the first Read, continues a broken connection
// where it broke (by Range, or by reading again up to there), and goes on to the next host when one fails for good.
// The content is not checked against the digest.
func (r *Repository) Blob(ctx context.Context, d Descriptor) io.ReadCloser {
	return &blob{ctx: ctx, repo: r, d: d}
}

// blob is a Blob being read. Not safe for concurrent use.
type blob struct {
	ctx   context.Context //nolint:containedctx // a reader's: it lives as long as the blob is read
	repo  *Repository
	d     Descriptor
	off   int64
	conn  *connection // nil: none
	from  int         // the endpoint in use
	fails int         // breaks without progress
	said  []string    // what hosts that were given up said
}

// progress is how much a connection must bring to be forgiven for breaking.
const progress = 256 << 10

// Read reads on.
func (b *blob) Read(p []byte) (int, error) {
	for {
		if b.off >= b.d.Size {
			return 0, b.finish()
		}
		if b.conn == nil {
			if err := b.connect(); err != nil {
				return 0, redact(err, b.repo.secrets)
			}
		}
		n, err := b.conn.Read(p[:min(int64(len(p)), b.d.Size-b.off)])
		b.off += int64(n)
		if n > 0 && b.repo.o.Limit != nil {
			if err := b.repo.o.Limit(b.ctx, n); err != nil {
				return n, err
			}
		}
		if n > 0 || err == nil {
			if err != nil {
				b.broken(err)
			}
			return n, nil
		}
		b.broken(err)
	}
}

// finish makes sure that the host sent no more than it should.
func (b *blob) finish() error {
	if b.conn == nil {
		return io.EOF
	}
	var one [1]byte
	n, _ := b.conn.Read(one[:])
	b.drop()
	if n > 0 {
		return errs.Newf(errs.Invalid, "read blob %s: larger than the %d bytes its descriptor says", b.d.Digest, b.d.Size)
	}
	return io.EOF
}

// broken drops a connection that ended early.
func (b *blob) broken(err error) {
	if b.conn.total >= progress {
		b.fails = 0
	}
	b.fails++
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("the connection ended after %d of %d bytes", b.off, b.d.Size)
	}
	b.note(transportError("read from "+b.repo.endpoints[b.from].host.Base.Host, err))
	b.drop()
}

func (b *blob) note(err error) {
	const keep = 4
	if b.said = append(b.said, err.Error()); len(b.said) > keep {
		b.said = b.said[len(b.said)-keep:]
	}
}

func (b *blob) drop() {
	if b.conn != nil {
		b.conn.close()
		b.conn = nil
	}
}

// connect opens a connection at the present offset.
func (b *blob) connect() error {
	for {
		if b.ctx.Err() != nil {
			return fmt.Errorf("read blob: %w", context.Cause(b.ctx))
		}
		if b.from >= len(b.repo.endpoints) {
			return errs.Newf(errs.Unavailable, "read blob %s: %s", b.d.Digest, strings.Join(b.said, "; then "))
		}
		e := b.repo.endpoints[b.from]
		if !e.host.Pull || b.fails >= b.repo.o.Retries {
			b.from, b.fails = b.from+1, 0
			continue
		}
		if b.fails > 0 {
			if err := b.repo.pause(b.ctx, b.fails-1, nil); err != nil {
				return fmt.Errorf("read blob: %w", err)
			}
		}
		err := b.open(e)
		if err == nil {
			return nil
		}
		if b.ctx.Err() != nil {
			return fmt.Errorf("read blob: %w", context.Cause(b.ctx))
		}
		b.note(err)
		if errors.Is(err, errs.Unavailable) {
			b.fails++
			continue
		}
		if last := b.from+1 >= len(b.repo.endpoints); last {
			return fmt.Errorf("read blob %s: %w", b.d.Digest, err)
		}
		b.from, b.fails = b.from+1, 0
	}
}

// open asks one host once.
func (b *blob) open(e *endpoint) error {
	ctx, cancel := context.WithCancelCause(b.ctx)
	header := http.Header{}
	if b.off > 0 {
		header.Set("Range", "bytes="+strconv.FormatInt(b.off, 10)+"-")
	}
	resp, err := b.repo.get(ctx, e, http.MethodGet, b.repo.url(e, "blobs", b.d.Digest), header) //nolint:bodyclose // the connection has it
	if err != nil {
		cancel(nil)
		return err
	}
	c := &connection{body: resp.Body, ctx: ctx, cancel: cancel, minRate: b.repo.o.MinRate, window: b.repo.o.StallTime}
	c.timer = time.AfterFunc(c.window, func() { cancel(errStalled) })
	c.timer.Stop()
	skip := b.off
	if resp.StatusCode == http.StatusPartialContent {
		start, _, _ := strings.Cut(strings.TrimPrefix(resp.Header.Get("Content-Range"), "bytes "), "-")
		if got, err := strconv.ParseInt(start, 10, 64); err != nil || got != b.off {
			c.close()
			return errs.Newf(errs.Unavailable, "read from %s: asked for byte %d on, it sent something else", e.host.Base.Host, b.off)
		}
		skip = 0
	}
	if _, err := io.CopyN(io.Discard, c, skip); err != nil {
		c.close()
		return transportError("read from "+e.host.Base.Host+" again", err)
	}
	c.total = 0
	b.conn = c
	return nil
}

// Close ends the connection.
func (b *blob) Close() error {
	b.drop()
	return nil
}

// errStalled is why a connection that brings too little is dropped.
var errStalled = errors.New("too slow")

// connection is one answer being read, with an eye on its rate. Only time spent waiting in Read counts: a reader that is slow
// itself does no harm.
type connection struct {
	body    io.ReadCloser
	ctx     context.Context //nolint:containedctx // the request's
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	minRate int64
	window  time.Duration

	total  int64         // bytes so far
	waited time.Duration // in this window
	got    int64         // bytes in this window
}

func (c *connection) Read(p []byte) (int, error) {
	start := time.Now()
	c.timer.Reset(c.window)
	n, err := c.body.Read(p)
	c.timer.Stop()
	c.waited += time.Since(start)
	c.got += int64(n)
	c.total += int64(n)
	if err != nil && errors.Is(context.Cause(c.ctx), errStalled) {
		return n, fmt.Errorf("nothing came for %s: %w", c.window, errStalled)
	}
	if c.waited >= c.window {
		if least := int64(float64(c.minRate) * c.waited.Seconds()); c.got < least && err == nil {
			err = fmt.Errorf("%d bytes in %s: %w", c.got, c.waited.Round(time.Second), errStalled)
		}
		c.waited, c.got = 0, 0
	}
	return n, err
}

func (c *connection) close() {
	c.timer.Stop()
	c.cancel(nil)
	_ = c.body.Close()
}
