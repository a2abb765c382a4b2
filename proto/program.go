// SPDX-License-Identifier: Apache-2.0

package proto

import (
	"encoding/binary"
	"errors"
	"strconv"
)

// A launch program is a flat list of system calls that a child of the keeper makes between clone and execve.
// It travels as a sealed memfd in the host's byte order (keeper and daemon are always on one machine):
//
//	header   Magic, op count, reloc count, data length       4 × uint32
//	ops      op count × OpSize bytes, the memory layout of Op
//	relocs   reloc count × uint32, padded to 8 bytes
//	data     strings, structs, pointer vectors
//
// Every 8-byte word of data that a reloc names holds an offset into data; the keeper turns it into an address before
// the fork (argv, envp, iovecs, msghdrs).
const (
	ProgramMagic = 0x6d697331 // "1sim"
	HeaderSize   = 16
	OpSize       = 80
	// MaxOps and MaxData bound what a keeper accepts (argument and environment limits of execve are 128 KiB a string, 2 MiB in all).
	MaxOps  = 8192
	MaxData = 8 << 20
)

// Op is one system call of a launch program. The executor reads it straight from the mapped program, so the layout is
// fixed and free of padding: 80 bytes.
type Op struct {
	// NR is a system call number, or one of the pseudo-operations from PseudoStore32 on.
	NR uint32
	// Result names the register that receives the result, or NoResult.
	Result uint8
	// Flags is a set of Flag bits.
	Flags uint8
	_     uint16
	// Ignore lists errnos that do not fail the program; 0 entries are unused. The result register then gets -errno.
	Ignore [4]uint16
	// Kind says for each argument how Arg is to be read.
	Kind [6]ArgKind
	_    [10]uint8
	Arg  [6]uint64
}

// ArgKind says what an argument of an Op is.
type ArgKind uint8

// The kinds of argument.
const (
	Imm  ArgKind = iota // the value itself
	Data                // an offset into the data block: becomes its address
	Reg                 // a register's number: becomes its content
	FD                  // an index into the program's file descriptors: becomes the descriptor's number in the child
)

// Op flags.
const (
	// FlagKeepEACCES remembers an ignored EACCES: a later PseudoFail reports it instead of its own errno.
	// This is what execvp does with its PATH candidates.
	FlagKeepEACCES uint8 = 1 << iota
	// FlagIf skips the op unless the register that is Arg[5] holds a descriptor; FlagUnless, unless it holds none (an ignored
	// errno, negated). The result register of a skipped op gets -EBADF. No call that programs make has six arguments.
	FlagIf
	FlagUnless
)

// Registers and results.
const (
	NumRegs  = 32
	NoResult = 0xff
)

// Pseudo-operations.
const (
	// PseudoStore32 writes the low 32 bits of Arg[1] to data offset Arg[0], of the kind Imm or Data (descriptor numbers inside structs).
	PseudoStore32 uint32 = 1<<16 + iota
	// PseudoStore64 writes Arg[1] to data offset Arg[0].
	PseudoStore64
	// PseudoClone is clone(2) with the flags Arg[0] plus CLONE_PARENT and CLONE_PIDFD, exit signal 0. Not clone3: container seccomp
	// filters, which are in force by then, answer that with ENOSYS. The caller reports pid and pidfd of
	// the second process to the keeper (ReportPID) and exits; the program goes on in the second process.
	PseudoClone
	// PseudoReport sends the descriptor Arg[1] to the keeper with the tag Arg[0] (ReportFD).
	PseudoReport
	// PseudoFail ends the program with errno Arg[0], or EACCES if an op with FlagKeepEACCES met one.
	PseudoFail
	// PseudoExit ends the process with status Arg[0], after a program that was not meant to execve.
	PseudoExit
	// PseudoAside lets another process, a plain fork, do the next Arg[0] ops, which then ends; the program goes on behind them at once.
	// The result is a descriptor in both: the two ends of a socket between them.
	PseudoAside
	// PseudoSend sends the descriptor Arg[1], or only a message if that is negative, through such a socket Arg[0]; PseudoReceive waits for
	// one in Arg[0] and gives the descriptor. Where the other process is gone, they end this one without a report: that one has made it.
	PseudoSend
	PseudoReceive
)

// Descriptors of a program: fixed indexes first, then those that came with the Spawn message, in order. In the child each
// has a number from 3 on, so that programs can dup3 to 0, 1 and 2.
const (
	FDReport = 0 // the status socket; execve closes it
	FDStdin  = 1 // container ends of the keeper's FIFOs; absent ones are -1
	FDStdout = 2
	FDStderr = 3
	FDPassed = 4 // index of the first passed descriptor
)

// Tags of PseudoReport. Descriptors with TagPTY stay with the keeper (the pty's master); all others are returned with Spawned,
// in the order in which they were reported.
const (
	TagReturn = 0
	TagPTY    = 1
)

// Program is a launch program before it is encoded.
type Program struct {
	Ops    []Op
	Relocs []uint32
	Data   []byte
	// Labels names each op for people ("mount /proc"); it stays in the daemon and has len(Ops) entries.
	Labels []string
}

// ErrProgram is wrapped by every refusal of a malformed program.
var ErrProgram = errors.New("malformed launch program")

// Encode gives the program's wire form.
func (p *Program) Encode() ([]byte, error) {
	if len(p.Ops) > MaxOps || len(p.Data) > MaxData {
		return nil, refuse(ErrProgram, strconv.Itoa(len(p.Ops)), " ops, ", strconv.Itoa(len(p.Data)), " bytes of data")
	}
	relocs := (len(p.Relocs)*4 + 7) &^ 7
	b := make([]byte, 0, HeaderSize+len(p.Ops)*OpSize+relocs+len(p.Data))
	le := binary.NativeEndian
	b = le.AppendUint32(b, ProgramMagic)
	b = le.AppendUint32(b, uint32(len(p.Ops)))
	b = le.AppendUint32(b, uint32(len(p.Relocs)))
	b = le.AppendUint32(b, uint32(len(p.Data)))
	for i := range p.Ops {
		o := &p.Ops[i]
		b = le.AppendUint32(b, o.NR)
		b = append(b, o.Result, o.Flags, 0, 0)
		for _, e := range o.Ignore {
			b = le.AppendUint16(b, e)
		}
		for _, k := range o.Kind {
			b = append(b, byte(k))
		}
		b = append(b, make([]byte, 10)...)
		for _, a := range o.Arg {
			b = le.AppendUint64(b, a)
		}
	}
	for _, r := range p.Relocs {
		b = le.AppendUint32(b, r)
	}
	if len(p.Relocs)%2 == 1 {
		b = le.AppendUint32(b, 0)
	}
	return append(b, p.Data...), nil
}

// Layout is where the parts of an encoded program are, in bytes from its start.
type Layout struct {
	Ops, NumOps       int
	Relocs, NumRelocs int
	Data, DataLen     int
}

// Check reads the header of an encoded program and verifies that every part is inside it, that every op is one the
// executor knows, and that registers, descriptors (numFDs of them) and data offsets are in range. An executor may run a
// checked program without checks of its own.
func Check(b []byte, numFDs int) (Layout, error) {
	le := binary.NativeEndian
	if len(b) < HeaderSize || le.Uint32(b) != ProgramMagic {
		return Layout{}, refuse(ErrProgram, "no header")
	}
	var l Layout
	l.NumOps, l.NumRelocs, l.DataLen = int(le.Uint32(b[4:])), int(le.Uint32(b[8:])), int(le.Uint32(b[12:]))
	if l.NumOps > MaxOps || l.NumRelocs > MaxData/8 || l.DataLen > MaxData {
		return Layout{}, refuse(ErrProgram, "too large")
	}
	l.Ops = HeaderSize
	l.Relocs = l.Ops + l.NumOps*OpSize
	l.Data = l.Relocs + (l.NumRelocs*4+7)&^7
	if len(b) != l.Data+l.DataLen {
		return Layout{}, refuse(ErrProgram, strconv.Itoa(len(b)), " bytes, header says ", strconv.Itoa(l.Data+l.DataLen))
	}
	for i := range l.NumRelocs {
		o := int(le.Uint32(b[l.Relocs+4*i:]))
		if o%8 != 0 || o+8 > l.DataLen || le.Uint64(b[l.Data+o:]) > uint64(l.DataLen) {
			return Layout{}, refuse(ErrProgram, "reloc ", strconv.Itoa(i))
		}
	}
	for i := range l.NumOps {
		if bad := checkOp(b[l.Ops+i*OpSize:][:OpSize], l.DataLen, numFDs); bad != "" {
			return Layout{}, refuse(ErrProgram, "op ", strconv.Itoa(i), ": ", bad)
		}
	}
	return l, nil
}

// checkOp says what is wrong with an encoded op; "" is nothing.
func checkOp(b []byte, dataLen, numFDs int) string {
	le := binary.NativeEndian
	nr, result := le.Uint32(b), b[4]
	if nr > PseudoReceive || (nr > 1023 && nr < PseudoStore32) {
		return "unknown operation " + strconv.Itoa(int(nr))
	}
	if result != NoResult && result >= NumRegs {
		return "result register " + strconv.Itoa(int(result))
	}
	for a := range 6 {
		v, limit := le.Uint64(b[32+8*a:]), uint64(0)
		switch ArgKind(b[16+a]) {
		case Imm:
			continue
		case Data:
			limit = uint64(dataLen) + 1
		case Reg:
			limit = NumRegs
		case FD:
			limit = uint64(numFDs)
		default:
			return "kind of argument " + strconv.Itoa(a)
		}
		if v >= limit {
			return "argument " + strconv.Itoa(a) + " out of range: " + strconv.FormatUint(v, 10)
		}
	}
	if b[5]&(FlagIf|FlagUnless) != 0 && ArgKind(b[16+5]) != Reg {
		return "condition without a register"
	}
	var width uint64
	switch nr {
	case PseudoAside:
		if n := le.Uint64(b[32:]); ArgKind(b[16]) != Imm || n > MaxOps {
			return "number of ops " + strconv.FormatUint(n, 10)
		}
	case PseudoStore32:
		width = 4
	case PseudoStore64:
		width = 8
	}
	if off := le.Uint64(b[32:]); width != 0 && (ArgKind(b[16]) > Data || off > uint64(dataLen) || uint64(dataLen)-off < width) {
		return "store outside the data block"
	}
	return ""
}
