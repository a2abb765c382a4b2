// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"bytes"
	"debug/elf"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// initBase is where the pod's first process is loaded.
const initBase = 0x400000

// InitELF is the pod's first process as an executable for goarch ("amd64" or "arm64"): a few instructions without a
// runtime, a library or a stack frame, in one page.
//
// With SIGCHLD ignored the kernel reaps every orphan that falls to it, at once; there is nothing to wait for. SIGTERM has to be
// blocked and taken: the kernel does not give signals with a default action to the first process of a pid namespace.
func InitELF(goarch string) ([]byte, error) {
	var machine elf.Machine
	var newAsm func() assembler
	switch goarch {
	case "amd64":
		machine, newAsm = elf.EM_X86_64, func() assembler { return &amd64{} }
	case "arm64":
		machine, newAsm = elf.EM_AARCH64, func() assembler { return &arm64{} }
	default:
		return nil, errs.Newf(errs.Unsupported, "pod init for %s", goarch)
	}
	first := newAsm()
	initCode(first, 0)
	code := newAsm()
	initCode(code, (first.here()+7)&^7)
	text := code.bytes()
	for len(text)%8 != 0 {
		text = append(text, 0)
	}
	le := binary.LittleEndian
	text = le.AppendUint64(text, 1<<(unix.SIGTERM-1))
	for _, w := range []uint64{1, 0, 0, 0} { // struct sigaction: SIG_IGN, flags, restorer, mask
		text = le.AppendUint64(text, w)
	}
	return initFile(machine, text), nil
}

// initCode is the program. Its data, at the offset data: the set {SIGTERM}, then the action SIG_IGN.
func initCode(a assembler, data int) {
	set, action := address(data), address(data+8)
	a.call("prctl", number(unix.PR_SET_DUMPABLE), number(0)) // other processes of its user are not to trace it
	a.call("rt_sigprocmask", number(unix.SIG_BLOCK), set, number(0), number(8))
	a.call("rt_sigaction", number(unix.SIGCHLD), action, number(0), number(8))
	wait := a.here()
	a.call("rt_sigtimedwait", set, number(0), number(0), number(8))
	a.again(wait, int(unix.SIGTERM))
	a.call("exit_group", number(0))
}

// operand is an argument of a call: a number, or an offset into the code whose address is meant.
type operand struct {
	value   int
	address bool
}

func number[T ~int](n T) operand { return operand{int(n), false} }
func address(off int) operand    { return operand{off, true} }

// assembler writes machine code for what initCode needs.
type assembler interface {
	call(name string, args ...operand)
	// again jumps to the offset back unless the last call gave want.
	again(back, want int)
	here() int
	bytes() []byte
}

type amd64 struct{ code []byte }

func (a *amd64) here() int     { return len(a.code) }
func (a *amd64) bytes() []byte { return a.code }

func (a *amd64) emit(op []byte, imm int) {
	a.code = binary.LittleEndian.AppendUint32(append(a.code, op...), uint32(imm))
}

func (a *amd64) call(name string, args ...operand) {
	nr := map[string]int{"rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigtimedwait": 128, "prctl": 157, "exit_group": 231}[name]
	mov := [][]byte{{0xbf}, {0xbe}, {0xba}, {0x41, 0xba}}                                           // mov edi|esi|edx|r10d, imm32
	lea := [][]byte{{0x48, 0x8d, 0x3d}, {0x48, 0x8d, 0x35}, {0x48, 0x8d, 0x15}, {0x4c, 0x8d, 0x15}} // lea rdi|…, [rip+imm32]
	for i, o := range args {
		if o.address {
			a.emit(lea[i], o.value-(len(a.code)+7))
		} else {
			a.emit(mov[i], o.value)
		}
	}
	a.emit([]byte{0xb8}, nr)            // mov eax, imm32
	a.code = append(a.code, 0x0f, 0x05) // syscall
}

func (a *amd64) again(back, want int) {
	a.code = append(a.code, 0x83, 0xf8, byte(want))           // cmp eax, imm8
	a.code = append(a.code, 0x75, byte(back-(len(a.code)+2))) // jne back
}

type arm64 struct{ code []byte }

func (a *arm64) here() int     { return len(a.code) }
func (a *arm64) bytes() []byte { return a.code }

func (a *arm64) emit(word uint32) { a.code = binary.LittleEndian.AppendUint32(a.code, word) }

func (a *arm64) call(name string, args ...operand) {
	nr := map[string]uint32{"rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigtimedwait": 137, "prctl": 167, "exit_group": 94}[name]
	for i, o := range args {
		if o.address {
			d := uint32(o.value - len(a.code))
			a.emit(0x10000000 | d&3<<29 | d>>2&0x7ffff<<5 | uint32(i)) // adr xi, off
		} else {
			a.emit(0xd2800000 | uint32(o.value)<<5 | uint32(i)) // movz xi, #imm16
		}
	}
	a.emit(0xd2800008 | nr<<5) // movz x8, #nr
	a.emit(0xd4000001)         // svc #0
}

func (a *arm64) again(back, want int) {
	a.emit(0x7100001f | uint32(want)<<10)                       // cmp w0, #want
	a.emit(0x54000001 | uint32(back-len(a.code))>>2&0x7ffff<<5) // b.ne back
}

// initFile wraps text into an executable with one segment, and a stack that can't be executed.
func initFile(machine elf.Machine, text []byte) []byte {
	const ehdr, phdr = 64, 56
	entry := uint64(initBase + ehdr + 2*phdr)
	size := uint64(ehdr + 2*phdr + len(text))
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Entry: entry,
		Phoff: ehdr, Ehsize: ehdr, Phentsize: phdr, Phnum: 2,
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	var b bytes.Buffer
	for _, part := range []any{
		h,
		elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: initBase, Paddr: initBase, Filesz: size, Memsz: size, Align: 0x10000},
		elf.Prog64{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W), Align: 16},
		text,
	} {
		// A bytes.Buffer takes everything, and these types have fixed sizes.
		_ = binary.Write(&b, binary.LittleEndian, part)
	}
	return b.Bytes()
}
