// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"crishim.dev/cni/builtin/lease"
	"crishim.dev/internal/errs"
)

// hostLocal is the "ipam" part of a configuration. The old form has one range in the part itself, the other a list of sets.
type hostLocal struct {
	Type       string          `json:"type"`
	Subnet     string          `json:"subnet"`
	RangeStart string          `json:"rangeStart"`
	RangeEnd   string          `json:"rangeEnd"`
	Gateway    string          `json:"gateway"`
	Ranges     json.RawMessage `json:"ranges"`
	Routes     []*types.Route  `json:"routes"`
	DataDir    string          `json:"dataDir"`
	ResolvConf string          `json:"resolvConf"`

	network string
	sets    []lease.Set
	wanted  []netip.Addr
}

// rangeKeys finds unknown keys, which a type with its own UnmarshalJSON would swallow.
type rangeKeys struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
	Gateway    string `json:"gateway"`
}

func checkHostLocal(config []byte) error {
	var conf header
	// The configuration is the calling plugin's: what host-local has to understand is the part "ipam".
	if err := open(config, &conf); err != nil {
		return err
	}
	_, err := parseHostLocal(&conf, "")
	return err
}

// parseHostLocal reads the part "ipam", what the runtime adds to it, and checks all ranges.
func parseHostLocal(conf *header, args string) (*hostLocal, error) {
	var l hostLocal
	var err error
	if l.network, err = conf.network(); err != nil {
		return nil, err
	}
	if len(conf.IPAM) == 0 {
		return nil, errs.Newf(errs.Invalid, "configuration has no key \"ipam\"")
	}
	if err := decode(conf.IPAM, &l); err != nil {
		return nil, prefixed("ipam", err)
	}
	if err := l.readRanges(); err != nil {
		return nil, prefixed("ipam", err)
	}
	if err := l.readRuntime(conf, args); err != nil {
		return nil, err
	}
	return &l, l.complete(conf.version())
}

func (l *hostLocal) readRanges() error {
	if l.Subnet != "" {
		one, err := json.Marshal(rangeKeys{l.Subnet, l.RangeStart, l.RangeEnd, l.Gateway})
		if err != nil {
			return fmt.Errorf("read range: %w", err)
		}
		var r lease.Range
		if err := json.Unmarshal(one, &r); err != nil {
			return errs.Newf(errs.Invalid, "parse range: %w", err)
		}
		l.sets = append(l.sets, lease.Set{r})
	}
	if len(l.Ranges) == 0 {
		return nil
	}
	var keys [][]rangeKeys
	if err := decode(l.Ranges, &keys); err != nil {
		return err
	}
	var sets []lease.Set
	if err := open(l.Ranges, &sets); err != nil {
		return err
	}
	l.sets = append(l.sets, sets...)
	return nil
}

// readRuntime takes what a runtime may add: ranges before those of the file, and addresses it wants.
func (l *hostLocal) readRuntime(conf *header, args string) error {
	env, err := envArgs(args, "IP", "MAC")
	if err != nil {
		return err
	}
	var texts []string
	if ip := env["IP"]; ip != "" {
		texts = append(texts, ip)
	}
	var a struct {
		CNI struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	}
	if err := open(conf.Args, &a); err != nil {
		return err
	}
	var rc struct {
		IPRanges []lease.Set `json:"ipRanges"`
		IPs      []string    `json:"ips"`
	}
	if err := open(conf.RuntimeConfig, &rc); err != nil {
		return err
	}
	for _, t := range slices.Concat(texts, a.CNI.IPs, rc.IPs) {
		bare, _, _ := strings.Cut(t, "/")
		ip, err := netip.ParseAddr(bare)
		if err != nil {
			return errs.Newf(errs.Invalid, "requested address: %w", err)
		}
		l.wanted = append(l.wanted, ip.Unmap())
	}
	l.sets = append(rc.IPRanges, l.sets...)
	return nil
}

func (l *hostLocal) complete(cniVersion string) error {
	if len(l.sets) == 0 {
		return errs.Newf(errs.Invalid, "ipam: no ranges")
	}
	families := map[bool]int{}
	for i, s := range l.sets {
		if err := s.Complete(); err != nil {
			return prefixed(fmt.Sprintf("ipam: range set %d", i), err)
		}
		for j, o := range l.sets[:i] {
			if s.Overlaps(o) {
				return errs.Newf(errs.Invalid, "ipam: range set %d overlaps with %d", i, j)
			}
		}
		families[s[0].Start.Is4()]++
	}
	if families[true] > 1 || families[false] > 1 {
		if ok, _ := version.GreaterThanOrEqualTo(cniVersion, "0.3.0"); !ok {
			return errs.Newf(errs.Invalid, "ipam: CNI version %s has no more than one address per family", cniVersion)
		}
	}
	return nil
}

// subnets lists the networks that addresses come from.
func (l *hostLocal) subnets() []netip.Prefix {
	seen := map[netip.Prefix]bool{}
	for _, s := range l.sets {
		for _, r := range s {
			seen[r.Subnet] = true
		}
	}
	return slices.SortedFunc(maps.Keys(seen), func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
}

func runHostLocal(_ context.Context, h *Host, c *Call) (types.Result, error) {
	var conf header
	if err := open(c.Config, &conf); err != nil {
		return nil, err
	}
	conf.take(c)
	switch c.Command {
	case "ADD":
		return hostLocalAdd(h, c, &conf)
	case "DEL":
		return nil, hostLocalDel(h, c, &conf)
	case "CHECK":
		return nil, hostLocalCheck(h, c, &conf)
	case "GC":
		return nil, hostLocalGC(h, &conf)
	case "STATUS":
		_, err := parseHostLocal(&conf, "")
		return nil, err
	}
	return nil, unknownCommand(c)
}

func hostLocalAdd(h *Host, c *Call, conf *header) (_ *current.Result, err error) {
	l, err := parseHostLocal(conf, c.Args)
	if err != nil {
		return nil, err
	}
	store, err := h.leases(l.network, l.DataDir)
	if err != nil {
		return nil, err
	}
	res := result()
	if l.ResolvConf != "" {
		if res.DNS, err = readResolvConf(l.ResolvConf); err != nil {
			return nil, err
		}
	}
	owner := lease.Owner{Container: c.Container, IfName: c.IfName}
	had, err := store.Held(owner)
	if err != nil {
		return nil, err
	}
	if len(had) == 0 {
		defer func() {
			if err != nil {
				_ = store.Release(owner)
			}
		}()
	}
	wanted := slices.Clone(l.wanted)
	for i, set := range l.sets {
		var want netip.Addr
		if at := slices.IndexFunc(wanted, set.Contains); at >= 0 {
			want = wanted[at]
			wanted = slices.Delete(wanted, at, at+1)
		}
		addr, r, err := store.Acquire(owner, set, i, want)
		if err != nil {
			return nil, prefixed("network "+l.network, err)
		}
		res.IPs = append(res.IPs, &current.IPConfig{Address: ipNet(addr), Gateway: r.Gateway.AsSlice()})
	}
	if len(wanted) > 0 {
		return nil, errs.Newf(errs.Invalid, "network %s: requested address %s is in none of its ranges", l.network, wanted[0])
	}
	res.Routes = l.Routes
	return res, nil
}

func hostLocalDel(h *Host, c *Call, conf *header) error {
	store, err := hostLocalStore(h, conf)
	if err != nil {
		return err
	}
	return store.Release(lease.Owner{Container: c.Container, IfName: c.IfName})
}

// hostLocalStore opens the leases by name alone: a DEL must work with a configuration whose ranges make no sense.
func hostLocalStore(h *Host, conf *header) (*lease.Store, error) {
	network, err := conf.network()
	if err != nil {
		return nil, err
	}
	var l struct {
		DataDir string `json:"dataDir"`
	}
	if err := open(conf.IPAM, &l); err != nil {
		return nil, err
	}
	return h.leases(network, l.DataDir)
}

func hostLocalCheck(h *Host, c *Call, conf *header) error {
	store, err := hostLocalStore(h, conf)
	if err != nil {
		return err
	}
	held, err := store.Held(lease.Owner{Container: c.Container, IfName: c.IfName})
	if err == nil && len(held) == 0 {
		err = errs.Newf(errs.NotFound, "network %s: %s holds no address", conf.Name, c.Container)
	}
	return err
}

// hostLocalGC releases what no valid attachment holds.
func hostLocalGC(h *Host, conf *header) error {
	store, err := hostLocalStore(h, conf)
	if err != nil {
		return err
	}
	all, err := store.All()
	if err != nil {
		return err
	}
	valid := conf.valid()
	for _, l := range all {
		if !l.Foreign && !valid[types.GCAttachment{ContainerID: l.Owner.Container, IfName: l.Owner.IfName}] {
			if err := store.Release(l.Owner); err != nil {
				return err
			}
		}
	}
	return nil
}

func readResolvConf(path string) (types.DNS, error) {
	f, err := os.Open(path)
	if err != nil {
		return types.DNS{}, fmt.Errorf("read resolvConf: %w", err)
	}
	defer f.Close()
	var dns types.DNS
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 || strings.ContainsAny(fields[0][:1], "#;") {
			continue
		}
		switch fields[0] {
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, fields[1])
		case "domain":
			dns.Domain = fields[1]
		case "search":
			dns.Search = append(dns.Search, fields[1:]...)
		case "options":
			dns.Options = append(dns.Options, fields[1:]...)
		}
	}
	return dns, nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
