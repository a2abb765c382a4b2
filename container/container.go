// SPDX-License-Identifier: Apache-2.0

// Package container is one container's life: its record, root file system, cgroup, launch and end.
package container

import (
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/sandbox"
)

// ID names a container: 64 hexadecimal digits.
type ID string

// State is where a container is in its life.
//
//	Creating ──▶ Created ──▶ Starting ──▶ Running ──▶ Exited ──▶ Removing ──▶ (gone)
//	                └───────────┴──(start failed)──────▲
type State string

// The states. Creating and Removing are never listed.
const (
	Creating State = "creating"
	Created  State = "created"
	Starting State = "starting"
	Running  State = "running"
	Exited   State = "exited"
	Removing State = "removing"
)

// Container is a container as seen at one moment: an immutable copy. The messages it points to must not be written.
type Container struct {
	ID      ID
	Sandbox sandbox.ID
	State   State
	Config  *cri.ContainerConfig
	// ImageID is the id (config digest) of the image; ImageRef what the status reports as image_ref.
	ImageID, ImageRef string
	// PID is the first process, in the host's pid namespace; 0 unless Running.
	PID int
	// Times are zero until they have come.
	CreatedAt, StartedAt, FinishedAt time.Time
	// ExitCode is 0..255; Reason and Message as KUBELET-visible texts (Completed, Error, OOMKilled, StartError, Unknown).
	ExitCode        int32
	Reason, Message string
	// LogPath is absolute; empty when the pod has no log directory.
	LogPath string
	// Cgroup is the container's cgroup as cgroup.Manager understands it.
	Cgroup string
	// Resources are those in force (the request's, then each update's).
	Resources *cri.LinuxContainerResources
	// StopSignal is the signal that StopContainer sends first.
	StopSignal string
	// User is who the first process runs as.
	User *cri.LinuxContainerUser
}
