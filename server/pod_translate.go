// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/sandbox"
)

func podState(s sandbox.State) cri.PodSandboxState {
	if s == sandbox.Ready {
		return cri.PodSandboxState_SANDBOX_READY
	}
	return cri.PodSandboxState_SANDBOX_NOTREADY
}

func podItem(p sandbox.Sandbox) *cri.PodSandbox {
	return &cri.PodSandbox{
		Id:             string(p.ID),
		Metadata:       p.Config.GetMetadata(),
		State:          podState(p.State),
		CreatedAt:      p.CreatedAt.UnixNano(),
		Labels:         p.Config.GetLabels(),
		Annotations:    p.Config.GetAnnotations(),
		RuntimeHandler: p.Handler,
	}
}

func podStatus(p sandbox.Sandbox) *cri.PodSandboxStatus {
	st := &cri.PodSandboxStatus{
		Id:             string(p.ID),
		Metadata:       p.Config.GetMetadata(),
		State:          podState(p.State),
		CreatedAt:      p.CreatedAt.UnixNano(),
		Network:        &cri.PodSandboxNetworkStatus{},
		Linux:          &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: namespaceOptions(p)}},
		Labels:         p.Config.GetLabels(),
		Annotations:    p.Config.GetAnnotations(),
		RuntimeHandler: p.Handler,
	}
	for i, ip := range p.IPs {
		if i == 0 {
			st.Network.Ip = ip
			continue
		}
		st.Network.AdditionalIps = append(st.Network.AdditionalIps, &cri.PodIP{Ip: ip})
	}
	return st
}

// namespaceOptions are the request's; kubelet compares them with the pod's to see whether it must be made anew.
func namespaceOptions(p sandbox.Sandbox) *cri.NamespaceOption {
	if o := p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(); o != nil {
		return o
	}
	return &cri.NamespaceOption{}
}

// podInfo is what a verbose status adds.
func podInfo(p sandbox.Sandbox) (map[string]string, error) {
	return jsonInfo(struct {
		State          sandbox.State         `json:"state"`
		Pid            int                   `json:"pid"`
		CgroupPath     string                `json:"cgroupPath"`
		NetNS          string                `json:"netNS"`
		IPs            []string              `json:"ips"`
		RuntimeHandler string                `json:"runtimeHandler"`
		Config         *cri.PodSandboxConfig `json:"config"`
	}{p.State, p.InitPID, p.Cgroup, p.NetNS, p.IPs, p.Handler, p.Config})
}

// jsonInfo is v under the one key that crictl inspect unfolds.
func jsonInfo(v any) (map[string]string, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode verbose status: %w", err)
	}
	return map[string]string{"info": string(data)}, nil
}
