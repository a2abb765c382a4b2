// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"fmt"
	"os"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode"
)

// shared is the package's node, set once by TestMain.
var shared *testnode.Node

// creationTimeout is short, so that a test can wait for what a client that never opens its streams leaves.
const creationTimeout = 2 * time.Second

func TestMain(m *testing.M) {
	o := testnode.Options{Config: fmt.Sprintf("[streaming]\ncreation_timeout = %q\n", creationTimeout)}
	os.Exit(kit.Main(m, o, func(n *testnode.Node) { shared = n }))
}

// node is the package's node, for a test that may run beside others.
func node(t *testing.T) *testnode.Node {
	t.Helper()
	testnode.Need(t)
	t.Parallel()
	return shared
}

// execURL asks for the URL of an exec.
func execURL(t testing.TB, c *kit.Container, r *cri.ExecRequest) string {
	t.Helper()
	r.ContainerId = c.ID
	resp, err := c.Pod.Node.Runtime.Exec(kit.Context(t), r)
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	return resp.Url
}

// attachURL asks for the URL of an attach.
func attachURL(t testing.TB, c *kit.Container, r *cri.AttachRequest) string {
	t.Helper()
	r.ContainerId = c.ID
	resp, err := c.Pod.Node.Runtime.Attach(kit.Context(t), r)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	return resp.Url
}

// forwardURL asks for the URL of a port-forward.
func forwardURL(t testing.TB, p *kit.Pod) string {
	t.Helper()
	resp, err := p.Node.Runtime.PortForward(kit.Context(t), &cri.PortForwardRequest{PodSandboxId: p.ID})
	if err != nil {
		t.Fatalf("port-forward: %v", err)
	}
	return resp.Url
}
