// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"crishim.dev/internal/errs"
)

// Container compiles the start of a container.
func Container(d *Description, f Facts) (*Plan, error) { return nil, errs.Newf(errs.Unsupported, "later") }

// Exec compiles the start of another process in a running container.
func Exec(d *ExecDescription, f Facts) (*Plan, error) { return nil, errs.Newf(errs.Unsupported, "later") }

// Pod compiles the making of a pod's namespaces. The process ends by itself, with status 0 (proto.Spawn.Run).
func Pod(d *PodDescription, f Facts) (*Plan, error) { return nil, errs.Newf(errs.Unsupported, "later") }

// PodInit compiles the start of a pod's first process.
func PodInit(d *PodInitDescription, f Facts) (*Plan, error) {
	return nil, errs.Newf(errs.Unsupported, "later")
}

// InitELF is the pod's first process as an executable for goarch ("amd64", "arm64").
func InitELF(goarch string) ([]byte, error) { return nil, errs.Newf(errs.Unsupported, "later") }

// Targets lists what the caller must make in the root file system before the launch, parents first:
// directories 0755 and empty files 0644, owned by the container's root.
func Targets(d *Description) []Target { return nil }

// ValidSysctl says whether a pod may set name to value.
func ValidSysctl(name, value string, hostNet, hostIPC bool) error { return nil }
