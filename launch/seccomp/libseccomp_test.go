// SPDX-License-Identifier: Apache-2.0

package seccomp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// libseccomp is the library behind a small C program, built for the test.
func libseccomp(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat("/usr/include/seccomp.h"); err != nil {
		t.Skip("needs libseccomp-dev, to compare with")
	}
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("needs gcc, to build what compiles with libseccomp")
	}
	bin := filepath.Join(t.TempDir(), "libseccomp")
	if out, err := exec.Command("gcc", "-O1", "-o", bin, "testdata/libseccomp.c", "-lseccomp").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	return bin
}

// architecture is one by OCI's name, libseccomp's and our tables'.
type architecture struct {
	oci  specs.Arch
	name string
	info *arch.Info
}

func architectures() []architecture {
	return []architecture{
		{specs.ArchX86_64, "x86_64", arch.X86_64}, {specs.ArchX32, "x32", arch.X32}, {specs.ArchX86, "x86", arch.I386},
		{specs.ArchAARCH64, "aarch64", arch.AARCH64}, {specs.ArchARM, "arm", arch.ARM},
	}
}

// reference is what libseccomp makes of a profile.
type reference struct {
	vm *bpf.VM
	// numbers are libseccomp's own, by architecture and name; last the highest that the profile names.
	numbers map[string]map[string]int
	last    map[string]int
}

// operators are libseccomp's numbers for OCI's names.
func operators() map[specs.LinuxSeccompOperator]int {
	return map[specs.LinuxSeccompOperator]int{
		specs.OpNotEqual: 1, specs.OpLessThan: 2, specs.OpLessEqual: 3, specs.OpEqualTo: 4, specs.OpGreaterEqual: 5, specs.OpGreaterThan: 6, specs.OpMaskedEqual: 7,
	}
}

// refer compiles as runc does: a rule with the default action is left out, and each condition is a rule of its own where an argument has several.
func refer(t *testing.T, bin string, p *specs.LinuxSeccomp) reference {
	t.Helper()
	def, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		t.Fatal(err)
	}
	var in strings.Builder
	fmt.Fprintf(&in, "default %x\n", def)
	for _, k := range architectures() {
		if slices.Contains(p.Architectures, k.oci) {
			fmt.Fprintf(&in, "arch %s\n", k.name)
		}
	}
	for _, c := range p.Syscalls {
		ret, err := action(c.Action, c.ErrnoRet)
		if err != nil {
			t.Fatal(err)
		}
		rules := [][]specs.LinuxSeccompArg{c.Args}
		if several(c.Args) {
			rules = nil
			for _, a := range c.Args {
				rules = append(rules, []specs.LinuxSeccompArg{a})
			}
		}
		for _, name := range c.Names {
			fmt.Fprintf(&in, "call %s\n", name)
			if ret == def {
				continue
			}
			for _, args := range rules {
				fmt.Fprintf(&in, "rule %x %s %d", ret, name, len(args))
				for _, a := range args {
					fmt.Fprintf(&in, " %d %d %x %x", a.Index, operators()[a.Op], a.Value, a.ValueTwo)
				}
				in.WriteByte('\n')
			}
		}
	}
	var out, table bytes.Buffer
	cmd := exec.Command(bin)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in.String()), &out, &table
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, out.Bytes())
	}
	r := reference{vm: machine(t, out.Bytes()), numbers: map[string]map[string]int{}, last: map[string]int{}}
	for line := range strings.Lines(table.String()) {
		var a, name string
		var nr int
		if _, err := fmt.Sscan(line, &a, &name, &nr); err != nil {
			t.Fatal(err)
		}
		if r.numbers[a] == nil {
			r.numbers[a] = map[string]int{}
		}
		r.numbers[a][name] = nr
		r.last[a] = max(r.last[a], nr)
	}
	return r
}

func several(args []specs.LinuxSeccompArg) bool {
	seen := map[uint]bool{}
	for _, a := range args {
		if seen[a.Index] {
			return true
		}
		seen[a.Index] = true
	}
	return false
}

// machine runs a filter.
func machine(t *testing.T, code []byte) *bpf.VM {
	t.Helper()
	var raw []bpf.RawInstruction
	ne := binary.NativeEndian
	for b := code; len(b) > 0; b = b[8:] {
		raw = append(raw, bpf.RawInstruction{Op: ne.Uint16(b), Jt: b[2], Jf: b[3], K: ne.Uint32(b[4:])})
	}
	insns, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("not all instructions can be read back")
	}
	vm, err := bpf.NewVM(insns)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// want is the verdict of libseccomp, behind the ENOSYS for calls newer than the profile that runc puts in front of it.
func (r reference) want(t *testing.T, p *specs.LinuxSeccomp, c call, name string) uint32 {
	t.Helper()
	def, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		t.Fatal(err)
	}
	if a := def & maskAction; a != retAllow&maskAction && a != retLog && int64(c.nr) > int64(r.last[name]) {
		return retErrno | uint32(unix.ENOSYS)
	}
	got, err := simulate(r.vm, c)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// same compares the two filters for every number of each architecture, with arguments around every value that a condition has.
func same(t *testing.T, bin, goarch string, p *specs.LinuxSeccomp) {
	t.Helper()
	r := refer(t, bin, p)
	ours := *p
	ours.Syscalls = nil
	values := map[string][]uint64{}
	profile := &Profile{p: moby.Seccomp{LinuxSeccomp: ours}}
	for _, c := range p.Syscalls {
		for _, n := range c.Names {
			for _, a := range c.Args {
				values[n] = append(values[n], a.Value, a.ValueTwo)
			}
		}
		// The library may be older than our tables: what it does not know is compared as if no profile named it.
		c.Names = slices.DeleteFunc(slices.Clone(c.Names), func(n string) bool {
			for _, numbers := range r.numbers {
				if numbers[n] >= 0 {
					return false
				}
			}
			return true
		})
		if len(c.Names) > 0 {
			profile.p.Syscalls = append(profile.p.Syscalls, &moby.Syscall{LinuxSyscall: c})
		}
	}
	vm := compile(t, profile, Target{Arch: goarch, Major: 6, Minor: 1})
	rnd := rand.New(rand.NewPCG(5, 6))
	compared, different := 0, 0
	ask := func(name string, info *arch.Info, nr uint32, call call) {
		call.nr, call.arch = nr, uint32(info.ID)
		got, err := simulate(vm, call)
		if err != nil {
			t.Fatal(err)
		}
		compared++
		if want := r.want(t, p, call, name); got != want {
			if different++; different < 20 {
				t.Errorf("%s: call %d (%s) with %x: %s, libseccomp says %s", name, nr&^x32Bit, nameOf(r, name, nr), call.args, verdict(got), verdict(want))
			}
		}
	}
	for _, k := range architectures() {
		if !slices.Contains(p.Architectures, k.oci) {
			continue
		}
		base := uint32(k.info.SeccompMask)
		top := uint32(r.last[k.name]) &^ x32Bit
		numbers := []uint32{top, top + 1, top + 1000, 0x0fffffff, 0x3fffffff}
		for nr := range uint32(1024) {
			numbers = append(numbers, nr)
		}
		for n := range r.numbers[k.name] {
			// Not the library's: it has its own for calls that i386 has in socketcall, too.
			if nr, ok := number(k.info, n); ok {
				nr &^= x32Bit
				numbers = append(numbers, nr-1, nr, nr+1)
				for range 32 * min(len(values[n]), 8) {
					ask(k.name, k.info, base|nr, call{args: around(rnd, values[n])})
				}
			}
		}
		for _, nr := range numbers {
			ask(k.name, k.info, base|nr, call{})
		}
	}
	t.Logf("%d inputs compared", compared)
}

func nameOf(r reference, a string, nr uint32) string {
	for name, n := range r.numbers[a] {
		if n == int(nr) {
			return name
		}
	}
	return "not named"
}

// around picks arguments at, below and above the values, with other high words, and random ones.
func around(r *rand.Rand, values []uint64) (args [6]uint64) {
	for i := range args {
		v := values[r.IntN(len(values))]
		switch r.IntN(8) {
		case 0:
			v++
		case 1:
			v--
		case 2:
			v ^= 1 << r.IntN(64)
		case 3:
			v |= uint64(r.Uint32()) << 32
		case 4:
			v = r.Uint64()
		case 5:
			v = uint64(uint32(v))
		}
		args[i] = v
	}
	return args
}

// TestEqualToLibseccomp compares verdicts, for the default profile on every architecture, with libseccomp's.
func TestEqualToLibseccomp(t *testing.T) {
	bin := libseccomp(t)
	for _, goarch := range []string{"amd64", "arm64"} {
		for name, caps := range map[string][]string{
			"default": nil, "CAP_SYS_ADMIN": {"CAP_SYS_ADMIN"}, "several": {"CAP_SYS_PTRACE", "CAP_BPF", "CAP_SYS_CHROOT", "CAP_PERFMON", "CAP_SYS_TIME", "CAP_SYSLOG"},
		} {
			t.Run(goarch+" "+name, func(t *testing.T) { same(t, bin, goarch, Default().resolve(target(goarch, caps...))) })
		}
	}
}

// TestRandomProfilesEqualLibseccomp does the same for profiles of users: every operator, action and default.
func TestRandomProfilesEqualLibseccomp(t *testing.T) {
	bin := libseccomp(t)
	r := rand.New(rand.NewPCG(7, 8))
	names := []string{"read", "write", "openat", "close", "ioctl", "mmap", "prctl", "clone", "personality", "kill", "fcntl", "lseek", "bpf"}
	actions := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActLog, specs.ActTrace}
	var ops []specs.LinuxSeccompOperator
	for op := range operators() {
		ops = append(ops, op)
	}
	slices.Sort(ops)
	edges := []uint64{0, 1, 2, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x1ffffffff, 1 << 63, 1<<64 - 1}
	for i := range 40 {
		goarch := []string{"amd64", "arm64"}[i%2]
		errno := uint(r.IntN(200))
		p := &specs.LinuxSeccomp{
			DefaultAction: actions[r.IntN(len(actions))], DefaultErrnoRet: &errno,
			Architectures: map[string][]specs.Arch{"amd64": {specs.ArchX86_64}, "arm64": {specs.ArchAARCH64}}[goarch],
		}
		for _, n := range r.Perm(len(names))[:1+r.IntN(len(names))] {
			call := specs.LinuxSyscall{Names: []string{names[n]}, Action: actions[r.IntN(len(actions))], ErrnoRet: &errno}
			for _, index := range r.Perm(6)[:r.IntN(4)] {
				v := edges[r.IntN(len(edges))]
				a := specs.LinuxSeccompArg{Index: uint(index), Value: v, Op: ops[r.IntN(len(ops))]}
				if a.Op == specs.OpMaskedEqual {
					a.ValueTwo = v & edges[r.IntN(len(edges))]
				}
				call.Args = append(call.Args, a)
			}
			p.Syscalls = append(p.Syscalls, call)
		}
		same(t, bin, goarch, p)
	}
}
