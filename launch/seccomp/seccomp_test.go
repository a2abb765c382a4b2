// SPDX-License-Identifier: Apache-2.0

package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

func target(goarch string, caps ...string) Target {
	return Target{Arch: goarch, Major: 6, Minor: 1, Caps: caps}
}

func compile(t *testing.T, p *Profile, tg Target) *bpf.VM {
	t.Helper()
	f, err := p.Compile(tg)
	if err != nil {
		t.Fatal(err)
	}
	var raw []bpf.RawInstruction
	ne := binary.NativeEndian
	for b := f.Code; len(b) > 0; b = b[8:] {
		raw = append(raw, bpf.RawInstruction{Op: ne.Uint16(b), Jt: b[2], Jf: b[3], K: ne.Uint32(b[4:])})
	}
	code, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("not all instructions can be read back")
	}
	vm, err := bpf.NewVM(code)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

func verdict(ret uint32) string {
	switch a := ret & maskAction; a {
	case retAllow:
		return "allow"
	case retLog:
		return "log"
	case retErrno:
		return unix.ErrnoName(unix.Errno(ret &^ maskAction))
	case retKillProcess:
		return "kill process"
	case retKillThread:
		return "kill thread"
	case retTrap:
		return "trap"
	case retTrace:
		return fmt.Sprint("trace ", ret&^maskAction)
	}
	return fmt.Sprintf("%#x", ret)
}

func ask(t *testing.T, vm *bpf.VM, info *arch.Info, name string, args ...uint64) string {
	t.Helper()
	nr, ok := number(info, name)
	if !ok {
		t.Fatalf("no call %s", name)
	}
	c := call{nr: nr, arch: uint32(info.ID)}
	copy(c.args[:], args)
	ret, err := simulate(vm, c)
	if err != nil {
		t.Fatal(err)
	}
	return verdict(ret)
}

func TestDefaultProfile(t *testing.T) {
	archs := map[string][]*arch.Info{"amd64": {arch.X86_64, arch.X32, arch.I386}, "arm64": {arch.AARCH64, arch.ARM}}
	for goarch, infos := range archs {
		plain := compile(t, Default(), target(goarch, "CAP_CHOWN"))
		admin := compile(t, Default(), target(goarch, "CAP_SYS_ADMIN"))
		for _, info := range infos {
			for _, c := range []struct {
				name         string
				args         []uint64
				plain, admin string
			}{
				{"getpid", nil, "allow", "allow"},
				{"execve", nil, "allow", "allow"},
				{"clone3", nil, "ENOSYS", "allow"},
				{"mount", nil, "EPERM", "allow"},
				{"clone", []uint64{unix.CLONE_PARENT | unix.CLONE_PIDFD}, "allow", "allow"},
				{"clone", []uint64{unix.CLONE_NEWUSER}, "EPERM", "allow"},
				{"socket", []uint64{unix.AF_UNIX}, "allow", "allow"},
				{"socket", []uint64{unix.AF_VSOCK}, "EPERM", "EPERM"},
				{"socket", []uint64{unix.AF_ALG}, "EPERM", "EPERM"},
				{"personality", []uint64{0xffffffff}, "allow", "allow"},
				{"personality", []uint64{0x40000}, "EPERM", "EPERM"},
				{"kexec_load", nil, "EPERM", "EPERM"},
				{"keyctl", nil, "EPERM", "EPERM"},
			} {
				if got := ask(t, plain, info, c.name, c.args...); got != c.plain {
					t.Errorf("%s %s(%v): %s, want %s", info.Name, c.name, c.args, got, c.plain)
				}
				if got := ask(t, admin, info, c.name, c.args...); got != c.admin {
					t.Errorf("%s %s(%v) with CAP_SYS_ADMIN: %s, want %s", info.Name, c.name, c.args, got, c.admin)
				}
			}
		}
	}
}

// TestNumbers pins calls that the tables have wrong or by another name.
func TestNumbers(t *testing.T) {
	for _, c := range []struct {
		goarch string
		info   *arch.Info
		name   string
		want   uint32
	}{{"arm64", arch.AARCH64, "newfstatat", 79}, {"amd64", arch.X32, "rt_sigaction", x32Bit | 512}, {"amd64", arch.X32, "pwritev2", x32Bit | 547}} {
		nr, ok := number(c.info, c.name)
		ret, err := simulate(compile(t, Default(), target(c.goarch)), call{nr: nr, arch: uint32(c.info.ID)})
		if !ok || nr != c.want || err != nil || ret != retAllow {
			t.Errorf("%s %s: %d, %s, %v; want %d, allowed", c.info.Name, c.name, nr, verdict(ret), err, c.want)
		}
	}
	for info, name := range map[*arch.Info]string{arch.X32: "uselib", arch.AARCH64: "clock_gettime64"} {
		if nr, ok := number(info, name); ok {
			t.Errorf("%s has no %s; its number is said to be %d", info.Name, name, nr)
		}
	}
}

func TestUnknownCallsAndArchitectures(t *testing.T) {
	for goarch, native := range map[string]*arch.Info{"amd64": arch.X86_64, "arm64": arch.AARCH64} {
		vm := compile(t, Default(), target(goarch))
		for _, c := range []struct {
			c    call
			want string
		}{
			{call{nr: 900, arch: uint32(native.ID)}, "ENOSYS"},
			{call{nr: 0xffffffff, arch: uint32(native.ID)}, "ENOSYS"},
			{call{nr: 1, arch: 0x80000016}, "kill process"}, // s390x
		} {
			ret, err := simulate(vm, c.c)
			if err != nil || verdict(ret) != c.want {
				t.Errorf("%s: %+v: %s (%v), want %s", goarch, c.c, verdict(ret), err, c.want)
			}
		}
	}
	// Only x86-64 named: its other ABIs must not be a way around.
	p := parse(t, `{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}]}`)
	vm := compile(t, p, target("amd64"))
	for info, want := range map[*arch.Info]string{arch.X86_64: "EPERM", arch.X32: "ENOSYS", arch.I386: "kill process"} {
		if got := ask(t, vm, info, "mount"); got != want {
			t.Errorf("%s: mount: %s, want %s", info.Name, got, want)
		}
	}
}

func parse(t testing.TB, text string) *Profile {
	t.Helper()
	p, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestProfileMeaning pins what a profile means to runc and libseccomp, where OCI's text leaves it open.
func TestProfileMeaning(t *testing.T) {
	vm := compile(t, parse(t, `{
		"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
		"syscalls": [
			{"names": ["open", "openat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2, "args": [{"index": 0, "value": 7, "op": "SCMP_CMP_EQ"}]},
			{"names": ["open"], "action": "SCMP_ACT_ALLOW"},
			{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
				{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
			{"names": ["write"], "action": "SCMP_ACT_LOG"},
			{"names": ["close"], "action": "SCMP_ACT_TRACE", "errnoRet": 77},
			{"names": ["stat"], "action": "SCMP_ACT_KILL"},
			{"name": "fstat", "action": "SCMP_ACT_KILL_PROCESS"},
			{"names": ["lstat", "no_such_call"], "action": "SCMP_ACT_TRAP"}]}`), target("amd64"))
	for _, c := range []struct {
		name string
		arg  uint64
		want string
	}{
		{"open", 7, "allow"}, // unconditional wins
		{"openat", 7, "ENOENT"},
		{"openat", 8, "EACCES"},
		{"read", 1, "allow"}, // alternatives
		{"read", 2, "allow"},
		{"read", 3, "EACCES"},
		{"write", 0, "log"},
		{"close", 0, "trace 77"},
		{"stat", 0, "kill thread"},
		{"fstat", 0, "kill process"},
		{"lstat", 0, "trap"},
		{"poll", 0, "EACCES"},
		{"openat2", 0, "ENOSYS"}, // newer than the newest that is named
	} {
		if got := ask(t, vm, arch.X86_64, c.name, c.arg); got != c.want {
			t.Errorf("%s(%d): %s, want %s", c.name, c.arg, got, c.want)
		}
	}
}

func TestRefused(t *testing.T) {
	for text, want := range map[string]error{
		``:                                      errs.Invalid,
		`{}`:                                    errs.Invalid,
		`{"defaultAction": "SCMP_ACT_NO"}`:      errs.Invalid,
		`{"defaultAction": "SCMP_ACT_ALLOW"} x`: errs.Invalid,
		`{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}`:                                                                                            errs.Unsupported,
		`{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}`:                                                                                      errs.Unsupported,
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [null]}`:                                                                                        errs.Invalid,
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]}`:                                            errs.Unsupported,
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL", "args": [{"index": 6, "op": "SCMP_CMP_EQ"}]}]}`: errs.Invalid,
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL", "args": [{"index": 5, "op": "LIKE"}]}]}`:        errs.Invalid,
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "read", "names": ["read"], "action": "SCMP_ACT_KILL"}]}`:                              errs.Invalid,
	} {
		p, err := Parse(strings.NewReader(text))
		if err == nil {
			_, err = p.Compile(target("amd64"))
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", text, err, want)
		}
	}
	if _, err := Default().Compile(target("s390x")); !errors.Is(err, errs.Unsupported) {
		t.Errorf("s390x: %v", err)
	}
}

// holds is a condition's meaning, independent of the assembler.
func holds(c specs.LinuxSeccompArg, v uint64) bool {
	switch c.Op {
	case specs.OpEqualTo:
		return v == c.Value
	case specs.OpNotEqual:
		return v != c.Value
	case specs.OpGreaterThan:
		return v > c.Value
	case specs.OpGreaterEqual:
		return v >= c.Value
	case specs.OpLessThan:
		return v < c.Value
	case specs.OpLessEqual:
		return v <= c.Value
	case specs.OpMaskedEqual:
		return v&c.Value == c.ValueTwo
	}
	panic(c.Op)
}

// TestConditions compares compiled conditions with their meaning, at the values where words and comparisons turn.
func TestConditions(t *testing.T) {
	edges := []uint64{0, 1, 2, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x100000001, 0x1ffffffff, 0xfffffffe00000000, 0xffffffffffffffff}
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpMaskedEqual}
	r := rand.New(rand.NewPCG(1, 2))
	pick := func() uint64 { return edges[r.IntN(len(edges))] }
	for range 3000 {
		var rules []rule
		for i := range 1 + r.IntN(3) {
			var conds []specs.LinuxSeccompArg
			for _, index := range r.Perm(6)[:1+r.IntN(4)] {
				conds = append(conds, specs.LinuxSeccompArg{Index: uint(index), Value: pick(), ValueTwo: pick(), Op: ops[r.IntN(len(ops))]})
			}
			rules = append(rules, rule{uint32(100 + i), conds})
		}
		code, err := leaf(rules, 99, true)
		if err != nil {
			t.Fatal(err)
		}
		vm, err := bpf.NewVM(code)
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			c := call{args: [6]uint64{pick(), pick(), pick(), pick(), pick(), pick()}}
			want := uint32(99)
		search:
			for _, rl := range rules {
				for _, cond := range rl.conds {
					if !holds(cond, c.args[cond.Index]) {
						continue search
					}
				}
				want = rl.ret
				break
			}
			if got, err := simulate(vm, c); err != nil || got != want {
				t.Fatalf("rules %+v, args %x: %d (%v), want %d", rules, c.args, got, err, want)
			}
		}
	}
}

// TestTree compares the search tree with the table it was made of, for every number.
func TestTree(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		tab := table{}
		for range r.IntN(200) {
			tab[uint32(r.IntN(400))] = []rule{{ret: uint32(1 + r.IntN(3))}}
		}
		s, err := spans(tab, 9, true, map[uint32]uint32{500: 8})
		if err != nil {
			t.Fatal(err)
		}
		vm, err := bpf.NewVM(append([]bpf.Instruction{load(nrOffset)}, tree(s)...))
		if err != nil {
			t.Fatal(err)
		}
		for nr := range uint32(600) {
			want := uint32(9)
			if nr >= 500 {
				want = 8
			}
			if rules, ok := tab[nr]; ok {
				want = rules[0].ret
			}
			if got, err := simulate(vm, call{nr: nr}); err != nil || got != want {
				t.Fatalf("call %d: %d (%v), want %d", nr, got, err, want)
			}
		}
	}
}

func TestNarrow(t *testing.T) {
	f, err := Default().Compile(target("amd64"))
	if err != nil {
		t.Fatal(err)
	}
	if f.Narrow || f.Flags != unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW || len(f.Code)%8 != 0 {
		t.Errorf("default profile: narrow %v, flags %x, %d bytes", f.Narrow, f.Flags, len(f.Code))
	}
	t.Logf("default profile: %d instructions", len(f.Code)/8)
	f, err = parse(t, `{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["execve"], "action": "SCMP_ACT_ALLOW"}]}`).Compile(target("amd64"))
	if err != nil || !f.Narrow {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestCache(t *testing.T) {
	c := NewCache(target("amd64"))
	a, err := c.Filter(Default(), []string{"CAP_A", "CAP_SYS_ADMIN"})
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := c.Filter(Default(), []string{"CAP_SYS_ADMIN", "CAP_A"}); a != b {
		t.Error("compiled twice")
	}
	if b, _ := c.Filter(Default(), nil); a == b {
		t.Error("one filter for two sets of capabilities")
	}
	if b, _ := c.Filter(parse(t, `{"defaultAction": "SCMP_ACT_ALLOW"}`), nil); a == b {
		t.Error("one filter for two profiles")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"defaultAction": "SCMP_ACT_ERRNO", "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X32"]}],
		"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"}], "includes": {"minKernel": "4.8"}}]}`))
	if b, err := os.ReadFile("testdata/profile.json"); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(strings.NewReader(string(data)))
		if err != nil {
			return
		}
		fl, err := p.Compile(target("amd64", "CAP_SYS_ADMIN"))
		if err != nil {
			if !errors.Is(err, errs.Invalid) && !errors.Is(err, errs.Unsupported) {
				t.Errorf("an error without a kind: %v", err)
			}
			return
		}
		if len(fl.Code) == 0 || len(fl.Code) > 8*maxInstructions {
			t.Errorf("%d bytes", len(fl.Code))
		}
	})
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		if _, err := Default().Compile(target("amd64", "CAP_CHOWN")); err != nil {
			b.Fatal(err)
		}
	}
}
