// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"crishim.dev/internal/errs"
)

func manager(t *testing.T, o Options) *Manager {
	t.Helper()
	m, err := newManager(o, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNames(t *testing.T) {
	fs, sd := manager(t, Options{Driver: Cgroupfs}), manager(t, Options{Driver: Systemd})
	for _, c := range []struct {
		m                *Manager
		parent, pod, oci string
	}{
		{fs, "/kubepods/burstable/podu1", "/kubepods/burstable/podu1", "/kubepods/burstable/podu1/c"},
		{fs, "kubepods/podu1/", "/kubepods/podu1", "/kubepods/podu1/c"},
		{fs, "", "/shim/s1", "/shim/s1/c"},
		{sd, "kubepods-burstable-podu1.slice", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podu1.slice", "kubepods-burstable-podu1.slice:shim:c"},
		{sd, "/kubepods.slice/kubepods-podu1.slice", "/kubepods.slice/kubepods-podu1.slice", "kubepods-podu1.slice:shim:c"},
		{sd, "", "/shim.slice/shim-s1.slice", "shim-s1.slice:shim:c"},
	} {
		pod, err := c.m.Pod(c.parent, "s1")
		if err != nil || pod != c.pod {
			t.Errorf("%s: Pod(%q) = %q, %v; want %q", c.m.Driver(), c.parent, pod, err, c.pod)
		}
		if oci := c.m.OCIPath(pod, "c"); oci != c.oci {
			t.Errorf("%s: OCIPath(%q) = %q, want %q", c.m.Driver(), pod, oci, c.oci)
		}
	}
	if got := sd.Container("/a.slice", "c"); got != "/a.slice/shim-c.scope" {
		t.Errorf("scope: %q", got)
	}
	for _, bad := range []string{"/", "..", "/a/../b", "../../x", "/a\nb", "/a/cgroup.procs", "x.slice", "/" + strings.Repeat("x", 300), "/a\x00b"} {
		if p, err := fs.Pod(bad, "s1"); !errors.Is(err, errs.Invalid) {
			t.Errorf("Pod(%q) = %q, %v", bad, p, err)
		}
	}
	for _, bad := range []string{"kubepods", "-.slice", ".slice", "a--b.slice", "-a.slice", "a-.slice"} {
		if p, err := sd.Pod(bad, "s1"); !errors.Is(err, errs.Invalid) {
			t.Errorf("systemd Pod(%q) = %q, %v", bad, p, err)
		}
	}
	if _, err := newManager(Options{Driver: "cgroups"}, 1, nil); !errors.Is(err, errs.Invalid) {
		t.Errorf("unknown driver: %v", err)
	}
	if _, err := newManager(Options{Driver: Cgroupfs, Parent: "../x"}, 1, nil); !errors.Is(err, errs.Invalid) {
		t.Errorf("bad default parent: %v", err)
	}
	if _, err := fs.Create(t.Context(), "/", nil); !errors.Is(err, errs.Invalid) {
		t.Errorf("Create of the root: %v", err)
	}
	if g, err := sd.Create(t.Context(), "/a.slice/shim-c.scope", nil); !errors.Is(err, errs.Unsupported) {
		t.Errorf("Create without systemd: %v, %v", g, err)
	}
}

func TestFindMounts(t *testing.T) {
	const mountinfo = `22 1 0:20 / / rw - ext4 /dev/vda rw
30 22 0:26 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw shared:10 - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset,clone_children
35 30 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
36 22 0:31 / /mnt/memory rw - cgroup cgroup rw,memory
37 30 0:32 / /sys/fs/cgroup/openrc rw - cgroup openrc rw,release_agent=/x,name=openrc
`
	got, err := findMounts(strings.NewReader(mountinfo), "/sys/fs/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	want := []mount{
		{dir: "/sys/fs/cgroup/unified", dev: "0:27", v2: true},
		{dir: "/sys/fs/cgroup/systemd", dev: "0:28"},
		{dir: "/sys/fs/cgroup/cpu,cpuacct", dev: "0:29", controllers: []string{"cpu", "cpuacct"}},
		{dir: "/sys/fs/cgroup/cpuset", dev: "0:30", controllers: []string{"cpuset"}},
		{dir: "/sys/fs/cgroup/openrc", dev: "0:32"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestParsePressure(t *testing.T) {
	p := parsePressure([]byte("some avg10=1.50 avg60=0.25 avg300=0.00 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"))
	if p == nil || *p.Some != (Stall{Avg10: 1.5, Avg60: 0.25, Total: 123000}) || p.Full.Total != 7000 {
		t.Errorf("got %+v", p)
	}
	if p := parsePressure(nil); p != nil {
		t.Errorf("nothing parsed as %+v", p)
	}
	if p := parsePressure([]byte("some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n")); p.Full != nil {
		t.Errorf("a full line from nowhere: %+v", p.Full)
	}
}

func TestParseIO(t *testing.T) {
	var v1 ioTable
	v1.add([]byte("8:0 Read 10\n8:0 Write 20\n8:0 Sync 1\n259:3 Read 5\nTotal 31\n"), func(io *IO) (*uint64, *uint64) { return &io.ReadBytes, &io.WriteBytes })
	v1.add([]byte("8:0 Read 1\n8:0 Write 2\n"), func(io *IO) (*uint64, *uint64) { return &io.ReadCount, &io.WriteCount })
	want := []IO{{Major: 8, ReadBytes: 10, WriteBytes: 20, ReadCount: 1, WriteCount: 2}, {Major: 259, Minor: 3, ReadBytes: 5}}
	if !reflect.DeepEqual(v1.list, want) {
		t.Errorf("version 1: %+v", v1.list)
	}
	if got := parseIOStat([]byte("8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n259:3 rbytes=5\n7:0 \n")); !reflect.DeepEqual(got, want) {
		t.Errorf("version 2: %+v", got)
	}
	for dir, want := range map[string]string{"hugepages-64kB": "64KB", "hugepages-2048kB": "2MB", "hugepages-1048576kB": "1GB"} {
		if got := pageSize(dir); got != want {
			t.Errorf("pageSize(%s) = %s", dir, got)
		}
	}
}
