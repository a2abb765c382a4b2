// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"crishim.dev/proto"
)

// arg is one argument of an op.
type arg struct {
	kind proto.ArgKind
	v    uint64
}

// reg is a register of the program. Registers hold descriptors that the program opened.
type reg uint8

// code writes a program op by op.
type code struct {
	proto.Program
	// name is the label of the ops that follow.
	name string
	// strings and arrays are where equal data was stored before.
	strings, arrays map[string]uint64
	// inUse are the registers that hold something; maybe are those that may hold an errno instead.
	inUse, maybe [proto.NumRegs]bool
	// cond and its flag are the condition of the ops that follow.
	cond arg
	flag uint8
	// used has the passed descriptors that an op has named, in order of their first use.
	used []FD
}

func newCode() *code { return &code{strings: map[string]uint64{}, arrays: map[string]uint64{}} }

func imm[T ~int | ~uint64 | ~uint32](v T) arg { return arg{proto.Imm, uint64(v)} }
func (r reg) arg() arg                        { return arg{proto.Reg, uint64(r)} }

// std is one of proto.FDReport, FDStdin, FDStdout and FDStderr.
func std(i int) arg { return arg{proto.FD, uint64(i)} }

func (p *code) fd(f FD) arg {
	seen := false
	for _, u := range p.used {
		seen = seen || u == f
	}
	if !seen {
		p.used = append(p.used, f)
	}
	return arg{proto.FD, proto.FDPassed + uint64(f)}
}

// step names the ops that follow.
func (p *code) step(label string) { p.name = label }

// str is a NUL-terminated string in the data block; equal ones are stored once.
func (p *code) str(s string) arg {
	off, ok := p.strings[s]
	if !ok {
		off = uint64(len(p.Data))
		p.Data = append(append(p.Data, s...), 0)
		p.strings[s] = off
	}
	return arg{proto.Data, off}
}

// bytes is b in the data block, aligned to 8 bytes.
func (p *code) bytes(b []byte) arg {
	for len(p.Data)%8 != 0 {
		p.Data = append(p.Data, 0)
	}
	off := uint64(len(p.Data))
	p.Data = append(p.Data, b...)
	return arg{proto.Data, off}
}

// words is an array of 64-bit words in the data block; equal ones are stored once. No op writes to it.
func (p *code) words(w ...uint64) arg {
	b := make([]byte, 0, 8*len(w))
	for _, v := range w {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	off, ok := p.arrays[string(b)]
	if !ok {
		off = p.bytes(b).v
		p.arrays[string(b)] = off
	}
	return arg{proto.Data, off}
}

// vector is a NULL-terminated array of pointers to strings.
func (p *code) vector(list []string) arg {
	w := make([]uint64, 0, len(list)+1)
	for _, s := range list {
		w = append(w, p.str(s).v)
	}
	b := make([]byte, 0, 8*len(list)+8)
	for _, v := range append(w, 0) {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	a := p.bytes(b)
	for i := range list {
		p.Relocs = append(p.Relocs, uint32(a.v)+uint32(8*i))
	}
	return a
}

// do adds a system call (or pseudo-operation) and returns it for ignore and flags; the pointer is good until the next op.
func (p *code) do(nr int, args ...arg) *proto.Op {
	op := proto.Op{NR: uint32(nr), Result: proto.NoResult}
	for i, a := range args {
		op.Kind[i], op.Arg[i] = a.kind, a.v
	}
	if p.flag != 0 {
		op.Flags, op.Kind[5], op.Arg[5] = p.flag, p.cond.kind, p.cond.v
	}
	p.Ops = append(p.Ops, op)
	p.Labels = append(p.Labels, p.name)
	return &p.Ops[len(p.Ops)-1]
}

// try is do with errnos that do not fail the program.
func (p *code) try(ignore []unix.Errno, nr int, args ...arg) *proto.Op {
	op := p.do(nr, args...)
	for i, e := range ignore {
		op.Ignore[i] = uint16(e)
	}
	return op
}

// open is try for calls that return a descriptor. Until close, the register is not used again. When the call fails with an
// ignored errno the register holds none: see ifOpen.
func (p *code) open(ignore []unix.Errno, nr int, args ...arg) reg {
	op := p.try(ignore, nr, args...)
	for i, used := range p.inUse {
		if !used {
			p.inUse[i], p.maybe[i] = true, len(ignore) > 0 || p.flag != 0
			op.Result = uint8(i)
			return reg(i)
		}
	}
	panic("launch: out of registers")
}

// ifOpen adds the ops of body under the condition that r holds a descriptor, if it may not. Conditions don't nest.
func (p *code) ifOpen(r reg, body func()) { p.under(proto.FlagIf, r, body) }

// unless is the opposite of ifOpen.
func (p *code) unless(r reg, body func()) { p.under(proto.FlagUnless, r, body) }

func (p *code) under(flag uint8, r reg, body func()) {
	if p.maybe[r] {
		p.flag, p.cond = flag, r.arg()
	}
	body()
	p.flag, p.cond = 0, arg{}
}

// aside lets another process do the ops of body, while this one goes on behind them. The register that body gets, which is also the
// result, has each one's end of a socket between the two.
func (p *code) aside(body func(other reg)) reg {
	i := len(p.Ops)
	other := p.open(nil, int(proto.PseudoAside), imm(0))
	body(other)
	p.Ops[i].Arg[0] = uint64(len(p.Ops) - i - 1)
	return other
}

// close closes the descriptor in r, if there is one, and frees the register.
func (p *code) close(r reg) {
	if p.flag == 0 {
		p.ifOpen(r, func() { p.do(unix.SYS_CLOSE, r.arg()) })
	} else {
		p.do(unix.SYS_CLOSE, r.arg())
	}
	p.inUse[r] = false
}

// plan finishes the program.
func (p *code) plan(flags uint64, c Cgroup) *Plan {
	return &Plan{Program: &p.Program, CloneFlags: flags, Cgroup: int(c.Dir)}
}
