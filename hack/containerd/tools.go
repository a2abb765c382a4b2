// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package containerd names what hack/tool builds for comparisons, so that `go mod tidy` keeps it.
package containerd

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
	_ "github.com/containerd/containerd/v2/cmd/ctr"
	_ "github.com/opencontainers/runc"
)
