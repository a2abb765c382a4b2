// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

// A privileged container that sees the host's processes can kill a keeper, but change neither its program nor, without privileges, its memory.
func TestKeeperIsOutOfReach(t *testing.T) {
	n := node(t)
	host := func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Pid = cri.NamespaceMode_NODE }
	own := security(func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions.Pid = cri.NamespaceMode_NODE })
	plain := kit.RunPod(t, n, podSecurity(host)).Run(testimage.Busybox, kit.Sleep(), own)
	privileged := kit.RunPod(t, n, podSecurity(host), podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.Privileged = true })).
		Run(testimage.Busybox, kit.Sleep(), own, security(func(s *cri.LinuxContainerSecurityContext) { s.Privileged = true }))
	for role, pid := range n.Keepers() {
		if got := strings.TrimSpace(plain.Exec("cat", fmt.Sprintf("/proc/%d/comm", pid))); got != "shim-keeper" {
			t.Fatalf("process %d of the %s keeper is %q inside", pid, role, got)
		}
		write := fmt.Sprintf("printf x | dd of=/proc/%d/exe conv=notrunc 2>&1", pid)
		look := fmt.Sprintf("cat /proc/%d/environ /proc/%d/maps; dd if=/proc/%d/mem bs=1 count=1; readlink /proc/%d/fd/[3-9] /proc/%d/exe; ls /proc/%d/root/", pid, pid, pid, pid, pid, pid)
		for name, try := range map[string]struct {
			c       *kit.Container
			command string
		}{
			"write its program":               {plain, write},
			"write its program, privileged":   {privileged, write},
			"look into it":                    {plain, look + " && exit 0; exit 1"},
			"replace its program, privileged": {privileged, fmt.Sprintf(": > /proc/%d/exe", pid)},
		} {
			r, err := try.c.ExecSync(20, "sh", "-c", try.command)
			if err != nil {
				t.Fatal(err)
			}
			if r.GetExitCode() == 0 || len(r.GetStdout()) > 0 && name == "look into it" {
				t.Errorf("%s keeper: %s: exit code %d, %.200s", role, name, r.GetExitCode(), r.GetStdout())
			}
		}
	}
	plain.Exec("true") // both live and work
}
