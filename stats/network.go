// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
)

// Link is what one network interface has counted.
type Link struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// defaultInterface is what CNI calls a pod's first interface.
const defaultInterface = "eth0"

// usage gives a pod's network statistics; nil without a namespace of its own, or with nothing but a loopback in it.
func (m *Meter) usage(netns string, at int64) (*cri.NetworkUsage, error) {
	if netns == "" {
		return nil, nil
	}
	links, err := m.network.links(netns)
	if err != nil {
		return nil, err
	}
	// The kubelet reads the default interface without a look whether there is one.
	if len(links) == 0 {
		return nil, nil
	}
	first := max(0, slices.IndexFunc(links, func(l Link) bool { return l.Name == defaultInterface }))
	u := &cri.NetworkUsage{Timestamp: at}
	for n, l := range links {
		i := &cri.NetworkInterfaceUsage{
			Name: l.Name, RxBytes: number(l.RxBytes), RxErrors: number(l.RxErrors), TxBytes: number(l.TxBytes), TxErrors: number(l.TxErrors),
		}
		if n == first {
			u.DefaultInterface = i
		} else {
			u.Interfaces = append(u.Interfaces, i)
		}
	}
	return u, nil
}

// network reads interface counters of other namespaces through one netlink socket in our own: a dump of links may name the
// namespace it is about by an id that the kernel gives it (IFLA_TARGET_NETNSID, Linux 4.15). So no thread enters a pod's namespace
// and no socket per pod is held. The zero value is ready.
type network struct {
	// mu guards what follows; one dump runs at a time.
	mu   sync.Mutex
	sock int // 0: not open
	seq  uint32
	buf  []byte
}

func (n *network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sock == 0 {
		return nil
	}
	err := unix.Close(n.sock)
	n.sock = 0
	return os.NewSyscallError("close", err)
}

// links lists the interfaces of the namespace pinned at path, without the loopback; errs.NotFound if nothing is pinned there.
func (n *network) links(path string) ([]Link, error) {
	ns, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.Newf(errs.NotFound, "find network namespace %s: %w", path, err)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(ns)
	n.mu.Lock()
	defer n.mu.Unlock()
	id, err := n.idOf(ns)
	if errors.Is(err, unix.EINVAL) {
		return nil, errs.Newf(errs.NotFound, "find network namespace %s: nothing is pinned there: %w", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("identify network namespace %s: %w", path, err)
	}
	links, err := n.dump(id)
	if err != nil {
		return nil, fmt.Errorf("list interfaces of %s: %w", path, err)
	}
	return links, nil
}

// NETNSA_* of linux/net_namespace.h and IFLA_TARGET_NETNSID of linux/if_link.h.
const (
	netnsaNSID  = 1
	netnsaFD    = 3
	targetNetNS = 46
)

// idOf asks for the id that our namespace has for another one, and has one given if there is none. It ends with that namespace.
func (n *network) idOf(ns int) (uint32, error) {
	const none = ^uint32(0)
	for range 2 {
		id := none
		err := n.ask(unix.RTM_GETNSID, unix.NLM_F_REQUEST, append(make([]byte, 4), attr32(netnsaFD, uint32(ns))...), func(data []byte) {
			if len(data) >= 4 {
				eachAttr(data[4:], func(kind uint16, v []byte) {
					if kind == netnsaNSID && len(v) == 4 {
						id = binary.NativeEndian.Uint32(v)
					}
				})
			}
		})
		if err != nil || id != none {
			return id, err
		}
		body := append(make([]byte, 4), attr32(netnsaNSID, none)...)
		err = n.ask(unix.RTM_NEWNSID, unix.NLM_F_REQUEST|unix.NLM_F_ACK, append(body, attr32(netnsaFD, uint32(ns))...), nil)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return none, err
		}
	}
	return none, errors.New("the kernel gave it no id")
}

func (n *network) dump(id uint32) ([]Link, error) {
	var links []Link
	body := append(make([]byte, unix.SizeofIfInfomsg), attr32(targetNetNS, id)...)
	err := n.ask(unix.RTM_GETLINK, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, body, func(data []byte) {
		if len(data) >= unix.SizeofIfInfomsg && binary.NativeEndian.Uint32(data[8:])&unix.IFF_LOOPBACK == 0 {
			links = append(links, parseLink(data[unix.SizeofIfInfomsg:]))
		}
	})
	return links, err
}

// parseLink reads the name and struct rtnl_link_stats64.
func parseLink(b []byte) Link {
	var l Link
	eachAttr(b, func(kind uint16, v []byte) {
		switch {
		case kind == unix.IFLA_IFNAME && len(v) > 0:
			l.Name = string(v[:len(v)-1])
		case kind == unix.IFLA_STATS64 && len(v) >= 64:
			for i, p := range []*uint64{&l.RxPackets, &l.TxPackets, &l.RxBytes, &l.TxBytes, &l.RxErrors, &l.TxErrors, &l.RxDropped, &l.TxDropped} {
				*p = binary.NativeEndian.Uint64(v[8*i:])
			}
		}
	})
	return l
}

// ask sends a request and gives the payload of each answer to f, until the end of the dump, the acknowledgement, or the one
// answer of a request that is neither.
func (n *network) ask(kind uint16, flags uint16, body []byte, f func(data []byte)) error {
	if n.sock == 0 {
		sock, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		n.sock, n.buf = sock, make([]byte, 32<<10)
	}
	n.seq++
	req := binary.NativeEndian.AppendUint32(make([]byte, 0, 64), uint32(unix.NLMSG_HDRLEN+len(body)))
	req = binary.NativeEndian.AppendUint16(req, kind)
	req = binary.NativeEndian.AppendUint16(req, flags)
	req = binary.NativeEndian.AppendUint32(req, n.seq)
	req = append(binary.NativeEndian.AppendUint32(req, 0), body...)
	if err := unix.Sendto(n.sock, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	for {
		size, _, err := unix.Recvfrom(n.sock, n.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		if done, err := n.answers(n.buf[:size], flags, f); done || err != nil {
			return err
		}
	}
}

// answers takes one packet of answers apart.
func (n *network) answers(b []byte, flags uint16, f func(data []byte)) (done bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return true, fmt.Errorf("parse netlink message: length %d of %d", size, len(b))
		}
		kind, seq, data := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[unix.NLMSG_HDRLEN:size]
		b = b[min(len(b), (size+3)&^3):]
		switch {
		case seq != n.seq: // what is left of a request that failed
		case kind == unix.NLMSG_DONE:
			return true, nil
		case kind == unix.NLMSG_ERROR && len(data) >= 4:
			if errno := -int32(binary.NativeEndian.Uint32(data)); errno != 0 {
				return true, unix.Errno(errno)
			}
			return true, nil
		default:
			if f != nil {
				f(data)
			}
			if flags&(unix.NLM_F_DUMP|unix.NLM_F_ACK) == 0 {
				return true, nil
			}
		}
	}
	return false, nil
}

func attr32(kind uint16, v uint32) []byte {
	b := binary.NativeEndian.AppendUint16(make([]byte, 0, 8), 8)
	return binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint16(b, kind), v)
}

func eachAttr(b []byte, f func(kind uint16, data []byte)) {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&0x3fff, b[4:size])
		b = b[min(len(b), (size+3)&^3):]
	}
}
