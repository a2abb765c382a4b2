// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"errors"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
)

func TestIsShared(t *testing.T) {
	const info = `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
37 35 98:0 / /s rw shared:7 - tmpfs none rw
38 35 98:0 / /both rw shared:9 master:2 - tmpfs none rw
`
	for id, want := range map[uint64]bool{36: false, 37: true, 38: true, 39: false} {
		if got, err := isShared(strings.NewReader(info), id); got != want || err != nil {
			t.Errorf("%d: %v %v", id, got, err)
		}
	}
}

func TestCheckMounts(t *testing.T) {
	ok := &cri.Mount{ContainerPath: "/data", HostPath: "/srv"}
	if err := CheckMounts([]*cri.Mount{ok, {ContainerPath: "/data/sub", HostPath: "/x", Readonly: true, RecursiveReadOnly: true}}); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]*cri.Mount{
		"root":         {ContainerPath: "/", HostPath: "/x"},
		"empty":        {HostPath: "/x"},
		"relative":     {ContainerPath: "/y", HostPath: "x"},
		"proc":         {ContainerPath: "/proc/sys", HostPath: "/x"},
		"twice":        {ContainerPath: "/data/", HostPath: "/x"},
		"rro alone":    {ContainerPath: "/y", HostPath: "/x", RecursiveReadOnly: true},
		"rro and slve": {ContainerPath: "/y", HostPath: "/x", Readonly: true, RecursiveReadOnly: true, Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
	} {
		if err := CheckMounts([]*cri.Mount{ok, bad}); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "mounts[1]") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
