// SPDX-License-Identifier: Apache-2.0

package server

import (
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/container"
)

func containerState(s container.State) cri.ContainerState {
	switch s {
	case container.Creating, container.Created, container.Starting:
		return cri.ContainerState_CONTAINER_CREATED
	case container.Running:
		return cri.ContainerState_CONTAINER_RUNNING
	case container.Exited, container.Removing:
		return cri.ContainerState_CONTAINER_EXITED
	default:
		return cri.ContainerState_CONTAINER_UNKNOWN
	}
}

func containerItem(c container.Container) *cri.Container {
	return &cri.Container{
		Id:           string(c.ID),
		PodSandboxId: string(c.Sandbox),
		Metadata:     c.Config.GetMetadata(),
		Image:        c.Config.GetImage(),
		ImageRef:     c.ImageRef,
		State:        containerState(c.State),
		CreatedAt:    nanos(c.CreatedAt),
		Labels:       c.Config.GetLabels(),
		Annotations:  c.Config.GetAnnotations(),
		ImageId:      c.ImageID,
	}
}

// containerStatus repeats the request's mounts verbatim: kubelet finds the termination log by comparing their paths.
func containerStatus(c container.Container) *cri.ContainerStatus {
	st := &cri.ContainerStatus{
		Id:          string(c.ID),
		Metadata:    c.Config.GetMetadata(),
		State:       containerState(c.State),
		CreatedAt:   nanos(c.CreatedAt),
		StartedAt:   nanos(c.StartedAt),
		FinishedAt:  nanos(c.FinishedAt),
		ExitCode:    c.ExitCode,
		Image:       c.Config.GetImage(),
		ImageRef:    c.ImageRef,
		Reason:      c.Reason,
		Message:     c.Message,
		Labels:      c.Config.GetLabels(),
		Annotations: c.Config.GetAnnotations(),
		Mounts:      c.Config.GetMounts(),
		LogPath:     c.LogPath,
		ImageId:     c.ImageID,
		StopSignal:  signal(c.StopSignal),
	}
	if c.Resources != nil {
		st.Resources = &cri.ContainerResources{Linux: c.Resources}
	}
	if c.User != nil {
		st.User = &cri.ContainerUser{Linux: c.User}
	}
	return st
}

// nanos is t as CRI has it: 0 when it has not come.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// signal is the enum's value for a name such as SIGTERM, TERM or SIGRTMIN+3; the default one for others.
func signal(name string) cri.Signal {
	name = strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if rest, ok := strings.CutPrefix(name, "RTMIN+"); ok {
		name = "RTMINPLUS" + rest
	} else if rest, ok := strings.CutPrefix(name, "RTMAX-"); ok {
		// The enum's own spelling.
		name = "RTMAXMINUS" + rest
	}
	return cri.Signal(cri.Signal_value["SIGNAL_SIG"+name])
}

// containerInfo is what a verbose status adds. Values of the environment stay out of it: they are the commonest secrets.
func containerInfo(c container.Container) (map[string]string, error) {
	return jsonInfo(struct {
		SandboxID  string          `json:"sandboxID"`
		State      container.State `json:"state"`
		Pid        int             `json:"pid"`
		CgroupPath string          `json:"cgroupPath"`
		StopSignal string          `json:"stopSignal"`
		Command    []string        `json:"command,omitempty"`
		Args       []string        `json:"args,omitempty"`
		EnvNames   []string        `json:"envNames,omitempty"`
		WorkingDir string          `json:"workingDir,omitempty"`
		Tty        bool            `json:"tty"`
	}{
		string(c.Sandbox), c.State, c.PID, c.Cgroup, c.StopSignal,
		c.Config.GetCommand(), c.Config.GetArgs(), envNames(c.Config), c.Config.GetWorkingDir(), c.Config.GetTty(),
	})
}

func envNames(cfg *cri.ContainerConfig) []string {
	var names []string
	for _, e := range cfg.GetEnvs() {
		names = append(names, e.GetKey())
	}
	return names
}
