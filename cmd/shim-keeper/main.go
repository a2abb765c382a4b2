// SPDX-License-Identifier: Apache-2.0

// Command shim-keeper keeps containers: it starts them, is their parent, writes their logs, and learns how they end, across every
// restart of the daemon and across the death of either of its two processes. Package keeper is all of it.
//
//	shim-keeper [-d] DIRECTORY
//
// It imports nothing that the work doesn't need: two of it run on every node for the life of all containers.
package main

import (
	"syscall"

	"crishim.dev/keeper"
)

// build is set by the linker.
var build = "devel"

func main() {
	syscall.Exit(keeper.Main(build))
}
