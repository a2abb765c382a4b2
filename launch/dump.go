// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crishim.dev/proto"
)

// Dump writes a program for people: each label, and under it its system calls. Values of environment variables are left out.
func Dump(w io.Writer, p *proto.Program) error {
	label := ""
	for i := 0; i < len(p.Ops); {
		if i < len(p.Labels) && p.Labels[i] != label {
			label = p.Labels[i]
			if _, err := fmt.Fprintf(w, "%s\n", label); err != nil {
				return err
			}
		}
		line, n := dumpOp(p, &p.Ops[i]), 1
		// The same for every signal is one line.
		for p.Ops[i].NR == unix.SYS_RT_SIGACTION && i+n < len(p.Ops) && p.Ops[i+n].NR == unix.SYS_RT_SIGACTION {
			n++
		}
		if n > 1 {
			line += fmt.Sprintf(" and %d more signals", n-1)
		}
		if _, err := fmt.Fprintf(w, "    %s\n", line); err != nil {
			return err
		}
		i += n
	}
	return nil
}

func dumpOp(p *proto.Program, op *proto.Op) string {
	s := signatureOf(op.NR)
	args := make([]string, len(s.args))
	for i, form := range s.args {
		args[i] = dumpArg(p, op, i, form)
	}
	line := s.name + "(" + strings.Join(args, ", ") + ")"
	if op.Result != proto.NoResult {
		line = "r" + strconv.Itoa(int(op.Result)) + " = " + line
	}
	var ignored []string
	for _, e := range op.Ignore {
		if e != 0 {
			ignored = append(ignored, unix.ErrnoName(unix.Errno(e)))
		}
	}
	if len(ignored) > 0 {
		line += " unless " + strings.Join(ignored, " ")
	}
	switch {
	case op.Flags&proto.FlagIf != 0:
		line = fmt.Sprintf("if r%d: %s", op.Arg[5], line)
	case op.Flags&proto.FlagUnless != 0:
		line = fmt.Sprintf("if no r%d: %s", op.Arg[5], line)
	}
	return line
}

// dumpArg shows argument i of op in the form that its signature gives it.
func dumpArg(p *proto.Program, op *proto.Op, i int, form rune) string {
	v := op.Arg[i]
	switch op.Kind[i] {
	case proto.Reg:
		return "r" + strconv.FormatUint(v, 10)
	case proto.FD:
		if v < proto.FDPassed {
			return []string{"report", "stdin", "stdout", "stderr"}[v]
		}
		return "fd" + strconv.FormatUint(v-proto.FDPassed, 10)
	case proto.Imm:
		return dumpNumber(v, form)
	case proto.Data:
	}
	switch form {
	case 's':
		return quote(dataString(p, v))
	case 'v':
		return "[" + strings.Join(dataVector(p, v, quote), " ") + "]"
	case 'e':
		return "[" + strings.Join(dataVector(p, v, redact), " ") + "]"
	case 'h':
		how := dataWords(p, v, 3)
		return "{" + dumpNumber(how[0], 'o') + " " + flagNames(how[2], resolveNames) + "}"
	case 'a':
		return "{" + flagNames(dataWords(p, v, 1)[0], attrNames) + "}"
	case 'l':
		l := dataWords(p, v, 2)
		return "{" + limit(l[0]) + " " + limit(l[1]) + "}"
	case 'c':
		c := dataWords(p, v, 3)
		eff, perm, inh := c[0]&0xffffffff|c[1]>>32<<32, c[0]>>32|c[2]&0xffffffff<<32, c[1]&0xffffffff|c[2]>>32<<32
		return fmt.Sprintf("{effective %#x permitted %#x inheritable %#x}", eff, perm, inh)
	case 'g':
		return dumpGroups(p, v, op.Arg[0])
	case 'f':
		return "{" + strconv.FormatUint(dataWords(p, v, 1)[0]&0xffff, 10) + " instructions}"
	}
	return "{…}"
}

// dumpNumber shows an immediate.
func dumpNumber(v uint64, form rune) string {
	switch form {
	case 'd':
		if int64(v) == unix.AT_FDCWD {
			return "CWD"
		}
		return strconv.FormatInt(int64(v), 10)
	case 'o':
		return openFlags(v)
	case 'n':
		return flagNames(v, namespaceNames)
	case 'm':
		return flagNames(v, attrNames)
	case 'w':
		return fmt.Sprintf("%#o", v)
	case 'D':
		return fmt.Sprintf("%d:%d", unix.Major(v), unix.Minor(v))
	case 'E':
		return unix.ErrnoName(unix.Errno(v))
	case 's', 'v', 'e', 'h', 'a', 'l', 'c', 'g', 'f', '*':
		if v == 0 {
			return "NULL"
		}
	}
	return fmt.Sprintf("%#x", v)
}

func dumpGroups(p *proto.Program, off, n uint64) string {
	groups := make([]string, n)
	for i := range groups {
		groups[i] = strconv.FormatUint(uint64(binary.NativeEndian.Uint32(p.Data[off+4*uint64(i):])), 10)
	}
	return "[" + strings.Join(groups, " ") + "]"
}

func dataString(p *proto.Program, off uint64) string {
	s, _, _ := strings.Cut(string(p.Data[off:]), "\x00")
	return s
}

func dataWords(p *proto.Program, off uint64, n int) []uint64 {
	w := make([]uint64, n)
	for i := range w {
		w[i] = binary.NativeEndian.Uint64(p.Data[off+8*uint64(i):])
	}
	return w
}

func dataVector(p *proto.Program, off uint64, show func(string) string) []string {
	var out []string
	for ; ; off += 8 {
		s := dataWords(p, off, 1)[0]
		if s == 0 && !isReloc(p, off) {
			return out
		}
		out = append(out, show(dataString(p, s)))
	}
}

func isReloc(p *proto.Program, off uint64) bool {
	for _, r := range p.Relocs {
		if uint64(r) == off {
			return true
		}
	}
	return false
}

// redact shows the name of an environment variable.
func redact(e string) string {
	name, _, _ := strings.Cut(e, "=")
	return name + "=…"
}

func limit(v uint64) string {
	if v == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return strconv.FormatUint(v, 10)
}
