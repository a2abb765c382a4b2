// SPDX-License-Identifier: Apache-2.0

package restart

import (
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

// TestImageRemovedInUse: an image that is removed while a container runs from it goes with that container; nothing of it
// is left when both are gone, with or without a restart between.
func TestImageRemovedInUse(t *testing.T) {
	for name, restart := range map[string]bool{"at once": false, "after a restart": true} {
		t.Run(name, func(t *testing.T) {
			n := node(t)
			pod := kit.RunPod(t, n)
			c := pod.Run(testimage.Layers, kit.Sleep())
			if _, err := n.Images.RemoveImage(kit.Context(t), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: testimage.Layers}}); err != nil {
				t.Fatalf("remove an image in use: %v", err)
			}
			if got := c.Exec("cat", "/tree/kept"); got != "2" {
				t.Errorf("the container sees %q", got)
			}
			if restart {
				if err := n.Restart(t.Context(), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			pod.Remove()
		})
	}
}
