// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// record is what the store keeps of a sandbox. A record is immutable once the manager has it: a change makes a new one (with).
type record struct {
	Sandbox
	// network says that an attachment was begun and has not been taken back.
	network bool
}

// stored is the record's form in the store.
type stored struct {
	ID        ID        `json:"id"`
	State     State     `json:"state"`
	Config    []byte    `json:"config"` // protobuf
	Handler   string    `json:"handler,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	IPs       []string  `json:"ips,omitempty"`
	Cgroup    string    `json:"cgroup"`
	NetNS     string    `json:"netns,omitempty"`
	InitPID   int       `json:"init_pid,omitempty"`
	Network   bool      `json:"network,omitempty"`
	Overhead  []byte    `json:"overhead,omitempty"`  // protobuf
	Resources []byte    `json:"resources,omitempty"` // protobuf
}

func (r *record) public() Sandbox { return r.Sandbox }

// with gives a changed copy.
func (r *record) with(change func(*record)) *record {
	c := *r
	change(&c)
	return &c
}

func (r *record) encode() ([]byte, error) {
	s := stored{
		ID: r.ID, State: r.State, Handler: r.Handler, CreatedAt: r.CreatedAt, IPs: r.IPs, Cgroup: r.Cgroup,
		NetNS: r.NetNS, InitPID: r.InitPID, Network: r.network,
	}
	var errConfig, errOverhead, errResources error
	s.Config, errConfig = proto.Marshal(r.Config)
	if r.Overhead != nil {
		s.Overhead, errOverhead = proto.Marshal(r.Overhead)
	}
	if r.Resources != nil {
		s.Resources, errResources = proto.Marshal(r.Resources)
	}
	if err := errors.Join(errConfig, errOverhead, errResources); err != nil {
		return nil, fmt.Errorf("encode pod %s: %w", r.ID, err)
	}
	return json.Marshal(s)
}

func decodeRecord(b []byte) (*record, error) {
	var s stored
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("decode pod record: %w", err)
	}
	cfg := &cri.PodSandboxConfig{}
	errConfig := proto.Unmarshal(s.Config, cfg)
	overhead, errOverhead := decodeResources(s.Overhead)
	resources, errResources := decodeResources(s.Resources)
	if err := errors.Join(errConfig, errOverhead, errResources); err != nil {
		return nil, fmt.Errorf("decode pod record %s: %w", s.ID, err)
	}
	return &record{
		Sandbox: Sandbox{
			ID: s.ID, State: s.State, Config: cfg, Handler: s.Handler, CreatedAt: s.CreatedAt, IPs: s.IPs, Cgroup: s.Cgroup,
			NetNS: s.NetNS, InitPID: s.InitPID, Overhead: overhead, Resources: resources,
		},
		network: s.Network,
	}, nil
}

func decodeResources(b []byte) (*cri.LinuxContainerResources, error) {
	if len(b) == 0 {
		return nil, nil
	}
	r := &cri.LinuxContainerResources{}
	return r, proto.Unmarshal(b, r)
}

// The namespaces a pod shares with the host.

func nsOptions(cfg *cri.PodSandboxConfig) *cri.NamespaceOption {
	return cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func hostNetwork(cfg *cri.PodSandboxConfig) bool {
	return nsOptions(cfg).GetNetwork() == cri.NamespaceMode_NODE
}

func hostIPC(cfg *cri.PodSandboxConfig) bool {
	return nsOptions(cfg).GetIpc() == cri.NamespaceMode_NODE
}

func sharedPID(cfg *cri.PodSandboxConfig) bool {
	return nsOptions(cfg).GetPid() == cri.NamespaceMode_POD // CRI's default; kubelet says CONTAINER
}

// HostNetwork says whether the pod uses the node's network namespace (and its UTS namespace: KUBELET.md 21).
func (s Sandbox) HostNetwork() bool { return hostNetwork(s.Config) }

// HostIPC says whether the pod uses the node's IPC namespace.
func (s Sandbox) HostIPC() bool { return hostIPC(s.Config) }

// SharedPID says whether the pod's containers share one pid namespace.
func (s Sandbox) SharedPID() bool { return sharedPID(s.Config) }
