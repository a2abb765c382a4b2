// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode"
)

// shared is the package's node, set once by TestMain.
var shared *testnode.Node

// handler is a RuntimeClass's, besides the default one.
const handler = "[runtime.handlers.fast]\ntype = \"shim\"\n"

// policy is the node's signature policy.
const policy = "default = \"accept\"\n[[rule]]\nmatch = \"localhost/forbidden\"\npolicy = \"reject\"\n"

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	f, err := os.CreateTemp("", "shim-policy-*.toml")
	if err == nil {
		defer os.Remove(f.Name())
		_, err = f.WriteString(policy)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	config := handler + fmt.Sprintf("[image]\npolicy_file = %q\n", f.Name())
	return kit.Main(m, testnode.Options{Config: config}, func(n *testnode.Node) { shared = n })
}

// node is the package's node, for a test that may run beside others.
func node(t *testing.T) *testnode.Node {
	t.Helper()
	testnode.Need(t)
	t.Parallel()
	return shared
}

// wantCode fails unless err has the code and its text all parts.
func wantCode(t *testing.T, err error, want codes.Code, parts ...string) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("error %v; want code %v", err, want)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q; want %q in it", err, p)
		}
	}
}

// security changes a container's security context.
func security(f func(*cri.LinuxContainerSecurityContext)) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { f(c.Linux.SecurityContext) }
}

// podSecurity changes a pod's security context.
func podSecurity(f func(*cri.LinuxSandboxSecurityContext)) func(*cri.PodSandboxConfig) {
	return func(c *cri.PodSandboxConfig) { f(c.Linux.SecurityContext) }
}

// mount adds a mount to a container.
func mount(m *cri.Mount) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { c.Mounts = append(c.Mounts, m) }
}
