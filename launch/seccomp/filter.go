// SPDX-License-Identifier: Apache-2.0

package seccomp

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

const (
	// maxInstructions is the kernel's BPF_MAXINSNS.
	maxInstructions = 4096
	// x32Bit marks the calls of x86-64's 32-bit ABI, which come with x86-64's own architecture number.
	x32Bit = 0x40000000
	// skippedCall is the number that a tracer gives to a call that is not to be made. It is not one of x32's.
	skippedCall = 1<<32 - 1
)

// Filter is ready to be installed. It must not be changed: callers share it.
type Filter struct {
	// Code is an array of struct sock_filter.
	Code []byte
	// Flags are SECCOMP_FILTER_FLAG_* bits.
	Flags uint64
	// Narrow says that it refuses one of the calls that start a process in an existing pid namespace: see launch.Seccomp.
	Narrow bool
}

func nativeArch(goarch string) specs.Arch {
	return map[string]specs.Arch{"amd64": specs.ArchX86_64, "arm64": specs.ArchAARCH64}[goarch]
}

// archInfo has the call numbers of an architecture that a kernel for goarch can run, or nil.
func archInfo(goarch string, a specs.Arch) *arch.Info {
	return map[string]map[specs.Arch]*arch.Info{
		"amd64": {specs.ArchX86_64: arch.X86_64, specs.ArchX86: arch.I386, specs.ArchX32: arch.X32},
		"arm64": {specs.ArchAARCH64: arch.AARCH64, specs.ArchARM: arch.ARM},
	}[goarch][a]
}

// Compile makes the filter. The error is errs.Invalid, or errs.Unsupported.
func (p *Profile) Compile(t Target) (*Filter, error) {
	native := archInfo(t.Arch, nativeArch(t.Arch))
	if native == nil {
		return nil, errs.Newf(errs.Unsupported, "seccomp on %s", t.Arch)
	}
	prof := p.resolve(t)
	flags, err := filterFlags(prof)
	if err != nil {
		return nil, err
	}
	// The native architecture is always there; those that this kernel can't run never ask.
	infos := []*arch.Info{native}
	for _, a := range prof.Architectures {
		if info := archInfo(t.Arch, a); info != nil && !slices.Contains(infos, info) {
			infos = append(infos, info)
		}
	}
	code, err := assemble(prof, infos)
	if err != nil {
		return nil, err
	}
	if len(code) > maxInstructions {
		return nil, errs.Newf(errs.Invalid, "seccomp profile: %d instructions, %d are allowed", len(code), maxInstructions)
	}
	raw, err := bpf.Assemble(code)
	if err != nil {
		return nil, fmt.Errorf("assemble seccomp filter: %w", err)
	}
	f := &Filter{Flags: flags, Code: make([]byte, 0, 8*len(raw))}
	for _, i := range raw {
		f.Code = binary.NativeEndian.AppendUint16(f.Code, i.Op)
		f.Code = append(f.Code, i.Jt, i.Jf)
		f.Code = binary.NativeEndian.AppendUint32(f.Code, i.K)
	}
	f.Narrow, err = narrow(code, native)
	return f, err
}

// assemble writes the whole filter: a block for each architecture number.
func assemble(p *specs.LinuxSeccomp, infos []*arch.Info) ([]bpf.Instruction, error) {
	def, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	code := []bpf.Instruction{bpf.RetConstant{Val: retKillProcess}} // an architecture that the profile does not name
	for _, info := range slices.Backward(infos) {
		if info == arch.X32 {
			continue // a part of x86-64
		}
		t, ends := table{}, map[uint32]uint32{}
		if err := addCalls(t, ends, p, info, def); err != nil {
			return nil, err
		}
		if info == arch.X86_64 {
			ends[x32Bit] = retErrno | uint32(unix.ENOSYS)
			if lenient(def) {
				ends[skippedCall] = def
			}
			if slices.Contains(infos, arch.X32) {
				ends[x32Bit] = def
				if err := addCalls(t, ends, p, arch.X32, def); err != nil {
					return nil, err
				}
			}
		}
		s, err := spans(t, def, info != arch.I386 && info != arch.ARM, ends)
		if err != nil {
			return nil, errs.Newf(errs.Invalid, "seccomp profile: %w", err)
		}
		block := append([]bpf.Instruction{load(nrOffset)}, tree(s)...)
		code = append(append(branch(bpf.JumpEqual, uint32(info.ID), len(block)), block...), code...)
	}
	return append([]bpf.Instruction{load(archOffset)}, code...), nil
}

// addCalls adds the profile's rules with the numbers that info gives to the calls. The numbers after the last call that the
// profile names get ENOSYS from then on, unless it lets unknown calls through.
func addCalls(t table, ends map[uint32]uint32, p *specs.LinuxSeccomp, info *arch.Info, def uint32) error {
	last := uint32(0)
	for _, c := range p.Syscalls {
		ret, err := action(c.Action, c.ErrnoRet)
		if err != nil {
			return err
		}
		for _, name := range c.Names {
			nr, ok := number(info, name)
			if !ok {
				continue // this architecture, or our table, has no such call
			}
			last = max(last, nr)
			if ret == def {
				continue
			}
			rules, err := split(ret, c.Args)
			if err != nil {
				return errs.Newf(errs.Invalid, "seccomp profile: %s: %w", name, err)
			}
			t[nr] = append(t[nr], rules...)
		}
	}
	if last != 0 && !lenient(def) {
		ends[last+1] = retErrno | uint32(unix.ENOSYS)
	}
	return nil
}

// lenient says whether an action lets the call through.
func lenient(ret uint32) bool { return ret == retAllow || ret == retLog }

// split makes rules of a list of conditions: one, or, when an argument occurs twice, one for each condition.
func split(ret uint32, conds []specs.LinuxSeccompArg) ([]rule, error) {
	seen := map[uint]bool{}
	twice := false
	for _, c := range conds {
		if c.Index > 5 {
			return nil, fmt.Errorf("argument %d of 6", c.Index)
		}
		twice, seen[c.Index] = twice || seen[c.Index], true
	}
	if !twice {
		return []rule{{ret, conds}}, nil
	}
	var out []rule
	for _, c := range conds {
		out = append(out, rule{ret, []specs.LinuxSeccompArg{c}})
	}
	return out, nil
}

// action is the filter's return value for an action.
func action(a specs.LinuxSeccompAction, data *uint) (uint32, error) {
	n := uint32(unix.EPERM)
	if data != nil {
		n = uint32(min(*data, maxErrno))
	}
	switch a {
	case specs.ActAllow:
		return retAllow, nil
	case specs.ActErrno:
		return retErrno | n, nil
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKillProcess, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActLog:
		return retLog, nil
	case specs.ActTrace:
		return retTrace | n, nil
	case specs.ActNotify:
		return 0, errs.Newf(errs.Unsupported, "seccomp profile: action %s needs an agent, which is not supported", a)
	}
	return 0, errs.Newf(errs.Invalid, "seccomp profile: unknown action %q", a)
}

// filterFlags are the profile's flags. Without any, as with runc, speculative store bypass stays as it is.
func filterFlags(p *specs.LinuxSeccomp) (uint64, error) {
	if p.ListenerPath != "" {
		return 0, errs.Newf(errs.Unsupported, "seccomp profile: listenerPath is not supported")
	}
	if len(p.Flags) == 0 {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	var flags uint64
	for _, f := range p.Flags {
		switch f {
		case "SECCOMP_FILTER_FLAG_TSYNC": // there is one thread
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		default:
			return 0, errs.Newf(errs.Unsupported, "seccomp profile: flag %q", f)
		}
	}
	return flags, nil
}
