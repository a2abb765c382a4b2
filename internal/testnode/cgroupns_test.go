// SPDX-License-Identifier: Apache-2.0

package testnode

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestCgroupNamespace runs this test once more on a node with a cgroup namespace of its own.
func TestCgroupNamespace(t *testing.T) {
	if os.Getenv(EnvCgroupNS) == "" {
		Need(t)
		again := exec.Command("/proc/self/exe", "-test.run=^TestCgroupNamespace$", "-test.v")
		again.Env = []string{EnvCgroupNS + "=1", "SHIM_NODE_BASE=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), EnvBin + "=" + t.TempDir()}
		if out, err := again.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(text)) {
		if f := strings.SplitN(strings.TrimSpace(l), ":", 3); f[1] != "" && f[2] != "/" {
			t.Errorf("in group %s of %s; want the root", f[2], f[1])
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(mounts)) {
		if f := strings.Fields(l); strings.Contains(l, " - cgroup") && f[3] != "/" {
			t.Errorf("mount shows more than the node's own part: %s", l)
		}
	}
	if err := os.Mkdir("/sys/fs/cgroup/memory/kubepods", 0o755); err != nil {
		t.Error(err)
	} else if err := os.Remove("/sys/fs/cgroup/memory/kubepods"); err != nil {
		t.Error(err)
	}
}
