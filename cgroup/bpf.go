// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// insn is struct bpf_insn of linux/bpf.h, with both registers in one byte (destination low; both our architectures are
// little-endian).
type insn struct {
	code byte
	regs byte
	off  int16
	imm  int32
}

// The opcodes that the device filter uses (Documentation/bpf/standardization/instruction-set.rst).
const (
	ldxw   = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	mov32k = unix.BPF_ALU | unix.BPF_MOV | unix.BPF_K
	mov32x = unix.BPF_ALU | unix.BPF_MOV | unix.BPF_X
	and32k = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	rsh32k = unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K
	jnek   = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K
	jnex   = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_X
	exit   = unix.BPF_JMP | unix.BPF_EXIT
)

// deviceFilter compiles rules to a BPF_PROG_TYPE_CGROUP_DEVICE program that answers 1 when one rule covers the whole access.
//
// The context is struct bpf_cgroup_dev_ctx: access_type (access << 16 | type), major, minor. A rule covers an access only if
// it has every bit of it: testing for any bit would let a read-only rule open for writing.
func deviceFilter(rules []Device) []insn {
	p := []insn{
		{ldxw, 2 | 1<<4, 0, 0}, // r2 = access_type
		{mov32x, 3 | 2<<4, 0, 0},
		{and32k, 2, 0, 0xffff}, // r2 = type
		{rsh32k, 3, 0, 16},     // r3 = access
		{ldxw, 4 | 1<<4, 4, 0}, // r4 = major
		{ldxw, 5 | 1<<4, 8, 0}, // r5 = minor
	}
	for _, r := range rules {
		rule := []insn{{jnek, 2, 0, map[byte]int32{'b': unix.BPF_DEVCG_DEV_BLOCK, 'c': unix.BPF_DEVCG_DEV_CHAR}[r.Type]}}
		if a := accessBits(r.Access); a != unix.BPF_DEVCG_ACC_MKNOD|unix.BPF_DEVCG_ACC_READ|unix.BPF_DEVCG_ACC_WRITE {
			rule = append(rule, insn{mov32x, 1 | 3<<4, 0, 0}, insn{and32k, 1, 0, a}, insn{jnex, 1 | 3<<4, 0, 0})
		}
		if r.Major >= 0 {
			rule = append(rule, insn{jnek, 4, 0, int32(r.Major)})
		}
		if r.Minor >= 0 {
			rule = append(rule, insn{jnek, 5, 0, int32(r.Minor)})
		}
		rule = append(rule, insn{mov32k, 0, 0, 1}, insn{exit, 0, 0, 0})
		for i := range rule {
			if rule[i].code == jnek || rule[i].code == jnex {
				rule[i].off = int16(len(rule) - i - 1) // to the next rule
			}
		}
		p = append(p, rule...)
	}
	return append(p, insn{mov32k, 0, 0, 0}, insn{exit, 0, 0, 0})
}

func accessBits(access string) int32 {
	var bits int32
	for c, b := range map[string]int32{"m": unix.BPF_DEVCG_ACC_MKNOD, "r": unix.BPF_DEVCG_ACC_READ, "w": unix.BPF_DEVCG_ACC_WRITE} {
		if strings.Contains(access, c) {
			bits |= b
		}
	}
	return bits
}

// bpf calls bpf(2). The attribute is memory of the Go heap; keep holds what it points to.
func bpf(cmd int, attr []byte, keep ...any) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(unsafe.Pointer(&attr[0])), uintptr(len(attr)))
	runtime.KeepAlive(keep)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// attrs lays out union bpf_attr from 32-bit words; a pointer takes two.
func attrs(words ...uint32) []byte {
	b := make([]byte, 0, 4*len(words))
	for _, w := range words {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	return b
}

func low(p unsafe.Pointer) uint32  { return uint32(uintptr(p)) }
func high(p unsafe.Pointer) uint32 { return uint32(uint64(uintptr(p)) >> 32) }

// setDeviceFilter makes rules the only device filter of the group whose directory is open (not O_PATH); nil rules remove it.
// The new program is attached before the old ones go, so that there is no moment without one.
func setDeviceFilter(dir *os.File, rules []Device) error {
	old, err := deviceFilters(dir)
	if err != nil {
		return fmt.Errorf("query device filters: %w", err)
	}
	if rules != nil {
		prog, err := loadDeviceFilter(rules)
		if err != nil {
			return err
		}
		defer unix.Close(prog)
		if _, err := bpf(unix.BPF_PROG_ATTACH, attrs(uint32(dir.Fd()), uint32(prog), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI)); err != nil {
			return fmt.Errorf("attach device filter: %w", err)
		}
	}
	for _, id := range old {
		if err := detachDeviceFilter(dir, id); err != nil {
			return err
		}
	}
	return nil
}

func loadDeviceFilter(rules []Device) (int, error) {
	prog, license := deviceFilter(rules), []byte("Apache\x00")
	p, l := unsafe.Pointer(&prog[0]), unsafe.Pointer(&license[0])
	fd, err := bpf(unix.BPF_PROG_LOAD, attrs(unix.BPF_PROG_TYPE_CGROUP_DEVICE, uint32(len(prog)), low(p), high(p), low(l), high(l)), prog, license)
	if err != nil {
		return -1, fmt.Errorf("load device filter: %w", err)
	}
	unix.CloseOnExec(fd)
	return fd, nil
}

// deviceFilters lists the ids of the programs attached to the group itself.
func deviceFilters(dir *os.File) ([]uint32, error) {
	ids := make([]uint32, 64)
	p := unsafe.Pointer(&ids[0])
	attr := attrs(uint32(dir.Fd()), unix.BPF_CGROUP_DEVICE, 0, 0, low(p), high(p), uint32(len(ids)), 0)
	if _, err := bpf(unix.BPF_PROG_QUERY, attr, ids); err != nil {
		return nil, err
	}
	return ids[:binary.NativeEndian.Uint32(attr[24:])], nil
}

func detachDeviceFilter(dir *os.File, id uint32) error {
	prog, err := bpf(unix.BPF_PROG_GET_FD_BY_ID, attrs(id, 0, 0))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open device filter %d: %w", id, err)
	}
	defer unix.Close(prog)
	if _, err := bpf(unix.BPF_PROG_DETACH, attrs(uint32(dir.Fd()), uint32(prog), unix.BPF_CGROUP_DEVICE)); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("detach device filter %d: %w", id, err)
	}
	return nil
}
