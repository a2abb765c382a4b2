// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

// TestUserNamespaceFiles: what overlayfs copies up, deletes and keeps as extended attributes is right under id-mapped layers.
func TestUserNamespaceFiles(t *testing.T) {
	n := node(t)
	kit.RemoveImage(t, n, testimage.Capable)
	kit.RemoveImage(t, n, testimage.Layers)
	pod := kit.RunPod(t, n, mapped(1100000))
	user := security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 1000} })
	const netRaw = "0000000000002000"
	if got := pod.Output(testimage.Capable, []string{"/capable/cat", "/proc/self/status"}, user); !strings.Contains(got, "CapEff:\t"+netRaw) {
		t.Errorf("file capabilities of the image are not given:\n%s", got)
	}
	c := pod.Run(testimage.Capable, kit.Sleep())
	// Copied up, the file keeps them; a copy has none.
	c.Exec("sh", "-c", `set -e
		mkdir /capable/plain /capable/moved; touch /capable/cat; cp /capable/cat /capable/plain/cat; mv /capable/cat /capable/moved/cat
		for f in "moved `+netRaw+`" "plain 0000000000000000"; do
			got=$(su -s /bin/sh operator -c "/capable/${f% *}/cat /proc/self/status" | grep CapEff)
			test "$got" = "$(printf 'CapEff:\t%s' ${f#* })" || { echo "${f% *}: $got" >&2; exit 1; }
		done`)
	layered := pod.Run(testimage.Layers, kit.Sleep())
	layered.Exec("sh", "-c", `set -e
		test ! -e /tree/removed; test ! -e /tree/gone; test "$(ls /tree/opaque)" = above; test "$(stat -c %u:%g:%a /tree/changed)" = 1:2:600
		echo more >> /tree/changed; test "$(stat -c %u:%g:%a /tree/changed)" = 1:2:600; rm /tree/kept; test ! -e /tree/kept
		rm -r /tree/opaque; mkdir /tree/opaque; test -z "$(ls /tree/opaque)"; mv /tree/changed /tree/renamed; chown 5:6 /tree/renamed
		test "$(stat -c %u:%g /tree/renamed)" = 5:6; mknod /tree/pipe p`)
}

// TestUserNamespaceTarget: an ephemeral container sees the processes of the one that it debugs, and no more of proc than that one.
func TestUserNamespaceTarget(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n, mapped(1200000))
	c := pod.Run(testimage.Busybox, kit.Sleep(), security(defaultMasks))
	debug := pod.Run(testimage.Busybox, kit.Sleep(), security(defaultMasks), security(func(s *cri.LinuxContainerSecurityContext) {
		s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = cri.NamespaceMode_TARGET, c.ID
		s.Capabilities = &cri.Capability{AddCapabilities: []string{"ALL"}}
	}))
	if got, want := debug.Exec("readlink", "/proc/self/ns/pid"), c.Exec("readlink", "/proc/1/ns/pid"); got != want {
		t.Errorf("pid namespaces %q; want %q", got, want)
	}
	if got := debug.Exec("sh", "-c", "cat /proc/1/root/etc/hostname; test -c /proc/keys"); got != pod.Config.Hostname+"\n" {
		t.Errorf("the target's root shows %q", got)
	}
	for line := range strings.Lines(debug.Exec("probe", "undo")) {
		if !strings.HasSuffix(line, " /dev/pts\n") {
			t.Errorf("works: %s", line)
		}
	}
}

// TestUserNamespacePropagation: what the host mounts later appears in a volume that asks for it, with flags that stay.
func TestUserNamespacePropagation(t *testing.T) {
	n := node(t)
	dir := t.TempDir()
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "later"), 0o755); err != nil {
		t.Fatal(err)
	}
	pod := kit.RunPod(t, n, mapped(1300000))
	c := pod.Run(testimage.Busybox, kit.Sleep(),
		mount(&cri.Mount{HostPath: dir, ContainerPath: "/v", Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}),
		security(func(s *cri.LinuxContainerSecurityContext) {
			s.Capabilities = &cri.Capability{AddCapabilities: []string{"ALL"}}
		}))
	if err := unix.Mount("none", filepath.Join(dir, "later"), "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	c.Exec("sh", "-c", "grep -q ' /v/later tmpfs ro,' /proc/mounts && ! mount -o remount,bind,rw /v/later")
	if err := unix.Unmount(filepath.Join(dir, "later"), 0); err != nil {
		t.Fatal(err)
	}
	c.Exec("sh", "-c", "! grep -q ' /v/later ' /proc/mounts")
}
