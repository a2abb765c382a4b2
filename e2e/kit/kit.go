// SPDX-License-Identifier: Apache-2.0

// Package kit lets the black-box tests say what they mean: run this pod, start that container, look inside, read its log.
//
// Every helper fails its test by itself and removes what it made when the test ends. The runtime is only ever reached
// through its socket, its log files and the kernel.
package kit

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/crifield"
	"crishim.dev/internal/testnode"
	"crishim.dev/internal/testnode/testimage"
)

// Main is for TestMain: it starts the package's node, hands it to set, runs the tests, and fails when the node is not as
// it was once all pods are gone.
func Main(m *testing.M, o testnode.Options, set func(*testnode.Node)) int {
	if os.Geteuid() != 0 {
		return m.Run()
	}
	code, inside, err := testnode.Enter()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if !inside {
		return code
	}
	ctx := context.Background()
	n, err := testnode.Start(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// Pulled before the stock is taken, so that what the tests' images bring is not something left behind.
	for _, image := range []string{testimage.Busybox, testimage.Nginx, testimage.Configured} {
		if _, err := n.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}}); err != nil {
			fmt.Fprintf(os.Stderr, "pull image %s: %v\n%s\n", image, err, n.Log(60))
			return 1
		}
	}
	if err := n.Mark(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	set(n)
	code = crifield.Run(m)
	for _, left := range n.Clean(ctx) {
		fmt.Printf("left behind: %s\n", left)
		code = max(code, 1)
	}
	if err := n.Close(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	if code != 0 {
		fmt.Fprintf(os.Stderr, "the daemon's log ends:\n%s\n", n.Log(60))
	}
	return code
}

// Timeout bounds each call that a helper makes.
const Timeout = 60 * time.Second

// Context is a test's context with Timeout.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), Timeout)
	t.Cleanup(cancel)
	return ctx
}

// cleanup is for calls made after the test's own context has ended.
func cleanup() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), Timeout)
}

// Until calls try until it gives nil, and fails the test with its last error after Timeout.
func Until(t testing.TB, try func() error) {
	t.Helper()
	deadline := time.Now().Add(Timeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || t.Context().Err() != nil {
			t.Fatalf("after %v: %v", Timeout, err)
		}
		<-time.After(wait)
	}
}

// Unique is a name for an object of this test.
func Unique(t testing.TB) string {
	name := strings.ToLower(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, t.Name()))
	return strings.Trim(name[max(0, len(name)-40):], "-") + "-" + strings.ToLower(rand.Text()[:6])
}

// Pull makes sure that an image is there and gives its id.
func Pull(t testing.TB, n *testnode.Node, image string) string {
	t.Helper()
	status, err := n.Images.ImageStatus(Context(t), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: image}})
	if err != nil {
		t.Fatalf("status of image %s: %v", image, err)
	}
	if status.GetImage() != nil {
		return status.GetImage().GetId()
	}
	pulled, err := n.Images.PullImage(Context(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}})
	if err != nil {
		t.Fatalf("pull image %s: %v", image, err)
	}
	return pulled.GetImageRef()
}

// RemoveImage removes an image at the end of the test.
func RemoveImage(t testing.TB, n *testnode.Node, image string) {
	t.Cleanup(func() {
		ctx, cancel := cleanup()
		defer cancel()
		if _, err := n.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: image}}); err != nil {
			t.Errorf("remove image %s: %v", image, err)
		}
	})
}

// Pod is a running pod of a test.
type Pod struct {
	Node   *testnode.Node
	ID     string
	Config *cri.PodSandboxConfig
	t      testing.TB
}

// PodConfig is a plain pod's configuration, changed by mods.
func PodConfig(t testing.TB, n *testnode.Node, mods ...func(*cri.PodSandboxConfig)) *cri.PodSandboxConfig {
	name := Unique(t)
	c := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "e2e", Uid: name + "-uid"},
		Hostname:     "host-" + rand.Text()[:6],
		LogDirectory: filepath.Join(n.LogDir(), name),
		Linux:        &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}},
	}
	for _, m := range mods {
		m(c)
	}
	return c
}

// RunPod runs a pod and removes it at the end of the test.
func RunPod(t testing.TB, n *testnode.Node, mods ...func(*cri.PodSandboxConfig)) *Pod {
	t.Helper()
	p := &Pod{Node: n, Config: PodConfig(t, n, mods...), t: t}
	started, err := n.Runtime.RunPodSandbox(Context(t), &cri.RunPodSandboxRequest{Config: p.Config})
	if err != nil {
		t.Fatalf("run pod: %v", err)
	}
	p.ID = started.GetPodSandboxId()
	t.Cleanup(p.Remove)
	return p
}

// Remove stops and removes the pod and its logs. It may be called more than once.
func (p *Pod) Remove() {
	ctx, cancel := cleanup()
	defer cancel()
	if _, err := p.Node.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		p.t.Errorf("stop pod: %v", err)
	}
	if _, err := p.Node.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		p.t.Errorf("remove pod: %v", err)
	}
	if dir := p.Config.GetLogDirectory(); dir != "" {
		if err := os.RemoveAll(dir); err != nil {
			p.t.Errorf("remove logs: %v", err)
		}
	}
}

// Stop stops the pod.
func (p *Pod) Stop() {
	p.t.Helper()
	if _, err := p.Node.Runtime.StopPodSandbox(Context(p.t), &cri.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		p.t.Fatalf("stop pod: %v", err)
	}
}

// Status is the pod's status.
func (p *Pod) Status() *cri.PodSandboxStatusResponse {
	p.t.Helper()
	s, err := p.Node.Runtime.PodSandboxStatus(Context(p.t), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		p.t.Fatalf("status of pod: %v", err)
	}
	return s
}

// IP is the pod's primary address.
func (p *Pod) IP() string {
	p.t.Helper()
	ip := p.Status().GetStatus().GetNetwork().GetIp()
	if ip == "" {
		p.t.Fatal("pod has no address")
	}
	return ip
}
