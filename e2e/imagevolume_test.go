// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

// imageMount mounts an image, or a part of it, at /image.
func imageMount(image, sub string, options ...string) func(*cri.ContainerConfig) {
	return mount(&cri.Mount{ContainerPath: "/image", Image: &cri.ImageSpec{Image: image}, ImageSubPath: sub, MountOptions: options})
}

func TestImageVolume(t *testing.T) {
	n := node(t)
	id := kit.Pull(t, n, testimage.Nginx)
	for name, pod := range map[string]*kit.Pod{"host's users": kit.RunPod(t, n), "own users": kit.RunPod(t, n, mapped(1000000))} {
		c := pod.Run(testimage.Busybox, kit.Sleep(), imageMount(id, ""))
		c.Exec("test", "-x", "/image/bin/busybox")
		if got := c.Exec("stat", "-c", "%u", "/image/etc/passwd", "/image/var/www"); got != "0\n33\n" {
			t.Errorf("%s: owners %q", name, got)
		}
		for _, attempt := range []string{"touch /image/x", "rm /image/etc/passwd", "/image/bin/busybox true"} {
			if r, err := c.ExecSync(10, "sh", "-c", attempt); err != nil || r.GetExitCode() == 0 {
				t.Errorf("%s: %s succeeds: %v, %v", name, attempt, r, err)
			}
		}
		options := c.Exec("grep", " /image ", "/proc/mounts")
		for _, want := range []string{"ro,", "nosuid", "nodev", "noexec"} {
			if !strings.Contains(options, want) {
				t.Errorf("%s: mounted as %q; want %s", name, options, want)
			}
		}
		sub := pod.Run(testimage.Busybox, kit.Sleep(), imageMount(id, "/etc", "exec"))
		if got := sub.Exec("ls", "-a", "/image"); !strings.Contains(got, "passwd") || strings.Contains(got, "bin") {
			t.Errorf("%s: sub-path etc has %q", name, got)
		}
		if got := sub.Exec("grep", " /image ", "/proc/mounts"); strings.Contains(got, "noexec") {
			t.Errorf("%s: exec is not honoured: %q", name, got)
		}
		file := pod.Run(testimage.Busybox, kit.Sleep(), imageMount(id, "etc/passwd"))
		if got := file.Exec("cat", "/image"); !strings.Contains(got, "operator") {
			t.Errorf("%s: sub-path etc/passwd has %q", name, got)
		}
		mounts := c.Status().GetMounts()
		if len(mounts) != 1 || mounts[0].GetImage().GetImage() != id {
			t.Errorf("%s: status has mounts %v", name, mounts)
		}
	}
}

func TestImageVolumeRefusals(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	kit.Pull(t, n, testimage.Busybox)
	for name, c := range map[string]struct {
		mod  func(*cri.ContainerConfig)
		code codes.Code
		text string
	}{
		"unknown image": {imageMount("localhost/test/no-such:1", ""), codes.NotFound, "ImageVolumeMountFailed"},
		"no sub-path":   {imageMount(testimage.Busybox, "no/such"), codes.InvalidArgument, "ImageVolumeMountFailed"},
		"outwards":      {imageMount(testimage.Busybox, "../etc"), codes.InvalidArgument, "image_sub_path"},
		"both": {mount(&cri.Mount{ContainerPath: "/v", HostPath: "/etc", Image: &cri.ImageSpec{Image: testimage.Busybox}}),
			codes.InvalidArgument, "host_path"},
		"propagation": {mount(&cri.Mount{ContainerPath: "/v", Image: &cri.ImageSpec{Image: testimage.Busybox},
			Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}), codes.InvalidArgument, "propagation"},
	} {
		_, err := pod.TryCreate(kit.ContainerConfig(t, testimage.Busybox, kit.Sleep(), c.mod))
		if err == nil {
			t.Errorf("%s: a container was made", name)
			continue
		}
		wantCode(t, err, c.code, c.text)
	}
}

func TestMountOptions(t *testing.T) {
	n := node(t)
	status, err := n.Runtime.Status(kit.Context(t), &cri.StatusRequest{})
	if err != nil || !status.GetFeatures().GetMountOptions() {
		t.Errorf("mount_options is not announced: %v, %v", status.GetFeatures(), err)
	}
	dir := t.TempDir()
	script := filepath.Join(dir, "run")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("run", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	pod := kit.RunPod(t, n)
	volume := func(options ...string) func(*cri.ContainerConfig) {
		return mount(&cri.Mount{ContainerPath: "/v", HostPath: dir, MountOptions: options})
	}
	plain := pod.Run(testimage.Busybox, kit.Sleep(), volume())
	if got := plain.Exec("/v/run"); got != "ran\n" {
		t.Errorf("without options: %q", got)
	}
	c := pod.Run(testimage.Busybox, kit.Sleep(), volume("noexec", "nosuid", "nodev", "noatime", "nosymfollow"))
	for _, command := range []string{"/v/run", "/v/link"} {
		if r, err := c.ExecSync(10, "sh", "-c", command); err != nil || r.GetExitCode() == 0 {
			t.Errorf("%s succeeds: %v, %v", command, r, err)
		}
	}
	if r, err := c.ExecSync(10, "cat", "/v/link"); err != nil || r.GetExitCode() == 0 {
		t.Errorf("nosymfollow: a link is followed: %v, %v", r, err)
	}
	got := c.Exec("grep", " /v ", "/proc/mounts")
	for _, want := range []string{"noexec", "nosuid", "nodev", "noatime", "nosymfollow", "rw"} {
		if !strings.Contains(got, want) {
			t.Errorf("mounted as %q; want %s", got, want)
		}
	}
	again := pod.Run(testimage.Busybox, kit.Sleep(), volume("noexec", "noatime", "relatime", "exec"))
	if got := again.Exec("sh", "-c", "/v/run; grep ' /v ' /proc/mounts"); !strings.HasPrefix(got, "ran\n") || !strings.Contains(got, "relatime") {
		t.Errorf("the last of contradicting options must count: %q", got)
	}
	_, err = pod.TryCreate(kit.ContainerConfig(t, testimage.Busybox, kit.Sleep(), volume("idmap")))
	wantCode(t, err, codes.InvalidArgument, "mount_options")
}
