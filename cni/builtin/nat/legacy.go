// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unsafe"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// xtables is the kernel's interface of before nftables, which iptables-legacy uses: a table is one piece of memory (linux/netfilter_ipv4/
// ip_tables.h and its IPv6 twin).
type xtables struct {
	family       string
	level        int
	names        string // the file that lists the tables in use; reading it loads nothing
	addr         int    // bytes of an address
	interfaces   int    // offset of the interfaces' names in an entry, whose masks follow
	proto, flags int    // offsets; after the flags come their inverses
	target       int    // offset of the target's offset, with that of the next entry after it
	size         int    // of an entry
	saddr, daddr uint32 // offsets in the packet's header
}

func legacyTables() []xtables {
	return []xtables{
		{"ip", unix.IPPROTO_IP, "/proc/thread-self/net/ip_tables_names", 4, 16, 80, 82, 88, 112, 12, 16},
		{"ip6", unix.IPPROTO_IPV6, "/proc/thread-self/net/ip6_tables_names", 16, 64, 128, 131, 140, 168, 8, 24},
	}
}

const (
	xtGetInfo    = 64 // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
	xtGetEntries = 65
	xtForward    = 2 // NF_INET_FORWARD
	xtHooks      = 5
	xtGoto       = 2 // IPT_F_GOTO, IP6T_F_GOTO
	xtTarget     = 32
	xtAccept     = -2 // -NF_ACCEPT - 1
	xtDrop       = -1
)

// xtInfo is struct ipt_getinfo.
type xtInfo struct {
	name            [32]byte
	valid           uint32
	hook, underflow [xtHooks]uint32
	entries, size   uint32
}

// legacyDrops gives the FORWARD chain of a legacy filter table in use whose policy is to drop, translated to what nftables would have.
func (x xtables) legacyDrops() (*Foreign, error) {
	names, err := os.ReadFile(x.names)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !strings.Contains(string(names), "filter\n") {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	family := unix.AF_INET
	if x.family == "ip6" {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("read %s_tables: %w", x.family, err)
	}
	defer unix.Close(fd)
	for range 10 { // the table may change between the two questions
		info := xtInfo{}
		copy(info.name[:], "filter")
		if err := getsockopt(fd, x.level, xtGetInfo, unsafe.Pointer(&info), unsafe.Sizeof(info)); err != nil {
			return nil, fmt.Errorf("read %s_tables: %w", x.family, err)
		}
		const head = 40 // of struct ipt_get_entries: the name, the size, four bytes that align
		b := make([]byte, head+int(info.size))
		copy(b, "filter")
		binary.NativeEndian.PutUint32(b[32:], info.size)
		err = getsockopt(fd, x.level, xtGetEntries, unsafe.Pointer(&b[0]), uintptr(len(b)))
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINVAL) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read %s_tables: %w", x.family, err)
		}
		return x.parse(b[head:], &info)
	}
	return nil, fmt.Errorf("read %s_tables: %w", x.family, unix.EAGAIN)
}

func getsockopt(fd, level, option int, value unsafe.Pointer, size uintptr) error {
	length := uint32(size)
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(value), uintptr(unsafe.Pointer(&length)), 0)
	if e != 0 {
		return e
	}
	return nil
}

// parse reads a table: nil unless forwarded packets are dropped.
func (x xtables) parse(b []byte, info *xtInfo) (*Foreign, error) {
	f := &Foreign{Family: x.family, Table: "filter", Chain: "FORWARD", Legacy: true, rules: map[string][]*nftables.Rule{}}
	starts := map[int]string{} // where chains begin
	for i, at := range info.hook {
		if info.valid&(1<<i) != 0 {
			starts[int(at)] = fmt.Sprint("hook ", i)
		}
	}
	starts[int(info.hook[xtForward])] = f.Chain
	drops, chain := false, ""
	type jump struct {
		to int
		at *expr.Verdict
	}
	var jumps []jump
	for at := 0; at < len(b); {
		e := b[at:]
		if len(e) < x.size {
			return nil, fmt.Errorf("read %s_tables: an entry of %d bytes", x.family, len(e))
		}
		target, next := int(binary.NativeEndian.Uint16(e[x.target:])), int(binary.NativeEndian.Uint16(e[x.target+2:]))
		if next < target+xtTarget+4 || target < x.size || next > len(e) {
			return nil, fmt.Errorf("read %s_tables: malformed entry at %d", x.family, at)
		}
		if name, ok := starts[at]; ok {
			chain = name
		}
		name, data := text(e[target+2:target+xtTarget]), e[target+xtTarget:next]
		switch verdict := int32(binary.NativeEndian.Uint32(data)); {
		case name == "ERROR":
			starts[at+next] = text(data)
		case name != "": // a target that is no verdict, or one of its own kind
		case at == int(info.underflow[xtForward]):
			drops = verdict == xtDrop
		case verdict == xtAccept || verdict >= 0:
			v := &expr.Verdict{Kind: expr.VerdictAccept}
			if verdict >= 0 {
				v.Kind = expr.VerdictJump
				if e[x.flags]&xtGoto != 0 {
					v.Kind = expr.VerdictGoto
				}
				jumps = append(jumps, jump{int(verdict), v})
			}
			f.rules[chain] = append(f.rules[chain], &nftables.Rule{Exprs: append(x.conditions(e[:target]), v)})
		}
		at += next
	}
	for _, j := range jumps {
		j.at.Chain = starts[j.to]
	}
	if !drops {
		return nil, nil
	}
	return f, nil
}

// conditions translates what a rule looks at: addresses, and anything else as something that is not known.
func (x xtables) conditions(e []byte) []expr.Any {
	var out []expr.Any
	masks := e[x.interfaces+32 : x.interfaces+64]
	if len(bytes.Trim(masks, "\x00")) > 0 || binary.NativeEndian.Uint16(e[x.proto:]) != 0 || e[x.flags+1] != 0 {
		return []expr.Any{&expr.Match{Name: "more"}}
	}
	for m := e[x.size:]; len(m) >= xtTarget; {
		size := int(binary.NativeEndian.Uint16(m))
		if size < xtTarget || size > len(m) {
			break
		}
		out = append(out, &expr.Match{Name: text(m[2:xtTarget])})
		m = m[size:]
	}
	n := x.addr
	for i, offset := range []uint32{x.saddr, x.daddr} {
		addr, mask := e[i*n:(i+1)*n], e[(i+2)*n:(i+3)*n]
		if len(bytes.Trim(mask, "\x00")) == 0 {
			continue
		}
		out = append(out, &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(n)},
			&expr.Bitwise{Len: uint32(n), Mask: mask, Xor: make([]byte, n)}, &expr.Cmp{Op: expr.CmpOpEq, Data: addr})
	}
	return out
}

// text is what a field of characters holds, up to its NUL.
func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}
