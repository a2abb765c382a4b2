// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

// TestMountTargetBehindLinks: a mount point that the image has put behind a link to somewhere else is made, and mounted, in the container.
func TestMountTargetBehindLinks(t *testing.T) {
	n := node(t)
	kit.RemoveImage(t, n, testimage.Links)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("volume"), 0o644); err != nil {
		t.Fatal(err)
	}
	host := filepath.Join(dir, "null")
	if err := unix.Mknod(host, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	c := kit.RunPod(t, n).Run(testimage.Links, kit.Sleep(),
		mount(&cri.Mount{HostPath: dir, ContainerPath: "/out/absolute/dir"}),
		mount(&cri.Mount{HostPath: dir, ContainerPath: "/out/relative/deep/er"}),
		mount(&cri.Mount{HostPath: filepath.Join(dir, "file"), ContainerPath: "/out/relative/one"}),
		func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{HostPath: host, ContainerPath: "/out/absolute/device", Permissions: "rw"}}
			c.WorkingDir = "/out/relative/work"
		})
	const want = "volumevolumevolume" + testimage.Outside + "/work\n"
	got := c.Exec("sh", "-c", "cd "+testimage.Outside+" && cat dir/file deep/er/file one && test -c device && cd /out/relative/work && pwd -P")
	if got != want {
		t.Errorf("in the container: %q; want %q", got, want)
	}
	if exists(testimage.Outside) {
		t.Errorf("%s was made on the host", testimage.Outside)
	}
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if mounted(string(table), testimage.Outside+"/dir") {
		t.Error("the volume is mounted on the host")
	}
}

// TestMountPropagationOfTheHost: what a host's mount can't give is refused, not left out.
func TestMountPropagationOfTheHost(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n, podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.Privileged = true }))
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	const private, slave, both = cri.MountPropagation_PROPAGATION_PRIVATE, cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
	for _, host := range []struct {
		is      string
		how     uintptr
		refused []cri.MountPropagation
		given   []cri.MountPropagation
	}{
		{"shared", unix.MS_SHARED, nil, []cri.MountPropagation{private, slave, both}},
		{"slave", unix.MS_SLAVE, []cri.MountPropagation{both}, []cri.MountPropagation{private, slave}},
		{"private", unix.MS_PRIVATE, []cri.MountPropagation{slave, both}, []cri.MountPropagation{private}},
	} {
		if err := unix.Mount("", dir, "", host.how, ""); err != nil {
			t.Fatal(err)
		}
		try := func(p cri.MountPropagation) error {
			return tryRun(pod, kit.ContainerConfig(t, testimage.Busybox, kit.Sleep(), mount(&cri.Mount{HostPath: dir, ContainerPath: "/vol", Propagation: p}),
				security(func(s *cri.LinuxContainerSecurityContext) { s.Privileged = true })))
		}
		for _, p := range host.given {
			if err := try(p); err != nil {
				t.Errorf("%s on a host's %s mount: %v", p, host.is, err)
			}
		}
		for _, p := range host.refused {
			wantCode(t, try(p), codes.FailedPrecondition, "propagation", p.String(), dir, "not shared")
		}
	}
}
