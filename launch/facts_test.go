// SPDX-License-Identifier: Apache-2.0

package launch_test

import (
	"testing"

	"crishim.dev/internal/kernel"
	"crishim.dev/launch"
)

// hostFacts are this host's.
func hostFacts(t testing.TB) launch.Facts {
	return launch.FromKernel(must[kernel.Facts](t)(kernel.Probe()))
}
