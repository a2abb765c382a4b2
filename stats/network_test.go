// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// namespaces starts processes in network namespaces of their own and gives the paths of those.
func namespaces(t *testing.T, n int) []string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("making network namespaces needs root")
	}
	var paths []string
	for range n {
		cmd := exec.Command("sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		paths = append(paths, fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	}
	return paths
}

// handle speaks to a namespace.
func handle(t *testing.T, path string) *netlink.Handle {
	t.Helper()
	ns, err := netns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func TestLinksOfAnotherNamespace(t *testing.T) {
	paths := namespaces(t, 2)
	pod, node := handle(t, paths[0]), handle(t, paths[1])
	peer, err := netns.GetFromPath(paths[1])
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "host0", PeerNamespace: netlink.NsFd(int(peer))}
	if err := errors.Join(pod.LinkAdd(veth), pod.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "net1"}})); err != nil {
		t.Fatal(err)
	}
	host, err := node.LinkByName("host0")
	if err != nil {
		t.Fatal(err)
	}
	// Neighbour discovery sends some packets as soon as both ends are up.
	if err := errors.Join(node.LinkSetUp(host), pod.LinkSetUp(veth)); err != nil {
		t.Fatal(err)
	}
	var n network
	defer n.Close()
	var links []Link
	until(t, "packets both ways", func() bool {
		if links, err = n.links(paths[0]); err != nil {
			t.Fatal(err)
		}
		return len(links) == 2 && links[0].RxBytes+links[1].RxBytes > 0 && links[0].TxBytes+links[1].TxBytes > 0
	})
	for _, l := range links {
		if l.Name == "eth0" {
			ours, err := pod.LinkByName("eth0")
			if err != nil {
				t.Fatal(err)
			}
			if s := ours.Attrs().Statistics; l.RxPackets == 0 || l.RxPackets > s.RxPackets || l.TxBytes > s.TxBytes || l.RxErrors != s.RxErrors || l.TxDropped != s.TxDropped {
				t.Errorf("%+v, but netlink says %+v", l, s)
			}
		} else if l.Name != "net1" {
			t.Errorf("interface %q", l.Name)
		}
	}
	m := New(Options{})
	defer m.Close()
	u, err := m.usage(paths[0], 7)
	if err != nil || u.GetDefaultInterface().GetName() != "eth0" || len(u.GetInterfaces()) != 1 || u.GetInterfaces()[0].GetName() != "net1" || u.GetTimestamp() != 7 {
		t.Errorf("usage: %v, %v", u, err)
	}
	if u, err := m.usage("", 7); u != nil || err != nil {
		t.Errorf("host network: %v, %v", u, err)
	}
}

// addEth0 gives a namespace an interface.
func addEth0(t *testing.T, path string) {
	t.Helper()
	if err := handle(t, path).LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}}); err != nil {
		t.Fatal(err)
	}
}

func TestLinksOfNothing(t *testing.T) {
	var n network
	defer n.Close()
	for _, path := range []string{"/proc/self/ns/absent", t.TempDir()} {
		if l, err := n.links(path); !errors.Is(err, errs.NotFound) {
			t.Errorf("%s: %v, %v", path, l, err)
		}
	}
}

func BenchmarkLinks(b *testing.B) {
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	var n network
	defer n.Close()
	for b.Loop() {
		if _, err := n.links(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)); err != nil {
			b.Fatal(err)
		}
	}
}
