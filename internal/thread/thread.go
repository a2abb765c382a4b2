// SPDX-License-Identifier: Apache-2.0

// Package thread runs what changes a thread for good: its namespaces.
package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Discard runs f on a thread that ends with it, and waits for that. It is never the process's first thread: that one can't end, and
// /proc/self shows its namespaces as the process's.
func Discard(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			Discard(f) // while this one is held
			runtime.UnlockOSThread()
			return
		}
		f() // still locked: the runtime ends the thread
	}()
	<-done
}
