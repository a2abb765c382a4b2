// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/container/process"
	"crishim.dev/container/rootfs"
	"crishim.dev/sandbox"
	"crishim.dev/snapshot"
)

// record is what the store keeps of a container. A record is immutable once the manager has it: a change makes a new one (with).
type record struct {
	Container
	Process process.Process
	// Layers is the image's file system, bottom first.
	Layers []snapshot.Key
	// Volumes are the image's VOLUMEs that no mount of the request covers.
	Volumes []string
	// CDI is what the request's CDI devices bring.
	CDI rootfs.Injected
}

// stored is the record's form in the store.
type stored struct {
	ID         ID              `json:"id"`
	Sandbox    sandbox.ID      `json:"sandbox"`
	State      State           `json:"state"`
	Config     []byte          `json:"config"`              // protobuf
	Resources  []byte          `json:"resources,omitempty"` // protobuf
	ImageID    string          `json:"image_id"`
	ImageRef   string          `json:"image_ref"`
	PID        int             `json:"pid,omitempty"`
	CreatedAt  time.Time       `json:"created_at"`
	StartedAt  time.Time       `json:"started_at,omitzero"`
	FinishedAt time.Time       `json:"finished_at,omitzero"`
	ExitCode   int32           `json:"exit_code,omitempty"`
	Reason     string          `json:"reason,omitempty"`
	Message    string          `json:"message,omitempty"`
	LogPath    string          `json:"log_path,omitempty"`
	Cgroup     string          `json:"cgroup"`
	StopSignal string          `json:"stop_signal"`
	Process    process.Process `json:"process"`
	Layers     []snapshot.Key  `json:"layers"`
	Volumes    []string        `json:"volumes,omitempty"`
	CDI        rootfs.Injected `json:"cdi,omitzero"`
}

// with gives a changed copy.
func (r *record) with(change func(*record)) *record {
	c := *r
	change(&c)
	return &c
}

func (r *record) encode() ([]byte, error) {
	cfg, err := proto.Marshal(r.Config)
	if err != nil {
		return nil, fmt.Errorf("encode container %s: %w", r.ID, err)
	}
	res, err := proto.Marshal(r.Resources)
	if err != nil {
		return nil, fmt.Errorf("encode container %s: %w", r.ID, err)
	}
	return json.Marshal(stored{
		ID: r.ID, Sandbox: r.Sandbox, State: r.State, Config: cfg, Resources: res, ImageID: r.ImageID, ImageRef: r.ImageRef,
		PID: r.PID, CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, FinishedAt: r.FinishedAt, ExitCode: r.ExitCode,
		Reason: r.Reason, Message: r.Message, LogPath: r.LogPath, Cgroup: r.Cgroup, StopSignal: r.StopSignal,
		Process: r.Process, Layers: r.Layers, Volumes: r.Volumes, CDI: r.CDI,
	})
}

func decodeRecord(b []byte) (*record, error) {
	var s stored
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("decode container record: %w", err)
	}
	cfg, res := &cri.ContainerConfig{}, &cri.LinuxContainerResources{}
	if err := proto.Unmarshal(s.Config, cfg); err != nil {
		return nil, fmt.Errorf("decode container record %s: %w", s.ID, err)
	}
	if err := proto.Unmarshal(s.Resources, res); err != nil {
		return nil, fmt.Errorf("decode container record %s: %w", s.ID, err)
	}
	c := Container{
		ID: s.ID, Sandbox: s.Sandbox, State: s.State, Config: cfg, Resources: res, ImageID: s.ImageID, ImageRef: s.ImageRef,
		PID: s.PID, CreatedAt: s.CreatedAt, StartedAt: s.StartedAt, FinishedAt: s.FinishedAt, ExitCode: s.ExitCode,
		Reason: s.Reason, Message: s.Message, LogPath: s.LogPath, Cgroup: s.Cgroup, StopSignal: s.StopSignal,
	}
	c.User = s.Process.User()
	return &record{Container: c, Process: s.Process, Layers: s.Layers, Volumes: s.Volumes, CDI: s.CDI}, nil
}

func nameKey(pod sandbox.ID, m *cri.ContainerMetadata) string {
	return fmt.Sprintf("%s_%s_%d", pod, m.GetName(), m.GetAttempt())
}

func security(cfg *cri.ContainerConfig) *cri.LinuxContainerSecurityContext {
	return cfg.GetLinux().GetSecurityContext()
}

func pidMode(cfg *cri.ContainerConfig) cri.NamespaceMode {
	return security(cfg).GetNamespaceOptions().GetPid()
}
