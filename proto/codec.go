// SPDX-License-Identifier: Apache-2.0

package proto

import (
	"encoding/binary"
	"errors"
	"strconv"
)

// ErrMessage is wrapped by every refusal of a malformed message.
var ErrMessage = errors.New("malformed keeper message")

// refusal is an error of one of the kinds ErrMessage and ErrProgram. The keeper does without fmt: with it come os, which
// raises RLIMIT_NOFILE at start, and a third of the binary.
type refusal struct {
	kind error
	text string
}

func (r *refusal) Error() string { return r.kind.Error() + ": " + r.text }
func (r *refusal) Unwrap() error { return r.kind }

func refuse(kind error, text ...string) error {
	r := &refusal{kind: kind}
	for _, t := range text {
		r.text += t
	}
	return r
}

// Message is one of the types in this package. Its fields method walks its fields in wire order, for both directions.
type Message interface {
	kind() uint16
	fields(c *codec)
}

// codec writes fields to buf (enc) or reads them from it. After an error every read gives the zero value.
type codec struct {
	enc bool
	buf []byte
	bad bool
}

func (c *codec) take(n int) []byte {
	if c.bad || n < 0 || len(c.buf) < n {
		c.bad = true
		return nil
	}
	b := c.buf[:n]
	c.buf = c.buf[n:]
	return b
}

func (c *codec) u64(v *uint64) {
	if c.enc {
		c.buf = binary.LittleEndian.AppendUint64(c.buf, *v)
	} else if b := c.take(8); b != nil {
		*v = binary.LittleEndian.Uint64(b)
	}
}

func (c *codec) u32(v *uint32) {
	if c.enc {
		c.buf = binary.LittleEndian.AppendUint32(c.buf, *v)
	} else if b := c.take(4); b != nil {
		*v = binary.LittleEndian.Uint32(b)
	}
}

func (c *codec) i32(v *int32) { u := uint32(*v); c.u32(&u); *v = int32(u) }
func (c *codec) i64(v *int64) { u := uint64(*v); c.u64(&u); *v = int64(u) }

func (c *codec) bool(v *bool) {
	var u uint32
	if *v {
		u = 1
	}
	c.u32(&u)
	*v = u != 0
}

func (c *codec) str(v *string) {
	n := uint32(len(*v))
	c.u32(&n)
	if c.enc {
		c.buf = append(c.buf, *v...)
	} else {
		*v = string(c.take(int(n)))
	}
}

// slice walks the elements of *v; the decoder bounds the count by the bytes that are left.
func slice[T any](c *codec, v *[]T, f func(*codec, *T)) {
	n := uint32(len(*v))
	c.u32(&n)
	if !c.enc {
		if int(n) > len(c.buf) {
			c.bad = true
			return
		}
		*v = make([]T, n)
	}
	for i := range *v {
		f(c, &(*v)[i])
	}
}

// Marshal encodes m with the sequence number seq: 0 for events, else the request's own, repeated by its reply.
func Marshal(seq uint64, m Message) []byte {
	c := &codec{enc: true, buf: make([]byte, 0, 256)}
	k := uint32(m.kind())
	c.u32(&k)
	c.u64(&seq)
	m.fields(c)
	return c.buf
}

// Unmarshal decodes one packet.
func Unmarshal(b []byte) (seq uint64, m Message, err error) {
	c := &codec{buf: b}
	var k uint32
	c.u32(&k)
	c.u64(&seq)
	m = newMessage(uint16(k))
	if c.bad || m == nil || k > 0xffff {
		return 0, nil, refuse(ErrMessage, "kind ", strconv.Itoa(int(k)), ", ", strconv.Itoa(len(b)), " bytes")
	}
	m.fields(c)
	if c.bad || len(c.buf) != 0 {
		return 0, nil, refuse(ErrMessage, "kind ", strconv.Itoa(int(k)), ": length")
	}
	return seq, m, nil
}
