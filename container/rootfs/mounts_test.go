// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"errors"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
)

func TestPeers(t *testing.T) {
	const info = `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
37 35 98:0 / /s rw shared:7 - tmpfs none rw
38 35 98:0 / /both rw shared:9 master:2 - tmpfs none rw
`
	for id, want := range map[uint64][2]bool{36: {false, true}, 37: {true, false}, 38: {true, true}, 39: {false, false}} {
		if shared, slave, err := peers(strings.NewReader(info), id); shared != want[0] || slave != want[1] || err != nil {
			t.Errorf("%d: shared %v, slave %v, %v", id, shared, slave, err)
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
