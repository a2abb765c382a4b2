// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"crishim.dev/cni/builtin/nat"
)

// TestDeletedTableComesBack: whatever we did last to the table, that somebody deletes it then is seen by the next pod, host ports or not.
func TestDeletedTableComesBack(t *testing.T) {
	n := open(t, nil)
	table := n.host.Ports()
	other, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	subnets := []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16")}
	ports := []nat.Port{{Proto: unix.IPPROTO_TCP, HostPort: 8080, Addr: netip.MustParseAddr("10.88.0.2"), ContainerPort: 80}}
	publish := func() error { return table.Publish("pod", ports, func(string) bool { return true }) }
	for _, last := range []struct {
		name string
		do   func() error
	}{
		{"a port is published", publish},
		{"a port is published that is already", publish},
		{"a port is withdrawn", func() error { return table.Unpublish("pod", ports) }},
		{"a port is withdrawn that is already", func() error { return table.Unpublish("pod", ports) }},
	} {
		for range 2 { // the second time the table is known to be there
			if err := table.Masquerade(subnets, subnets); err != nil {
				t.Fatal(err)
			}
		}
		if err := last.do(); err != nil {
			t.Fatal(last.name, err)
		}
		other.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: nat.TableName})
		if err := other.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := table.Masquerade(subnets, subnets); err != nil {
			t.Fatal(err)
		}
		if _, err := other.ListTableOfFamily(nat.TableName, nftables.TableFamilyINet); err != nil {
			t.Errorf("table deleted after %s, and a pod later: %v", last.name, err)
		}
	}
}
