// SPDX-License-Identifier: Apache-2.0

package restart

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

// TestKubelet20_ExecEndsWithTheDaemon: a command whose caller can't get its result any more does not run on.
func TestKubelet20_ExecEndsWithTheDaemon(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep())
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		ended := make(chan error, 1)
		go func() {
			_, err := c.ExecSync(0, "sh", "-c", "sleep 7777 & sleep 7777")
			ended <- err
		}()
		running := func(want int) func() error {
			return func() error {
				if got := strings.Count(c.Exec("ps"), "sleep 7777\n"); got != want {
					return fmt.Errorf("%d of its processes run; want %d", got, want)
				}
				return nil
			}
		}
		kit.Until(t, running(2))
		if err := n.Restart(context.WithoutCancel(t.Context()), sig); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err == nil {
			t.Errorf("%v: the exec succeeded", sig)
		}
		kit.Until(t, running(0))
	}
}
