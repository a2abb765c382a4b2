// SPDX-License-Identifier: Apache-2.0

package powercut

import (
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Requests of the kernel, from <linux/fuse.h>.
const (
	fuseForget      = 2
	fuseGetattr     = 3
	fuseSetattr     = 4
	fuseOpen        = 14
	fuseRead        = 15
	fuseWrite       = 16
	fuseRelease     = 18
	fuseFsync       = 20
	fuseFlush       = 25
	fuseInit        = 26
	fuseInterrupt   = 36
	fuseBatchForget = 42
)

const (
	fuseMajor, fuseMinor = 7, 31
	inHeader, outHeader  = 40, 16
	maxWrite             = 128 << 10
)

// serve answers the kernel until the file system is unmounted. The file system is one file: its root.
func (d *Disk) serve(dev *os.File) {
	fd := int(dev.Fd())
	buf := make([]byte, maxWrite+4096)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil || n < inHeader {
			return // unmounted
		}
		op, unique := binary.NativeEndian.Uint32(buf[4:]), binary.NativeEndian.Uint64(buf[8:])
		if op == fuseForget || op == fuseBatchForget || op == fuseInterrupt {
			continue // no answer is wanted
		}
		body, errno := d.answer(op, buf[inHeader:n])
		out := make([]byte, outHeader, outHeader+len(body))
		binary.NativeEndian.PutUint32(out, uint32(outHeader+len(body)))
		binary.NativeEndian.PutUint32(out[4:], uint32(-int32(errno)))
		binary.NativeEndian.PutUint64(out[8:], unique)
		_, _ = unix.Write(fd, append(out, body...)) // it fails when the request was interrupted
	}
}

func (d *Disk) answer(op uint32, in []byte) ([]byte, unix.Errno) {
	u32, u64 := binary.NativeEndian.Uint32, binary.NativeEndian.Uint64
	put32, put64 := binary.NativeEndian.PutUint32, binary.NativeEndian.PutUint64
	switch op {
	case fuseInit:
		out := make([]byte, 64)
		put32(out, fuseMajor)
		put32(out[4:], fuseMinor)
		put32(out[8:], u32(in[8:])) // read ahead as the kernel likes
		put32(out[20:], maxWrite)
		return out, 0
	case fuseGetattr, fuseSetattr:
		out := make([]byte, 16+88)
		attr := out[16:]
		put64(attr, 1) // inode
		put64(attr[8:], uint64(d.size()))
		put64(attr[16:], uint64(d.size()/512))
		put32(attr[60:], unix.S_IFREG|0o600)
		put32(attr[64:], 1) // links
		put32(attr[80:], 4096)
		return out, 0
	case fuseOpen:
		return make([]byte, 16), 0
	case fuseRead:
		out := make([]byte, min(u32(in[16:]), maxWrite))
		return out[:d.read(out, int64(u64(in[8:])))], 0
	case fuseWrite:
		data := in[40:]
		if !d.write(data, int64(u64(in[8:]))) {
			return nil, unix.ENOSPC
		}
		out := make([]byte, 8)
		put32(out, uint32(len(data)))
		return out, 0
	case fuseFsync:
		d.flush()
		return nil, 0
	case fuseFlush, fuseRelease:
		return nil, 0
	}
	return nil, unix.ENOSYS
}
