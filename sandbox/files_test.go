// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
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
	a, b := &cri.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 10, CpuQuota: 5}, &cri.LinuxContainerResources{CpuShares: 200, CpuQuota: -1, MemoryLimitInBytes: 20}
	got := sum(a, b)
	if got.CpuShares != 300 || got.CpuQuota != -1 || got.MemoryLimitInBytes != 30 || b.CpuShares != 200 {
		t.Errorf("%v (resources now %v)", got, b)
	}
	if sum(nil, b) != b || sum(a, nil) != a || sum(nil, nil) != nil {
		t.Error("one of them alone")
	}
}
