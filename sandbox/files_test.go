// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
)

func TestResolvConf(t *testing.T) {
	etc := t.TempDir()
	if b, err := resolvConf(nil, etc); err != nil || len(b) != 0 {
		t.Fatalf("a host without resolv.conf: %q %v", b, err)
	}
	if err := os.WriteFile(filepath.Join(etc, "resolv.conf"), []byte("nameserver 192.0.2.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dns  *cri.DNSConfig
		want string
	}{
		{nil, "nameserver 192.0.2.1\n"},
		{&cri.DNSConfig{}, "nameserver 192.0.2.1\n"},
		{
			&cri.DNSConfig{Servers: []string{"10.0.0.10", "fd00::10"}, Searches: []string{"a.local", "b.local"}, Options: []string{"ndots:5"}},
			"search a.local b.local\nnameserver 10.0.0.10\nnameserver fd00::10\noptions ndots:5\n",
		},
	} {
		if b, err := resolvConf(c.dns, etc); err != nil || string(b) != c.want {
			t.Errorf("%v: %q %v", c.dns, b, err)
		}
	}
	for _, bad := range []*cri.DNSConfig{{Servers: []string{"1.1.1.1\nnameserver 6.6.6.6"}}, {Searches: make([]string, maxDNSSearches+1)}} {
		if _, err := resolvConf(bad, etc); !errors.Is(err, errs.Invalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestHostsFile(t *testing.T) {
	got := string(hostsFile("web", []string{"10.1.2.3", "fd00::3"}))
	for _, want := range []string{"127.0.0.1\tlocalhost\n", "10.1.2.3\tweb\n", "fd00::3\tweb\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
}

func TestRecordRoundTrip(t *testing.T) {
	r := &record{Sandbox: Sandbox{
		ID: "abc", State: Ready, Config: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "n", Uid: "u"}, Labels: map[string]string{"k": "v"}},
		Handler: "h", CreatedAt: time.Now().Round(0), IPs: []string{"10.0.0.1"}, Cgroup: "/c", NetNS: "/n", InitPID: 7,
	}, network: true}
	b, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got.Config, r.Config) || !got.CreatedAt.Equal(r.CreatedAt) || got.State != Ready || got.IPs[0] != "10.0.0.1" || !got.network || got.InitPID != 7 {
		t.Fatalf("%+v", got)
	}
	if _, err := decodeRecord([]byte("{")); err == nil {
		t.Fatal("half a record was accepted")
	}
}

func TestNamespaceDefaults(t *testing.T) {
	// CRI: the zero value of every namespace mode is POD.
	if s := (Sandbox{Config: &cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{}}}); s.HostNetwork() || s.HostIPC() || !s.SharedPID() {
		t.Errorf("%v %v %v", s.HostNetwork(), s.HostIPC(), s.SharedPID())
	}
}

func TestSum(t *testing.T) {
	overhead := &cri.LinuxContainerResources{
		CpuShares: 100, CpuQuota: 5000, CpuPeriod: 50000, MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 11, CpusetCpus: "0",
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 1}, {PageSize: "1GB", Limit: 2}}, Unified: map[string]string{"memory.high": "7"},
	}
	resources := &cri.LinuxContainerResources{
		CpuShares: 200, CpuQuota: 20000, MemoryLimitInBytes: 20, MemorySwapLimitInBytes: 30, CpusetMems: "0",
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4}}, Unified: map[string]string{"pids.max": "9"},
	}
	before := proto.CloneOf(resources)
	want := &cri.LinuxContainerResources{
		CpuShares: 300, CpuQuota: 30000, MemoryLimitInBytes: 30, MemorySwapLimitInBytes: 41, CpusetCpus: "0", CpusetMems: "0",
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 5}, {PageSize: "1GB", Limit: 2}}, Unified: map[string]string{"memory.high": "7", "pids.max": "9"},
	}
	if got, err := sum(overhead, resources); err != nil || !proto.Equal(got, want) {
		t.Errorf("sum %v, %v; want %v", got, err, want)
	}
	if !proto.Equal(resources, before) {
		t.Errorf("resources are %v now", resources)
	}
	unlimited := &cri.LinuxContainerResources{CpuQuota: -1}
	if got, err := sum(overhead, unlimited); err != nil || got.CpuQuota != -1 || got.MemoryLimitInBytes != 0 {
		t.Errorf("containers without limits: %v, %v", got, err)
	}
	for _, alone := range [][2]*cri.LinuxContainerResources{{nil, resources}, {overhead, nil}, {nil, nil}} {
		if got, err := sum(alone[0], alone[1]); err != nil || got != cmp.Or(alone[0], alone[1]) {
			t.Errorf("one of them alone: %v, %v", got, err)
		}
	}
	for field, other := range map[string]*cri.LinuxContainerResources{
		"overhead.cpuset_cpus": {CpusetCpus: "1"}, `overhead.unified["memory.high"]`: {Unified: map[string]string{"memory.high": "8"}},
	} {
		if _, err := sum(overhead, other); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), field) {
			t.Errorf("contradiction: %v; want Invalid naming %s", err, field)
		}
	}
}
