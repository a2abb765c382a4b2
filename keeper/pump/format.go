// SPDX-License-Identifier: Apache-2.0

package pump

import (
	"bytes"
	"time"
)

// maxLine is the longest text on one line of a log, as kubelet and the other runtimes have it; longer ones are cut into parts
// tagged P, of which the last is tagged F. Text that no newline ends, because the stream has ended, is a part too: kubelet puts a newline
// after an F, and a termination message taken from a log must not have one (Kubernetes' conformance tests look).
const maxLine = 16 << 10

// whole gives the length of in's prefix that can be written now: whole lines, and parts of a line that is too long. A part is cut
// only when at least one byte follows it, so that a line of exactly maxLine bytes is one line.
func whole(in []byte) int {
	n := bytes.LastIndexByte(in, '\n') + 1
	if tail := len(in) - n; tail > maxLine {
		n += (tail - 1) / maxLine * maxLine
	}
	return n
}

const prefixSize = len("2006-01-02T15:04:05.000000000Z stdout F ")

var streamNames = [2]string{"stdout", "stderr"}

// prefix gives the start of a log line, in the CRI format.
func prefix(b *[prefixSize]byte, nanos int64, stream int) {
	t := time.Unix(0, nanos).UTC()
	year, month, day := t.Date()
	hour, minute, sec := t.Clock()
	copy(b[:], "0000-00-00T00:00:00.000000000Z ------ F ")
	for _, f := range [...]struct{ end, v int }{
		{4, year}, {7, int(month)}, {10, day}, {13, hour}, {16, minute}, {19, sec}, {29, t.Nanosecond()},
	} {
		for i := f.end; f.v > 0; f.v /= 10 {
			i--
			b[i] = byte('0' + f.v%10)
		}
	}
	copy(b[31:], streamNames[stream])
}

// format appends log lines for in to out and gives flush what has filled it. What it writes depends on nothing but its arguments: a redo
// after a crash gives the same bytes.
func format(out []byte, in []byte, nanos int64, stream int, flush func([]byte) error) error {
	var p [prefixSize]byte
	prefix(&p, nanos, stream)
	for len(in) > 0 {
		n := bytes.IndexByte(in, '\n')
		skip := 1
		tag := byte('F')
		if n < 0 {
			n, skip, tag = len(in), 0, 'P'
		}
		if n > maxLine {
			n, skip, tag = maxLine, 0, 'P'
		}
		if len(out)+prefixSize+n+1 > cap(out) {
			if err := flush(out); err != nil {
				return err
			}
			out = out[:0]
		}
		p[prefixSize-2] = tag
		out = append(out, p[:]...)
		out = append(out, in[:n]...)
		out = append(out, '\n')
		in = in[n+skip:]
	}
	return flush(out)
}
