// SPDX-License-Identifier: Apache-2.0

package protodiff

import (
	"testing"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestFirst(t *testing.T) {
	base := &cri.ContainerConfig{
		Command: []string{"a", "b"}, Labels: map[string]string{"x": "1"},
		Envs:  []*cri.KeyValue{{Key: "K", Value: []byte("v")}},
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{Privileged: true}},
	}
	for want, change := range map[string]func(*cri.ContainerConfig){
		"":                                  func(*cri.ContainerConfig) {},
		"working_dir":                       func(c *cri.ContainerConfig) { c.WorkingDir = "/" },
		"command[1]":                        func(c *cri.ContainerConfig) { c.Command[1] = "c" },
		"command[2]":                        func(c *cri.ContainerConfig) { c.Command = append(c.Command, "c") },
		"labels[\"x\"]":                     func(c *cri.ContainerConfig) { c.Labels["x"] = "2" },
		"labels[\"y\"]":                     func(c *cri.ContainerConfig) { c.Labels["y"] = "2" },
		"envs[0].value":                     func(c *cri.ContainerConfig) { c.Envs[0].Value = []byte("w") },
		"linux.security_context.privileged": func(c *cri.ContainerConfig) { c.Linux.SecurityContext.Privileged = false },
		"linux":                             func(c *cri.ContainerConfig) { c.Linux = nil },
	} {
		other := proto.CloneOf(base)
		change(other)
		if got := First(base, other); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := First(other, base); got != want {
			t.Errorf("reversed: got %q, want %q", got, want)
		}
	}
}
