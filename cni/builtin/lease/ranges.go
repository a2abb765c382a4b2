// SPDX-License-Identifier: Apache-2.0

package lease

import (
	"encoding/json"
	"fmt"
	"iter"
	"net/netip"
	"strings"

	"crishim.dev/internal/errs"
)

// Range is a run of addresses of one subnet, as the host-local plugin's configuration describes it. After Complete every field is set.
type Range struct {
	Subnet  netip.Prefix `json:"subnet"`
	Start   netip.Addr   `json:"rangeStart,omitzero"` // first, inclusive; default the subnet's second
	End     netip.Addr   `json:"rangeEnd,omitzero"`   // last, inclusive; default the subnet's last (IPv4: without the broadcast address)
	Gateway netip.Addr   `json:"gateway,omitzero"`    // never handed out; default the subnet's second
}

// Set is ranges of one family that serve as one pool: an owner gets one address of each set.
type Set []Range

// Complete fills in the defaults and refuses what makes no sense, as errs.Invalid.
func (r *Range) Complete() error {
	if !r.Subnet.IsValid() {
		return errs.Newf(errs.Invalid, "range without a subnet")
	}
	if r.Subnet.Addr().Is4In6() {
		return errs.Newf(errs.Invalid, "subnet %s: write it as IPv4", r.Subnet)
	}
	if r.Subnet.Masked() != r.Subnet {
		return errs.Newf(errs.Invalid, "subnet %s has host bits set; the network is %s", r.Subnet, r.Subnet.Masked())
	}
	if r.Subnet.Bits() > r.Subnet.Addr().BitLen()-2 {
		return errs.Newf(errs.Invalid, "subnet %s is too small to allocate from", r.Subnet)
	}
	first := r.Subnet.Addr().Next()
	for _, f := range []struct {
		name string
		addr *netip.Addr
		dflt netip.Addr
		in   bool
	}{{"gateway", &r.Gateway, first, false}, {"rangeStart", &r.Start, first, true}, {"rangeEnd", &r.End, lastOf(r.Subnet), true}} {
		if !f.addr.IsValid() {
			*f.addr = f.dflt
		}
		*f.addr = f.addr.Unmap()
		if f.in && !r.Subnet.Contains(*f.addr) {
			return errs.Newf(errs.Invalid, "%s %s is not in %s", f.name, *f.addr, r.Subnet)
		}
	}
	if r.End.Less(r.Start) {
		return errs.Newf(errs.Invalid, "rangeStart %s is after rangeEnd %s", r.Start, r.End)
	}
	return nil
}

// UnmarshalJSON reads a range as netip can't: a subnet with leading zeros or an empty address is an error that names it.
func (r *Range) UnmarshalJSON(b []byte) error {
	var raw struct {
		Subnet  string `json:"subnet"`
		Start   string `json:"rangeStart"`
		End     string `json:"rangeEnd"`
		Gateway string `json:"gateway"`
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	*r = Range{}
	var err error
	if raw.Subnet != "" {
		if r.Subnet, err = netip.ParsePrefix(raw.Subnet); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		text string
		addr *netip.Addr
	}{{raw.Start, &r.Start}, {raw.End, &r.End}, {raw.Gateway, &r.Gateway}} {
		if f.text == "" {
			continue
		}
		if *f.addr, err = netip.ParseAddr(f.text); err != nil {
			return err
		}
	}
	return nil
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	if a.Is4() {
		return a.Prev()
	}
	return a
}

func (r Range) contains(a netip.Addr) bool {
	return r.Subnet.Contains(a) && !a.Less(r.Start) && !r.End.Less(a)
}

func (r Range) String() string { return fmt.Sprintf("%s-%s", r.Start, r.End) }

// Complete completes every range and checks that they are of one family and apart.
func (s Set) Complete() error {
	if len(s) == 0 {
		return errs.Newf(errs.Invalid, "empty range set")
	}
	for i := range s {
		if err := s[i].Complete(); err != nil {
			return err
		}
		if s[i].Start.Is4() != s[0].Start.Is4() {
			return errs.Newf(errs.Invalid, "range set mixes IPv4 and IPv6")
		}
		if s[:i].Overlaps(s[i : i+1]) {
			return errs.Newf(errs.Invalid, "range %s overlaps with another of its set", s[i])
		}
	}
	return nil
}

// Overlaps says that an address is in both.
func (s Set) Overlaps(o Set) bool {
	for _, a := range s {
		for _, b := range o {
			if a.Start.Is4() == b.Start.Is4() && !a.End.Less(b.Start) && !b.End.Less(a.Start) {
				return true
			}
		}
	}
	return false
}

// Contains says that the address may be handed out from the set.
func (s Set) Contains(a netip.Addr) bool {
	_, ok := s.find(a)
	return ok
}

func (s Set) String() string {
	names := make([]string, len(s))
	for i, r := range s {
		names[i] = r.String()
	}
	return strings.Join(names, ",")
}

func (s Set) find(a netip.Addr) (Range, bool) {
	for _, r := range s {
		if r.contains(a) {
			return r, true
		}
	}
	return Range{}, false
}

// after yields every address of the set once except gateways, beginning behind last, or at the start if last is not of the set.
func (s Set) after(last netip.Addr) iter.Seq2[netip.Addr, Range] {
	return func(yield func(netip.Addr, Range) bool) {
		at, cur := 0, s[0].Start
		for i, r := range s {
			if r.contains(last) {
				at, cur = i, last
				at, cur = s.step(at, cur)
			}
		}
		first := cur
		for {
			if r := s[at]; cur != r.Gateway && !yield(cur, r) {
				return
			}
			if at, cur = s.step(at, cur); cur == first {
				return
			}
		}
	}
}

func (s Set) step(at int, cur netip.Addr) (int, netip.Addr) {
	if cur == s[at].End {
		at = (at + 1) % len(s)
		return at, s[at].Start
	}
	return at, cur.Next()
}
