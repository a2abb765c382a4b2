// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"os"
	"strings"
	"testing"

	"crishim.dev/cni/builtin/testpod"
)

// A node on which IPv6 is switched off runs pods of IPv4, and says why it can't run others.
func TestNodeWithoutIPv6(t *testing.T) {
	testpod.Node(t)
	ipv6(t, "1")
	t.Cleanup(func() { ipv6(t, "0") })
	n := open(t, nil)
	p := testpod.New(t, 1)
	pod := podOf(p)
	pod.PortMappings = []PortMapping{{HostPort: 8080, ContainerPort: 80}}
	r := attach(t, n, pod)
	serve(t, p, "0.0.0.0:80")
	for _, to := range []string{addrPort(r.IPs[0], 80), "127.0.0.1:8080"} {
		if _, err := ask(t, nil, to); err != nil {
			t.Errorf("%s: %v", to, err)
		}
	}
	dual(t, n)
	_, err := n.Attach(t.Context(), podOf(testpod.New(t, 2)))
	if err == nil || !strings.Contains(err.Error(), "IPv6") {
		t.Errorf("dual-stack pod: %v", err)
	}
}

// ipv6 switches IPv6 off ("1") or on, for the node and what it makes.
func ipv6(t *testing.T, off string) {
	t.Helper()
	for _, c := range []string{"all", "default"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+c+"/disable_ipv6", []byte(off), 0); err != nil {
			t.Fatal(err)
		}
	}
}
