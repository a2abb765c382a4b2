// SPDX-License-Identifier: Apache-2.0

package sys

import _ "unsafe" // for linkname

// FreeOSMemory collects garbage and gives what is free back to the kernel. It is the runtime's; package runtime/debug would bring package os.
//
//go:linkname FreeOSMemory runtime/debug.freeOSMemory
func FreeOSMemory()
