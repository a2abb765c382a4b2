// SPDX-License-Identifier: Apache-2.0

// Package sandbox is one pod's life: its record, namespaces, cgroup, /dev/shm, DNS and host files, and network attachment.
// It knows no containers; server stops and removes those first.
package sandbox

import (
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ID names a sandbox: 64 hexadecimal digits.
type ID string

// State is where a sandbox is in its life.
//
//	Creating ──▶ Ready ──▶ Stopping ──▶ Stopped ──▶ (gone)
//	    └───────────────────▲
type State string

// The states.
const (
	Creating State = "creating"
	Ready    State = "ready"
	Stopping State = "stopping"
	Stopped  State = "stopped"
)

// Sandbox is a pod as seen at one moment: an immutable copy. The messages it points to must not be written.
type Sandbox struct {
	ID      ID
	State   State
	Config  *cri.PodSandboxConfig
	Handler string
	// CreatedAt is when RunPodSandbox was called.
	CreatedAt time.Time
	// IPs are the pod's addresses, the primary one first; empty with host networking.
	IPs []string
	// Cgroup is the pod's cgroup parent as cgroup.Manager understands it.
	Cgroup string
	// NetNS is the path of the pinned network namespace; empty with host networking.
	NetNS string
	// Overhead and Resources are the pod's own and the sum of its containers', as they are in force.
	Overhead, Resources *cri.LinuxContainerResources
	// InitPID is the pid of the tiny init of a pod with a shared pid namespace, else 0.
	InitPID int
}
