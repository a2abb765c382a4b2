// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package tools names what hack/tool builds from this module, so that `go mod tidy` keeps it.
package tools

import (
	_ "github.com/onsi/ginkgo/v2/ginkgo"
	_ "github.com/onsi/gomega"
	_ "k8s.io/apimachinery/pkg/util/rand"
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/framework"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
