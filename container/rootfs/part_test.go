// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/fsx"
)

// TestPartOfADetachedMount tries the way that kernels before 6.15 take, beside the one that this kernel takes.
func TestPartOfADetachedMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it mounts: root is missing")
	}
	mt := &cri.Mount{Image: &cri.ImageSpec{Image: "test"}, ImageSubPath: "a/link"}
	for name, open := range map[string]func(*os.File, *cri.Mount) (*os.File, error){"in a thread": partInThread, "as the kernel allows": Part} {
		root, err := detachedTmpfs()
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		dir, err := fsx.MkdirAllInRoot(root, "a/b", 0o755, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if err := unix.Symlinkat("/a/b", int(root.Fd()), "a/link"); err != nil {
			t.Fatal(err)
		}
		if err := fsx.TouchInRoot(root, "a/b/file", 0o600, 0, 0); err != nil {
			t.Fatal(err)
		}
		sub, err := open(root, mt)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		defer sub.Close()
		var st unix.Stat_t
		if err := unix.Fstatat(int(sub.Fd()), "file", &st, 0); err != nil {
			t.Errorf("%s: the part has no file: %v", name, err)
		}
		if err := SetAttr(sub, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, 0); err != nil {
			t.Errorf("%s: the part is no mount of its own: %v", name, err)
		}
	}
}

func TestMountOptionsLastCounts(t *testing.T) {
	for _, c := range []struct {
		options []string
		want    unix.MountAttr
	}{
		{nil, unix.MountAttr{}},
		{[]string{"noexec", "nodev"}, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NODEV}},
		{[]string{"noexec", "exec"}, unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NOEXEC}},
		{[]string{"exec", "noexec"}, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOEXEC}},
		{[]string{"noatime", "relatime"}, unix.MountAttr{Attr_clr: unix.MOUNT_ATTR__ATIME}},
		{[]string{"noatime"}, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOATIME, Attr_clr: unix.MOUNT_ATTR__ATIME}},
	} {
		if got, err := attributes(c.options); err != nil || got != c.want {
			t.Errorf("%v: %+v, %v; want %+v", c.options, got, err, c.want)
		}
	}
	if _, err := attributes([]string{"ridmap"}); err == nil {
		t.Error("an unknown option is accepted")
	}
}
