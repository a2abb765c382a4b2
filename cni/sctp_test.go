// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/cni/builtin/testpod"
)

// Chunks that begin an association (RFC 9260, 3.3.2 and 3.3.3).
const (
	sctpInit    = 1
	sctpInitAck = 2
)

// sctpPacket is a packet with one INIT or INIT ACK, checksum included, that conntrack takes for valid.
func sctpPacket(from, to uint16, chunk byte, tag uint32) []byte {
	be := binary.BigEndian
	b := be.AppendUint16(be.AppendUint16(nil, from), to)
	b = append(be.AppendUint32(b, tag), 0, 0, 0, 0)
	b = append(b, chunk, 0, 0, 20)
	b = be.AppendUint32(be.AppendUint32(b, 77), 65536) // own tag, window
	b = be.AppendUint32(be.AppendUint16(be.AppendUint16(b, 1), 1), 1)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// describe is a packet as "SRC PORT > PORT CHUNK".
func describe(src netip.Addr, b []byte) (string, error) {
	if len(b) < 16 {
		return "", fmt.Errorf("%d bytes", len(b))
	}
	sum := binary.LittleEndian.Uint32(b[8:])
	clear(b[8:12])
	if want := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)); sum != want {
		return "", fmt.Errorf("checksum %08x, want %08x", sum, want)
	}
	return fmt.Sprintf("%s %d > %d %d", src, binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), b[12]), nil
}

// sctpSocket is a raw socket in a pod's network: this kernel need not know the protocol.
func sctpSocket(t *testing.T, p *testpod.Pod, family string) *net.IPConn {
	t.Helper()
	var c *net.IPConn
	p.Do(t, func() (err error) {
		c, err = net.ListenIP(family+":132", nil)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// receive waits for a packet to port and describes it.
func receive(c *net.IPConn, port uint16) (string, *net.IPAddr, error) {
	b := make([]byte, 2048)
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", nil, err
	}
	for {
		n, from, err := c.ReadFromIP(b)
		if err != nil {
			return "", nil, err
		}
		if n >= 4 && binary.BigEndian.Uint16(b[2:]) == port {
			src, _ := netip.AddrFromSlice(from.IP)
			text, err := describe(src.Unmap(), b[:n])
			return text, from, err
		}
	}
}

// A host port of SCTP leads to the pod, and what it answers comes from the host port. The kernel's own sockets have no part in it.
func TestSCTPHostPort(t *testing.T) {
	n := open(t, nil)
	dual(t, n)
	w := world(t, 1)
	a := testpod.New(t, 1)
	pod := podOf(a)
	pod.PortMappings = []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "SCTP"}}
	attach(t, n, pod)
	for _, c := range []struct{ family, node, world string }{{"ip4", "192.0.2.1", "192.0.2.2"}, {"ip6", "2001:db8::1", "2001:db8::2"}} {
		client, server := sctpSocket(t, w, c.family), sctpSocket(t, a, c.family)
		if _, err := client.WriteToIP(sctpPacket(5000, 8080, sctpInit, 0), &net.IPAddr{IP: net.ParseIP(c.node)}); err != nil {
			t.Fatal(err)
		}
		got, from, err := receive(server, 80)
		if want := c.world + " 5000 > 80 1"; got != want || err != nil {
			t.Fatalf("%s: the pod got %q, %v; want %q", c.family, got, err, want)
		}
		if _, err := server.WriteToIP(sctpPacket(80, 5000, sctpInitAck, 77), from); err != nil {
			t.Fatal(err)
		}
		got, _, err = receive(client, 5000)
		if want := c.node + " 8080 > 5000 2"; got != want || err != nil {
			t.Errorf("%s: the world got %q, %v; want %q", c.family, got, err, want)
		}
	}
	// The same number of another protocol is not the pod's.
	if _, err := ask(t, w, "192.0.2.1:8080"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("TCP to the port: %v", err)
	}
}
