// SPDX-License-Identifier: Apache-2.0

package image

import (
	"io"
	"sync"
)

// ahead reads in a goroutine of its own, so that downloading, decompressing and unpacking overlap. It holds blocks×size bytes at most.
type ahead struct {
	full  chan []byte // filled blocks, in order; closes at the end
	free  chan []byte
	quit  chan struct{}
	done  chan struct{}
	once  sync.Once
	err   error  // written before full closes
	block []byte // being read from
	left  []byte // what of it is unread
}

const (
	aheadBlock  = 256 << 10
	aheadBlocks = 6
)

// readAhead starts to read r. Close ends it and waits; it does not close r.
func readAhead(r io.Reader) *ahead {
	a := &ahead{
		full: make(chan []byte, aheadBlocks), free: make(chan []byte, aheadBlocks),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	for range aheadBlocks {
		a.free <- nil // allocated when first used: small layers need one
	}
	go a.fill(r)
	return a
}

func (a *ahead) fill(r io.Reader) {
	defer close(a.done)
	defer close(a.full)
	for {
		var b []byte
		select {
		case b = <-a.free:
		case <-a.quit:
			return
		}
		if b == nil {
			b = make([]byte, aheadBlock)
		}
		n, err := fillBlock(r, b[:aheadBlock])
		if n > 0 {
			a.full <- b[:n] // never blocks: there are as many places as blocks
		}
		if err != nil {
			a.err = err
			return
		}
	}
}

// fillBlock is io.ReadFull that keeps the reader's own error, EOF included.
func fillBlock(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}

// Read gives what was read ahead.
func (a *ahead) Read(p []byte) (int, error) {
	if len(a.left) == 0 {
		if a.block != nil {
			a.free <- a.block
			a.block = nil
		}
		b, ok := <-a.full
		if !ok {
			if a.err == nil {
				return 0, io.ErrClosedPipe
			}
			return 0, a.err
		}
		a.block, a.left = b, b
	}
	n := copy(p, a.left)
	a.left = a.left[n:]
	return n, nil
}

// Close ends the reading and waits for it. r must not block for ever: its owner cancels it first.
func (a *ahead) Close() error {
	a.once.Do(func() { close(a.quit) })
	<-a.done
	return nil
}
