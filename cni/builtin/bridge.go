// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"golang.org/x/sys/unix"

	"crishim.dev/cni/builtin/lease"
	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/cni/builtin/vlan"
	"crishim.dev/internal/errs"
	"crishim.dev/internal/undo"
)

// bridgeConf is the configuration of the bridge plugin.
type bridgeConf struct {
	header
	Bridge           string  `json:"bridge"`
	IsGateway        bool    `json:"isGateway"`
	IsDefaultGateway bool    `json:"isDefaultGateway"`
	ForceAddress     bool    `json:"forceAddress"`
	IPMasq           bool    `json:"ipMasq"`
	IPMasqBackend    *string `json:"ipMasqBackend"`
	MTU              int     `json:"mtu"`
	HairpinMode      bool    `json:"hairpinMode"`
	PromiscMode      bool    `json:"promiscMode"`
	EnableDAD        bool    `json:"enabledad"`
	PortIsolation    bool    `json:"portIsolation"`
	MACSpoofCheck    bool    `json:"macspoofchk"`

	VLAN                      int          `json:"vlan"`
	VLANTrunk                 []vlan.Range `json:"vlanTrunk"`
	PreserveDefaultVLAN       bool         `json:"preserveDefaultVlan"`
	DisableContainerInterface bool         `json:"disableContainerInterface"`

	ipam struct {
		Type string `json:"type"`
	}
	mac net.HardwareAddr
}

// checkBridge leaves the part "ipam" to whoever serves that: with a key that the built-in host-local doesn't understand, the bridge can stay
// built in and the addresses come from the binary.
func checkBridge(config []byte) error {
	conf, err := parseBridge(&Call{Config: config})
	if err != nil {
		return err
	}
	return conf.validate()
}

// ownIPAM says that addresses come from the built-in host-local.
func (conf *bridgeConf) ownIPAM() bool {
	if conf.ipam.Type != "host-local" {
		return false
	}
	_, err := parseHostLocal(&conf.header, "")
	return !errors.Is(err, ErrNotUnderstood)
}

func parseBridge(c *Call) (*bridgeConf, error) {
	conf := &bridgeConf{Bridge: "cni0"}
	if err := c.decode(conf); err != nil {
		return nil, err
	}
	if conf.IPMasqBackend != nil && *conf.IPMasqBackend != "nftables" {
		return nil, notUnderstood("ipMasqBackend %q", *conf.IPMasqBackend)
	}
	conf.IsGateway = conf.IsGateway || conf.IsDefaultGateway
	if err := open(conf.IPAM, &conf.ipam); err != nil {
		return nil, err
	}
	return conf, conf.readMAC(c.Args)
}

// validate refuses what can't be set up. A DEL doesn't ask: it has to work all the same.
func (conf *bridgeConf) validate() error {
	if conf.HairpinMode && conf.PromiscMode {
		return errs.Newf(errs.Invalid, "hairpinMode and promiscMode exclude each other")
	}
	if conf.MTU < 0 || conf.MTU > 65535 {
		return errs.Newf(errs.Invalid, "mtu %d", conf.MTU)
	}
	if conf.DisableContainerInterface && conf.ipam.Type != "" {
		return errs.Newf(errs.Invalid, "cannot use IPAM when DisableContainerInterface flag is set")
	}
	return errors.Join(prefixed("bridge", validName(conf.Bridge)), conf.vlans().Validate())
}

// readMAC takes the address for the pod's end from CNI_ARGS, args or the runtime; the later wins.
func (conf *bridgeConf) readMAC(args string) error {
	env, err := envArgs(args, "MAC", "IP")
	if err != nil {
		return err
	}
	var a struct {
		CNI struct {
			MAC string `json:"mac"`
		} `json:"cni"`
	}
	var rc struct {
		MAC string `json:"mac"`
	}
	if err := errors.Join(open(conf.Args, &a), open(conf.RuntimeConfig, &rc)); err != nil {
		return err
	}
	for _, text := range []string{env["MAC"], a.CNI.MAC, rc.MAC} {
		if text == "" {
			continue
		}
		if conf.mac, err = net.ParseMAC(text); err != nil {
			return errs.Newf(errs.Invalid, "mac: %w", err)
		}
	}
	return nil
}

func runBridge(ctx context.Context, h *Host, c *Call) (types.Result, error) {
	conf, err := parseBridge(c)
	if err != nil {
		return nil, err
	}
	switch c.Command {
	case "ADD":
		return h.bridgeAdd(ctx, c, conf)
	case "DEL":
		return nil, h.bridgeDel(ctx, c, conf)
	case "CHECK":
		return nil, h.bridgeCheck(ctx, c, conf)
	case "GC":
		return nil, h.bridgeGC(ctx, c, conf)
	case "STATUS":
		return nil, h.ipam(ctx, c, conf, nil)
	}
	return nil, unknownCommand(c)
}

// bridgeAdd: bridge, address, pair, pod. The address comes before the pair because the pod's MAC is made from it, and last in DEL.
func (h *Host) bridgeAdd(ctx context.Context, c *Call, conf *bridgeConf) (_ *current.Result, err error) {
	var u undo.Stack
	defer u.Run(&err)
	if err := conf.validate(); err != nil {
		return nil, err
	}
	pod, err := c.pod()
	if err != nil {
		return nil, err
	}
	netns, err := os.Open(c.NetNS)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer netns.Close()
	res := result()
	// A second ADD must fail, and must not undo what the first has got.
	if _, err := pod.Link(c.IfName); err == nil {
		return nil, errs.Newf(errs.AlreadyExists, "container veth name (%s) already exists", c.IfName)
	}
	if conf.ipam.Type != "" {
		if err := h.ipam(ctx, c, conf, res); err != nil {
			return nil, err
		}
		u.Add(func() error {
			del := *c
			del.Command = "DEL"
			return h.ipam(context.WithoutCancel(ctx), &del, conf, nil)
		})
	}
	gateways := conf.gateways(res)
	br, gateway, err := h.ensureBridge(conf, gateways)
	if err != nil {
		return nil, err
	}
	veth, err := h.addVeth(c, conf, br, firstIP(res), netns)
	if err != nil {
		return nil, err
	}
	u.Add(func() error { return h.unplug(c, conf) })
	if err := portFlags(h, veth.Name, conf); err != nil {
		return nil, err
	}
	eth, err := configurePod(pod, c.IfName, res, conf)
	if err != nil {
		return nil, err
	}
	if conf.MACSpoofCheck {
		if err := h.nat.Guard(veth.Name, eth.MAC); err != nil {
			return nil, err
		}
	}
	if err := h.masquerade(conf, res); err != nil {
		return nil, err
	}
	if err := h.awaitReady(ctx, conf, veth.Name, pod, eth, res); err != nil {
		return nil, err
	}
	res.Interfaces = []*current.Interface{
		{Name: br.Name, Mac: br.MAC.String()},
		{Name: veth.Name, Mac: veth.MAC.String()},
		{Name: c.IfName, Mac: eth.MAC.String(), Sandbox: c.NetNS},
	}
	if gateway.Name != br.Name {
		res.Interfaces = append(res.Interfaces, &current.Interface{Name: gateway.Name, Mac: gateway.MAC.String()})
	}
	for _, ip := range res.IPs {
		ip.Interface = new(2)
	}
	if !conf.DNS.IsEmpty() {
		res.DNS = conf.DNS
	}
	return res, nil
}

// gateways completes the result: each address's gateway and the default routes; and gives the bridge's own addresses.
func (conf *bridgeConf) gateways(res *current.Result) []netip.Prefix {
	var own []netip.Prefix
	hasDefault := map[bool]bool{}
	for _, r := range res.Routes {
		if ones, _ := r.Dst.Mask.Size(); r.GW != nil && ones == 0 && r.Dst.IP.IsUnspecified() {
			hasDefault[r.Dst.IP.To4() != nil] = true
		}
	}
	for _, ip := range res.IPs {
		addr := prefixOf(ip.Address)
		if ip.Gateway == nil && conf.IsGateway {
			ip.Gateway = addr.Masked().Addr().Next().AsSlice()
		}
		if v4 := addr.Addr().Is4(); conf.IsDefaultGateway && !hasDefault[v4] {
			hasDefault[v4] = true
			res.Routes = append(res.Routes, &types.Route{Dst: defaultNet(v4), GW: ip.Gateway})
		}
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok && conf.IsGateway {
			own = append(own, netip.PrefixFrom(gw.Unmap(), addr.Bits()))
		}
	}
	return own
}

func defaultNet(v4 bool) net.IPNet {
	if v4 {
		return net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	}
	return net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}

// addVeth makes the pair. The name is derived from the attachment, so that DEL finds it without the pod. A pair of that name was left by a
// crash, its other end in a namespace that is gone or going: it is replaced.
func (h *Host) addVeth(c *Call, conf *bridgeConf, br rtnl.Link, ip netip.Addr, netns *os.File) (rtnl.Link, error) {
	v := rtnl.Veth{Name: vethName(c.Container, c.IfName), MTU: conf.MTU, Master: br.Index, Peer: c.IfName, PeerMAC: conf.mac, NetNS: netns}
	v.MAC = macOf(v.Name)
	if v.PeerMAC == nil && ip.IsValid() {
		v.PeerMAC = podMAC(ip)
	}
	err := h.rt.Do(rtnl.AddVeth(v))
	if errors.Is(err, unix.EEXIST) {
		if err := h.unplug(c, conf); err != nil {
			return rtnl.Link{}, err
		}
		err = h.rt.Do(rtnl.AddVeth(v))
	}
	if err == nil {
		err = h.rt.Do(rtnl.NoLinkLocal(v.Name).Allow(unix.EAFNOSUPPORT), rtnl.SetUp(v.Name, true))
		if err != nil {
			err = errors.Join(err, h.unplug(c, conf))
		}
	}
	return rtnl.Link{Name: v.Name, MAC: v.MAC}, err
}

// unplug removes the pair and what is kept for it.
func (h *Host) unplug(c *Call, conf *bridgeConf) error {
	name := vethName(c.Container, c.IfName)
	err := h.rt.Do(rtnl.DeleteLink(name).Allow(enodev))
	if conf.MACSpoofCheck {
		err = errors.Join(err, h.nat.Unguard(name))
	}
	return err
}

// masquerade notes the subnets as local and, if asked, hides their addresses from the world.
func (h *Host) masquerade(conf *bridgeConf, res *current.Result) error {
	var subnets []netip.Prefix
	for _, ip := range res.IPs {
		subnets = append(subnets, prefixOf(ip.Address).Masked())
	}
	if len(subnets) == 0 || !conf.IPMasq {
		return nil
	}
	return h.nat.Masquerade(subnets, subnets)
}

// ipam runs the IPAM plugin, the built-in one directly. With res nil only success counts.
func (h *Host) ipam(ctx context.Context, c *Call, conf *bridgeConf, res *current.Result) error {
	if conf.ipam.Type == "" {
		return nil
	}
	var r types.Result
	var err error
	if conf.ownIPAM() {
		r, err = runHostLocal(ctx, h, c)
	} else {
		r, err = conf.delegate(ctx, c, res != nil)
	}
	if err != nil || res == nil {
		return err
	}
	got, err := current.NewResultFromResult(r)
	if err != nil {
		return errs.Newf(errs.Invalid, "read the result of IPAM plugin %s: %w", conf.ipam.Type, err)
	}
	if len(got.IPs) == 0 {
		return errs.Newf(errs.Invalid, "IPAM plugin %s gave no address", conf.ipam.Type)
	}
	res.IPs, res.Routes, res.DNS = got.IPs, got.Routes, got.DNS
	return nil
}

func (conf *bridgeConf) delegate(ctx context.Context, c *Call, wantResult bool) (types.Result, error) {
	if c.Delegate == nil {
		return nil, errs.Newf(errs.Unsupported, "IPAM plugin %s can't be run from here", conf.ipam.Type)
	}
	out, err := c.Delegate(ctx, conf.ipam.Type, c.Config)
	if err != nil || !wantResult {
		return nil, err
	}
	var v struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(out, &v); err != nil {
		return nil, errs.Newf(errs.Invalid, "read the result of IPAM plugin %s: %w", conf.ipam.Type, err)
	}
	if v.CNIVersion == "" {
		v.CNIVersion = conf.version()
	}
	r, err := create.Create(v.CNIVersion, out)
	if err != nil {
		return nil, errs.Newf(errs.Invalid, "read the result of IPAM plugin %s: %w", conf.ipam.Type, err)
	}
	return r, nil
}

// bridgeDel deletes the pair, then releases the address. With Later both are the caller's: deleting takes a hundred times as long as all
// the rest, and if the pod's namespace ends meanwhile the kernel does it.
func (h *Host) bridgeDel(ctx context.Context, c *Call, conf *bridgeConf) error {
	name := vethName(c.Container, c.IfName)
	if c.Later != nil && conf.ownIPAM() {
		store, err := hostLocalStore(h, &conf.header)
		if err != nil {
			return err
		}
		c.Later([]string{name}, func() error {
			if conf.MACSpoofCheck {
				if err := h.nat.Unguard(name); err != nil {
					return err
				}
			}
			return store.Release(lease.Owner{Container: c.Container, IfName: c.IfName})
		})
		return nil
	}
	if err := h.unplug(c, conf); err != nil {
		return err
	}
	return h.ipam(ctx, c, conf, nil)
}

// vethName is the host's end of an attachment. 44 bits of a hash: names collide only if they are meant to.
func vethName(container, ifname string) string {
	sum := sha256.Sum256([]byte(container + "/" + ifname))
	return "veth" + hex.EncodeToString(sum[:])[:11]
}

// macOf derives a locally administered address from a name. One that is set explicitly is left alone by udev.
func macOf(name string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(name))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// podMAC derives the pod's address from its IP, so that neighbours that remember a former pod of that IP reach the new one.
func podMAC(ip netip.Addr) net.HardwareAddr {
	if ip.Is4() {
		return append(net.HardwareAddr{0x0a, 0x58}, ip.AsSlice()...)
	}
	sum := sha256.Sum256(ip.AsSlice())
	return append(net.HardwareAddr{0x0a, 0x58}, sum[:4]...)
}

func firstIP(res *current.Result) netip.Addr {
	if len(res.IPs) == 0 {
		return netip.Addr{}
	}
	return prefixOf(res.IPs[0].Address).Addr()
}

func prefixOf(n net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones)
}
