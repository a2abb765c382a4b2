// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"

	"crishim.dev/internal/errs"
)

// Pod is what the network needs to know of a pod.
type Pod struct {
	// ID, Name, Namespace and UID identify the pod; plugins see all four. Detach needs only ID.
	ID, Name, Namespace, UID string
	// NetNS is the path of the pinned network namespace. At Detach it may be empty or gone.
	NetNS string
	// Socket is a NETLINK_ROUTE socket opened inside that namespace; it stays the caller's. Nil at Detach.
	Socket *os.File

	PortMappings []PortMapping
	Annotations  map[string]string
	DNS          DNS
	// Bandwidth, if zero, is taken from the annotations.
	Bandwidth    Bandwidth
	CgroupParent string
	Aliases      []string
	MAC          string
}

// PortMapping is one entry of the pod's port mappings. With HostPort 0 it is ignored.
type PortMapping struct {
	Protocol      string // "tcp", "udp" or "sctp", in any case; empty is tcp
	HostIP        string // empty: every address of the host
	HostPort      int32
	ContainerPort int32
}

// DNS is what plugins may want to know of the pod's resolver.
type DNS struct{ Servers, Searches, Options []string }

// Bandwidth limits are in bits per second, bursts in bits; 0 is no limit.
type Bandwidth struct{ IngressRate, IngressBurst, EgressRate, EgressBurst uint64 }

// Result is what a pod got.
type Result struct {
	// IPs are the addresses of the pod's interface, the primary one first.
	IPs []netip.Addr
	// IfName is the pod's interface, MAC its hardware address if a plugin told.
	IfName, MAC string
	// HostInterfaces are the names of interfaces on the host that belong to the attachment (the host's end of a veth, for statistics).
	HostInterfaces []string
	// DNS is what the plugins propose for the resolver.
	DNS DNS
	// Took is the time that all plugins together needed.
	Took time.Duration
}

// ifName is the pod's interface: kubelet and what runs in pods rely on it.
const ifName = "eth0"

// PodSysctls are the settings that a pod's network namespace needs before Attach, from whoever makes the namespace: they are written through
// /proc/sys from inside, which this package never is. Interfaces made later inherit them: a neighbour on the bridge that sends router
// advertisements must not change a pod's routes. A kernel without IPv6 has none of them.
func PodSysctls() map[string]string {
	out := map[string]string{}
	for _, name := range []string{"net.ipv6.conf.all.accept_ra", "net.ipv6.conf.default.accept_ra"} {
		if _, err := os.Stat("/proc/sys/" + strings.ReplaceAll(name, ".", "/")); err == nil {
			out[name] = "0"
		}
	}
	return out
}

func (p *Pod) validate(socket bool) error {
	if err := utils.ValidateContainerID(p.ID); err != nil {
		return errs.Newf(errs.Invalid, "pod ID %q: %w", p.ID, err)
	}
	switch {
	case socket && p.NetNS == "":
		return errs.Newf(errs.Invalid, "attach pod %s: no network namespace", p.ID)
	case socket && p.Socket == nil:
		return errs.Newf(errs.Invalid, "attach pod %s: no netlink socket of its network namespace", p.ID)
	}
	_, err := p.bandwidth()
	return err
}

// runtimeConf is what libcni hands to the plugins besides their configuration. Capabilities reach those that declare them.
func (p *Pod) runtimeConf(ranges []netip.Prefix) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
		ContainerID: p.ID, NetNS: p.NetNS, IfName: ifName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", p.Namespace},
			{"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ID},
			{"K8S_POD_UID", p.UID},
		},
		CapabilityArgs: map[string]any{},
	}
	caps := rt.CapabilityArgs
	if ports := p.ports(); len(ports) > 0 {
		caps["portMappings"] = ports
	}
	if b, err := p.bandwidth(); err == nil && b != (Bandwidth{}) {
		caps["bandwidth"] = map[string]uint64{
			"ingressRate": b.IngressRate, "ingressBurst": b.IngressBurst, "egressRate": b.EgressRate, "egressBurst": b.EgressBurst,
		}
	}
	if d := p.DNS; len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		caps["dns"] = map[string][]string{"servers": d.Servers, "searches": d.Searches, "options": d.Options}
	}
	if len(ranges) > 0 {
		var sets [][]map[string]string
		for _, r := range ranges {
			sets = append(sets, []map[string]string{{"subnet": r.String()}})
		}
		caps["ipRanges"] = sets
	}
	if len(p.Annotations) > 0 {
		caps["io.kubernetes.cri.pod-annotations"] = p.Annotations
	}
	if p.CgroupParent != "" {
		caps["cgroupPath"] = p.CgroupParent
	}
	if len(p.Aliases) > 0 {
		caps["aliases"] = p.Aliases
	}
	if p.MAC != "" {
		caps["mac"] = p.MAC
	}
	return rt
}

type portEntry struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// ports drops what is not to be forwarded: kubelet sends every port of every container.
func (p *Pod) ports() []portEntry {
	var out []portEntry
	for _, m := range p.PortMappings {
		if m.HostPort <= 0 {
			continue
		}
		proto := m.Protocol
		if proto == "" {
			proto = "tcp"
		}
		out = append(out, portEntry{m.HostPort, m.ContainerPort, strings.ToLower(proto), m.HostIP})
	}
	return out
}

// readResult takes from the plugins' result what concerns the pod's interface. An address that names no interface counts as the pod's,
// as in results of before CNI 0.3.
func readResult(r types.Result) (Result, error) {
	cur, err := current.NewResultFromResult(r)
	if err != nil {
		return Result{}, errs.Newf(errs.Invalid, "read result: %w", err)
	}
	out := Result{IfName: ifName, DNS: DNS{cur.DNS.Nameservers, cur.DNS.Search, cur.DNS.Options}}
	for _, i := range cur.Interfaces {
		switch {
		case i.Sandbox == "":
			out.HostInterfaces = append(out.HostInterfaces, i.Name)
		case i.Name == ifName:
			out.MAC = i.Mac
		}
	}
	for _, ip := range cur.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(cur.Interfaces) && (cur.Interfaces[*i].Name != ifName || cur.Interfaces[*i].Sandbox == "") {
			continue
		}
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if ok {
			out.IPs = append(out.IPs, a.Unmap())
		}
	}
	if len(out.IPs) == 0 {
		return Result{}, errs.Newf(errs.Unavailable, "the plugins gave interface %s no address", ifName)
	}
	return out, nil
}
