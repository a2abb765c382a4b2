// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRelease(t *testing.T) {
	for release, want := range map[string][2]int{"6.18.44-fc-v669": {6, 18}, "6.1.0-9-amd64": {6, 1}, "5.15": {5, 15}, "7.0-rc1": {7, 0}} {
		major, minor, err := ParseRelease(release)
		if err != nil || major != want[0] || minor != want[1] {
			t.Errorf("%s: %d.%d, %v", release, major, minor, err)
		}
	}
	if _, _, err := ParseRelease("mainline"); err == nil {
		t.Error("mainline: no error")
	}
}

func TestParseCaps(t *testing.T) {
	set, err := ParseCaps(strings.NewReader("Name:\tx\nCapInh:\t00000000000000ff\nCapPrm:\t000001fffeffffff\nCapEff:\t0000000000000000\nCapBnd:\t000001ffffffff0f\n"))
	if err != nil || set != 0x1fffeffff0f {
		t.Errorf("%x, %v", set, err)
	}
	for _, bad := range []string{"", "CapPrm:\t1\n", "CapPrm:\tx\nCapBnd:\t1\n"} {
		if _, err := ParseCaps(strings.NewReader(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestParseHierarchies(t *testing.T) {
	const info = `22 27 0:21 / /proc rw,relatime - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset,clone_children
34 31 0:31 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd,release_agent=/x/y
35 31 0:29 / /elsewhere rw,relatime - cgroup cgroup rw,cpu,cpuacct
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
`
	got, err := ParseHierarchies(strings.NewReader(info))
	if err != nil {
		t.Fatal(err)
	}
	want := []Hierarchy{{Dir: "cpu,cpuacct", Controllers: []string{"cpu", "cpuacct"}}, {Dir: "cpuset", Controllers: []string{"cpuset"}}, {Dir: "systemd", Name: "systemd"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestProbe(t *testing.T) {
	f, err := Probe()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", f)
	if f.LastCap < 40 || f.Caps>>(f.LastCap+1) != 0 {
		t.Errorf("capabilities %x, last %d", f.Caps, f.LastCap)
	}
	if os.Getuid() != 0 {
		t.Skip("features need root")
	}
	if got := f.Features.MemfdExec; got != f.AtLeast(6, 3) {
		t.Errorf("MFD_EXEC %v on %s", got, f.Release)
	}
	if got := f.Features.LowerdirPlus; got != f.AtLeast(6, 7) {
		t.Errorf("lowerdir+ %v on %s", got, f.Release)
	}
	if got := f.Features.ProcPIDNS; got != f.AtLeast(6, 17) {
		t.Errorf("pidns of proc %v on %s", got, f.Release)
	}
	if !f.Features.MountSetattr || !f.Features.CloneIntoCgroup || !f.Features.Seccomp {
		t.Errorf("features %+v on %s", f.Features, f.Release)
	}
}
