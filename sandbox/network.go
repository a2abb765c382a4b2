// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"fmt"
	"os"

	"crishim.dev/cni"
)

// attach connects the pod to the network; the addresses come primary first.
func (m *Manager) attach(ctx context.Context, r *record, socket *os.File) ([]string, error) {
	res, err := m.o.Network.Attach(ctx, m.networkPod(r, socket))
	if err != nil {
		return nil, fmt.Errorf("attach to the network: %w", err)
	}
	ips := make([]string, 0, len(res.IPs))
	for _, ip := range res.IPs {
		ips = append(ips, ip.String())
	}
	return ips, nil
}

func (m *Manager) networkPod(r *record, socket *os.File) cni.Pod {
	md := r.Config.GetMetadata()
	dns := r.Config.GetDnsConfig()
	p := cni.Pod{
		ID: string(r.ID), Name: md.GetName(), Namespace: md.GetNamespace(), UID: md.GetUid(), NetNS: r.NetNS, Socket: socket,
		Annotations: r.Config.GetAnnotations(), CgroupParent: r.Config.GetLinux().GetCgroupParent(),
		DNS: cni.DNS{Servers: dns.GetServers(), Searches: dns.GetSearches(), Options: dns.GetOptions()},
	}
	for _, pm := range r.Config.GetPortMappings() {
		p.PortMappings = append(p.PortMappings, cni.PortMapping{
			HostIP: pm.GetHostIp(), HostPort: pm.GetHostPort(), ContainerPort: pm.GetContainerPort(), Protocol: pm.GetProtocol().String(),
		})
	}
	return p
}
