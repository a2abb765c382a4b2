// SPDX-License-Identifier: Apache-2.0

package thread

import (
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// However busy the process is, its first thread is spared and every other one that was used is gone.
func TestDiscard(t *testing.T) {
	var used sync.Map
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			Discard(func() {
				if unix.Gettid() == os.Getpid() {
					t.Error("the first thread was taken")
				}
				if _, twice := used.LoadOrStore(unix.Gettid(), true); twice {
					t.Error("a thread was taken twice")
				}
				// What it would do to whoever came after.
				if os.Geteuid() == 0 && unix.Unshare(unix.CLONE_NEWNS) != nil {
					t.Error("no namespace")
				}
			})
			runtime.Gosched()
		})
	}
	all.Wait()
}
