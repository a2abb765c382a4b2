// SPDX-License-Identifier: Apache-2.0

package restart

import (
	"context"
	"strings"
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

// TestUserNamespaceRestart: pods with users of their own outlive the daemon, and get more containers from the next.
func TestUserNamespaceRestart(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) {
		ids := []*cri.IDMapping{{HostId: 1400000, Length: 65536}}
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
	})
	before := pod.Run(testimage.Busybox, kit.Sleep())
	before.Exec("sh", "-c", "echo kept > /file")
	if err := n.Restart(context.WithoutCancel(t.Context()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	const ids = "0 1400000 65536"
	if got := strings.Join(strings.Fields(before.Exec("cat", "/file", "/proc/self/uid_map")), " "); got != "kept "+ids {
		t.Errorf("after a restart: %q", got)
	}
	after := pod.Run(testimage.Busybox, kit.Sleep())
	if got := strings.Join(strings.Fields(after.Exec("cat", "/proc/1/uid_map")), " "); got != ids {
		t.Errorf("ids of a container made after the restart: %q", got)
	}
	for _, kind := range []string{"user", "net", "ipc", "uts"} {
		link := "/proc/self/ns/" + kind
		if was, is := before.Exec("readlink", link), after.Exec("readlink", link); was != is {
			t.Errorf("%s namespace %q of a container made after the restart; want %q", kind, is, was)
		}
	}
}
