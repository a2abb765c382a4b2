// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"crishim.dev/cni/builtin/testpod"
)

// sniff collects the first packet of each TCP connection that an interface of the pod (or host beyond the uplink) sees, as "SRC > DST:PORT".
// The function that it gives ends that and gives them, sorted.
func sniff(t *testing.T, p *testpod.Pod, ifname string) func() []string {
	t.Helper()
	fd := -1
	p.Do(t, func() error {
		l, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all)); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Index})
	})
	return func() []string {
		defer unix.Close(fd)
		var out []string
		b := make([]byte, 2048)
		for {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err != nil {
				slices.Sort(out)
				return slices.Compact(out)
			}
			if text := connection(b[:n]); text != "" {
				out = append(out, text)
			}
		}
	}
}

// connection reads a packet that opens a TCP connection; "" for any other.
func connection(b []byte) string {
	var src, dst netip.Addr
	var tcp []byte
	switch {
	case len(b) > 40 && b[0]>>4 == 4 && b[9] == unix.IPPROTO_TCP:
		src, dst, tcp = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[int(b[0]&15)*4:]
	case len(b) > 60 && b[0]>>4 == 6 && b[6] == unix.IPPROTO_TCP:
		src, dst, tcp = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), b[40:]
	}
	const syn, ack = 2, 16
	if len(tcp) < 20 || tcp[13]&(syn|ack) != syn {
		return ""
	}
	return fmt.Sprintf("%s > %s", src, netip.AddrPortFrom(dst, binary.BigEndian.Uint16(tcp[2:])))
}

// What is on the wires: outside, never a pod's address; inside, the pod's own port and the address of who asked.
func TestPacketsAreRewritten(t *testing.T) {
	n := open(t, nil)
	dual(t, n)
	w := world(t, 1)
	serve(t, w, "[::]:80")
	a := testpod.New(t, 1)
	pod := podOf(a)
	pod.PortMappings = []PortMapping{{HostPort: 8080, ContainerPort: 80}}
	attach(t, n, pod)
	serve(t, a, "[::]:80")
	outside, inside := sniff(t, w, "eth0"), sniff(t, a, ifName)
	for _, c := range []struct {
		from *testpod.Pod
		to   string
	}{{a, "192.0.2.2:80"}, {a, "[2001:db8::2]:80"}, {w, "192.0.2.1:8080"}, {w, "[2001:db8::1]:8080"}} {
		if _, err := ask(t, c.from, c.to); err != nil {
			t.Errorf("%s: %v", c.to, err)
		}
	}
	want := []string{"192.0.2.1 > 192.0.2.2:80", "192.0.2.2 > 192.0.2.1:8080", "2001:db8::1 > [2001:db8::2]:80", "2001:db8::2 > [2001:db8::1]:8080"}
	if got := outside(); !slices.Equal(got, want) {
		t.Errorf("outside %q; want %q", got, want)
	}
	want = []string{"10.88.0.2 > 192.0.2.2:80", "192.0.2.2 > 10.88.0.2:80", "2001:db8::2 > [fd00:88::2]:80", "fd00:88::2 > [2001:db8::2]:80"}
	if got := inside(); !slices.Equal(got, want) {
		t.Errorf("inside %q; want %q", got, want)
	}
}
