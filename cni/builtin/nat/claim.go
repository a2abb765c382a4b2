// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// Port is one forwarded host port.
type Port struct {
	Proto         uint8      // IPPROTO_TCP, IPPROTO_UDP or IPPROTO_SCTP
	HostIP        netip.Addr // zero: every address of the host, of the family of Addr
	HostPort      uint16
	Addr          netip.Addr // of the pod
	ContainerPort uint16
}

// A claim is a symbolic link: its name is what is claimed, its target by whom and for what. Making one fails if it exists, so two
// pods can't get one port, also when two processes try.
//
//	port,4,tcp,0.0.0.0,8080   -> CONTAINER,10.88.0.5,80
//	local,10.88.0.0,16        -> subnet
//	masq,10.88.0.0,16         -> subnet
//	localnet,shim0            -> localnet
const (
	portKind     = "port"
	localKind    = "local"
	masqKind     = "masq"
	localnetKind = "localnet"
)

func protoName(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return strconv.Itoa(int(p))
}

// ParseProto reads "tcp", "udp" or "sctp" in any case; empty is tcp.
func ParseProto(s string) (uint8, error) {
	switch strings.ToLower(s) {
	case "", "tcp":
		return unix.IPPROTO_TCP, nil
	case "udp":
		return unix.IPPROTO_UDP, nil
	case "sctp":
		return unix.IPPROTO_SCTP, nil
	}
	return 0, errs.Newf(errs.Invalid, "port mapping: unknown protocol %q", s)
}

func (p Port) hostIP() netip.Addr {
	switch {
	case p.HostIP.IsValid():
		return p.HostIP
	case p.Addr.Is4():
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func (p Port) name() string {
	return strings.Join([]string{portKind, familyName(p.Addr), protoName(p.Proto), p.hostIP().String(), strconv.Itoa(int(p.HostPort))}, ",")
}

func (p Port) target(owner string) string {
	return strings.Join([]string{owner, p.Addr.String(), strconv.Itoa(int(p.ContainerPort))}, ",")
}

func (p Port) String() string {
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.hostIP(), p.HostPort), protoName(p.Proto))
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}

// parsePort reads a claim of a port back; ok is false for anything else.
func parsePort(name, target string) (p Port, owner string, ok bool) {
	n, t := strings.Split(name, ","), strings.Split(target, ",")
	if len(n) != 5 || n[0] != portKind || len(t) != 3 {
		return Port{}, "", false
	}
	proto, err1 := ParseProto(n[2])
	host, err2 := netip.ParseAddr(n[3])
	hostPort, err3 := strconv.ParseUint(n[4], 10, 16)
	addr, err4 := netip.ParseAddr(t[1])
	port, err5 := strconv.ParseUint(t[2], 10, 16)
	if errors.Join(err1, err2, err3, err4, err5) != nil || host.Is4() != addr.Is4() {
		return Port{}, "", false
	}
	if host.IsUnspecified() {
		host = netip.Addr{}
	}
	return Port{proto, host, uint16(hostPort), addr, uint16(port)}, t[0], true
}

func subnetClaim(kind string, p netip.Prefix) string {
	return fmt.Sprintf("%s,%s,%d", kind, p.Addr(), p.Bits())
}

func localnetClaim(ifname string) string { return localnetKind + "," + ifname }

func parseSubnet(name string) (netip.Prefix, bool) {
	_, rest, _ := strings.Cut(name, ",")
	p, err := netip.ParsePrefix(strings.Replace(rest, ",", "/", 1))
	return p, err == nil
}

// state is everything the table's sets should hold.
type state struct {
	local, masq []netip.Prefix
	localnet    []string
	ports       []Port
}

func (t *Table) names() ([]string, error) {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return nil, fmt.Errorf("read port claims: %w", err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// claims reads the directory. A claim that is no longer there when it is read is not an error.
func (t *Table) claims() (state, error) {
	names, err := t.names()
	if err != nil {
		return state{}, err
	}
	var s state
	for _, n := range names {
		switch kind, rest, _ := strings.Cut(n, ","); kind {
		case localKind, masqKind:
			p, ok := parseSubnet(n)
			if ok && kind == localKind {
				s.local = append(s.local, p)
			} else if ok {
				s.masq = append(s.masq, p)
			}
		case localnetKind:
			s.localnet = append(s.localnet, rest)
		case portKind:
			if p, _, ok := parsePort(n, t.holder(n)); ok {
				s.ports = append(s.ports, p)
			}
		}
	}
	s.local, s.masq = apart(s.local), apart(s.masq)
	return s, nil
}

// apart drops prefixes that lie inside others: the kernel's interval sets refuse overlaps.
func apart(ps []netip.Prefix) []netip.Prefix {
	slices.SortFunc(ps, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	var out []netip.Prefix
	for _, p := range ps {
		if !slices.ContainsFunc(out, func(o netip.Prefix) bool { return o.Overlaps(p) }) {
			out = append(out, p)
		}
	}
	return out
}

func (t *Table) path(name string) string { return filepath.Join(t.dir, name) }

// claim makes the link; made is false if it is there already, with whatever target.
func (t *Table) claim(name, target string) (made bool, err error) {
	err = os.Symlink(target, t.path(name))
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("record port claim: %w", err)
	}
	return true, nil
}

func (t *Table) unclaim(name string) error {
	if err := os.Remove(t.path(name)); err != nil {
		return fmt.Errorf("release port claim: %w", err)
	}
	return nil
}

// holder gives the target of a claim, empty when there is none.
func (t *Table) holder(name string) string {
	target, err := os.Readlink(t.path(name))
	if err != nil {
		return ""
	}
	return target
}
