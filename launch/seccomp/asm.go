// SPDX-License-Identifier: Apache-2.0

package seccomp

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"

	"crishim.dev/internal/errs"
)

// Offsets in struct seccomp_data. Arguments are 64 bits wide, here with the low word first: both architectures are little-endian.
const (
	nrOffset   = 0
	archOffset = 4
	argsOffset = 16
)

// Return values of a filter (linux/seccomp.h).
const (
	retKillProcess = 0x80000000
	retKillThread  = 0x00000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000
	maskAction     = 0xffff0000
)

// maxErrno is the kernel's MAX_ERRNO.
const maxErrno = 4095

// rule is what happens to a call when all its conditions hold.
type rule struct {
	ret   uint32
	conds []specs.LinuxSeccompArg
}

// table has the rules for each call number of one architecture.
type table map[uint32][]rule

func load(off int) bpf.Instruction { return bpf.LoadAbsolute{Off: uint32(off), Size: 4} }

// branch falls through to the next instructions when the test holds, else skips n of them. Conditional jumps reach 255 far.
func branch(test bpf.JumpTest, v uint32, n int) []bpf.Instruction {
	if n < 256 {
		return []bpf.Instruction{bpf.JumpIf{Cond: test, Val: v, SkipFalse: uint8(n)}}
	}
	return []bpf.Instruction{bpf.JumpIf{Cond: test, Val: v, SkipTrue: 1}, bpf.Jump{Skip: uint32(n)}}
}

// condition falls through when it holds, else skips the n instructions after it. wide: arguments have 64 bits; else only
// the low word is looked at. n is small: the conditions of one rule.
func condition(c specs.LinuxSeccompArg, wide bool, n int) ([]bpf.Instruction, error) {
	lo, hi := argsOffset+8*int(c.Index), argsOffset+8*int(c.Index)+4
	v, w := c.Value, c.ValueTwo
	jump := func(test bpf.JumpTest, v uint64, yes, no int) bpf.Instruction {
		return bpf.JumpIf{Cond: test, Val: uint32(v), SkipTrue: uint8(yes), SkipFalse: uint8(no)}
	}
	var high, low []bpf.Instruction
	switch c.Op {
	case specs.OpEqualTo:
		low = []bpf.Instruction{load(lo), jump(bpf.JumpEqual, v, 0, n)}
		high = []bpf.Instruction{load(hi), jump(bpf.JumpEqual, v>>32, 0, n+2)}
	case specs.OpNotEqual:
		low = []bpf.Instruction{load(lo), jump(bpf.JumpEqual, v, n, 0)}
		high = []bpf.Instruction{load(hi), jump(bpf.JumpEqual, v>>32, 0, 2)}
	case specs.OpMaskedEqual:
		low = []bpf.Instruction{load(lo), bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: uint32(v)}, jump(bpf.JumpEqual, w, 0, n)}
		high = []bpf.Instruction{load(hi), bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: uint32(v >> 32)}, jump(bpf.JumpEqual, w>>32, 0, n+3)}
	case specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual:
		test, yes, no := bpf.JumpGreaterThan, 0, n
		if c.Op == specs.OpGreaterEqual || c.Op == specs.OpLessThan {
			test = bpf.JumpGreaterOrEqual
		}
		if c.Op == specs.OpLessThan || c.Op == specs.OpLessEqual { // the opposite of the test
			yes, no = n, 0
		}
		low = []bpf.Instruction{load(lo), jump(test, v, yes, no)}
		high = []bpf.Instruction{load(hi), jump(bpf.JumpGreaterThan, v>>32, yes+3, 0), jump(bpf.JumpEqual, v>>32, 0, no+2)}
	default:
		return nil, errs.Newf(errs.Invalid, "unknown operator %q", c.Op)
	}
	if !wide {
		return low, nil
	}
	return append(high, low...), nil
}

// leaf decides one call: the first rule whose conditions hold, else def.
func leaf(rules []rule, def uint32, wide bool) ([]bpf.Instruction, error) {
	if i := slices.IndexFunc(rules, func(r rule) bool { return len(r.conds) == 0 }); i >= 0 {
		return []bpf.Instruction{bpf.RetConstant{Val: rules[i].ret}}, nil
	}
	var out []bpf.Instruction
	for _, r := range rules {
		code := []bpf.Instruction{bpf.RetConstant{Val: r.ret}}
		for _, c := range slices.Backward(r.conds) {
			test, err := condition(c, wide, len(code))
			if err != nil {
				return nil, err
			}
			code = append(test, code...)
		}
		out = append(out, code...)
	}
	return append(out, bpf.RetConstant{Val: def}), nil
}

// span is the code for all call numbers from first up to the next span.
type span struct {
	first uint32
	code  []bpf.Instruction
}

// spans splits the call numbers into ranges that are treated alike.
func spans(t table, def uint32, wide bool, ends map[uint32]uint32) ([]span, error) {
	out := []span{{0, []bpf.Instruction{bpf.RetConstant{Val: def}}}}
	add := func(first uint32, code []bpf.Instruction) {
		if out[len(out)-1].first == first {
			out = out[:len(out)-1]
		}
		if n := len(out); n > 0 && slices.Equal(out[n-1].code, code) {
			return
		}
		out = append(out, span{first, code})
	}
	numbers := make([]uint32, 0, len(t)+len(ends))
	for n := range t {
		numbers = append(numbers, n)
	}
	for n := range ends {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	rest := def
	for _, n := range slices.Compact(numbers) {
		if ret, ok := ends[n]; ok {
			rest = ret
			add(n, []bpf.Instruction{bpf.RetConstant{Val: rest}})
		}
		rules, ok := t[n]
		if !ok {
			continue
		}
		code, err := leaf(rules, rest, wide && n < x32Bit) // x32 has 32-bit arguments
		if err != nil {
			return nil, fmt.Errorf("call %d: %w", n, err)
		}
		add(n, code)
		add(n+1, []bpf.Instruction{bpf.RetConstant{Val: rest}})
	}
	return out, nil
}

// tree searches the spans for the call number, which is in the accumulator.
func tree(s []span) []bpf.Instruction {
	if len(s) == 1 {
		return s[0].code
	}
	left, right := tree(s[:len(s)/2]), tree(s[len(s)/2:])
	code := branch(bpf.JumpGreaterOrEqual, s[len(s)/2].first, len(right))
	return append(append(code, right...), left...)
}
