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

	"crishim.dev/internal/errs"
)

// Blob reads a blob's content from the byte from on, up to its d.Size bytes and no more. It connects with the first Read, continues a broken connection
// where it broke (by Range, or by reading again up to there), and goes on to the next host when one fails for good.
// The content is not checked against the digest.
func (r *Repository) Blob(ctx context.Context, d Descriptor, from int64) io.ReadCloser {
	return &blob{ctx: ctx, repo: r, d: d, off: from}
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
		if e := b.repo.pace.wait(b.ctx, n); e != nil {
			return n, e
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
		_ = b.conn.Close()
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
		if e.skips(b.d.Digest) != "" || b.fails >= b.repo.o.Retries {
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
		if b.from, b.fails = b.from+1, 0; !b.repo.more(b.from, b.d.Digest) {
			return fmt.Errorf("read blob %s: %w", b.d.Digest, err)
		}
	}
}

// open asks one host once.
func (b *blob) open(e *endpoint) error {
	header := http.Header{}
	if b.off > 0 {
		header.Set("Range", "bytes="+strconv.FormatInt(b.off, 10)+"-")
	}
	resp, err := b.repo.get(b.ctx, e, http.MethodGet, b.repo.url(e, "blobs", b.d.Digest), header) //nolint:bodyclose // b.conn is it
	if err != nil {
		return err
	}
	c, _ := resp.Body.(*connection)
	skip := b.off
	if resp.StatusCode == http.StatusPartialContent {
		start, _, _ := strings.Cut(strings.TrimPrefix(resp.Header.Get("Content-Range"), "bytes "), "-")
		if got, err := strconv.ParseInt(start, 10, 64); err != nil || got != b.off {
			_ = c.Close()
			return errs.Newf(errs.Unavailable, "read from %s: asked for byte %d on, it sent something else", e.host.Base.Host, b.off)
		}
		skip = 0
	}
	if _, err := io.CopyN(io.Discard, c, skip); err != nil {
		_ = c.Close()
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
