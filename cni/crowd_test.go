// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"crishim.dev/cni/builtin/testpod"
)

// TestCrowd attaches and detaches 1,000 pods, 50 at a time, each with two host ports. No two hold one address at one time, and
// nothing is left.
func TestCrowd(t *testing.T) {
	n := open(t, nil)
	warm := podOf(testpod.New(t, 999999))
	warm.PortMappings = []PortMapping{{HostPort: 9, ContainerPort: 9}}
	attach(t, n, warm)
	detach(t, n, warm)
	before := testpod.Census(t)

	pods, workers := 1000, 50
	if testing.Short() {
		pods = 200
	}
	var mu sync.Mutex
	inUse := map[netip.Addr]string{}
	next := make(chan int)
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for i := range next {
				if err := one(t, n, i, &mu, inUse); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range pods {
		next <- i
	}
	close(next)
	all.Wait()
	if err := n.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	leases, err := n.host.Leases(builtinName)
	if err != nil || len(leases) > 0 {
		t.Errorf("leases left: %v, %v", leases, err)
	}
	if ports := portsOf(t, n); len(ports) > 0 {
		t.Errorf("ports left: %v", ports)
	}
	if records, _ := os.ReadDir(n.opts.CacheDir); len(records) > 0 {
		t.Errorf("%d attachments left", len(records))
	}
	if claims, _ := os.ReadDir(filepath.Join(n.opts.StateDir, "nat")); len(claims) != 3 { // local, masq, localnet
		t.Errorf("claims left: %v", claims)
	}
	same(t, before)
}

func one(t *testing.T, n *Network, i int, mu *sync.Mutex, inUse map[netip.Addr]string) error {
	p := testpod.New(t, i)
	defer p.Kill()
	pod := podOf(p)
	pod.PortMappings = []PortMapping{{HostPort: int32(20000 + 2*i), ContainerPort: 80}, {HostPort: int32(20001 + 2*i), ContainerPort: 443, Protocol: "UDP"}}
	r, err := n.Attach(context.Background(), pod)
	if err != nil {
		return err
	}
	mu.Lock()
	if other, taken := inUse[r.IPs[0]]; taken {
		err = errors.New(pod.ID + " and " + other + " have " + r.IPs[0].String())
	}
	inUse[r.IPs[0]] = pod.ID
	mu.Unlock()
	if err != nil {
		return err
	}
	mu.Lock()
	delete(inUse, r.IPs[0]) // before Detach: from then on it may be given away
	mu.Unlock()
	return n.Detach(context.Background(), pod)
}
