// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crishim.dev/cni/builtin/testpod"
)

// A node here is a process of its own in a network namespace of its own: this test binary, running TestNodeProcess, told what to do by lines
// of JSON on descriptor 3 and answering on 4. The nodes' uplinks are on one switch, a bridge in the parent's namespace.

type order struct {
	Do    string
	Pod   int
	Ports []PortMapping
	Addr  string
	Size  int
}

type answerOf struct {
	Text string
	IPs  []netip.Addr
	Err  string
}

const nodeEnv = "CNI_TEST_NODE_DIR"

func TestNodeProcess(t *testing.T) {
	dir := os.Getenv(nodeEnv)
	if dir == "" {
		t.Skip("is run by the tests with several nodes")
	}
	in, out := bufio.NewScanner(os.NewFile(3, "orders")), json.NewEncoder(os.NewFile(4, "answers"))
	n := open(t, func(o *Options) { o.ConfDir = filepath.Join(dir, "net.d") })
	pods := map[int]*testpod.Pod{}
	for in.Scan() {
		var o order
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			t.Fatal(err)
		}
		a, err := obey(t, n, pods, o)
		if err != nil {
			a.Err = err.Error()
		}
		if err := out.Encode(a); err != nil {
			t.Fatal(err)
		}
	}
}

func obey(t *testing.T, n *Network, pods map[int]*testpod.Pod, o order) (a answerOf, err error) {
	p := pods[o.Pod]
	switch o.Do {
	case "address":
		return a, setAddresses("uplink0", strings.Fields(o.Addr)...)
	case "mtu":
		l, err := netlink.LinkByName("uplink0")
		if err == nil {
			err = netlink.LinkSetMTU(l, o.Size)
		}
		return a, err
	case "status":
		return a, n.Status()
	case "attach":
		pods[o.Pod] = testpod.New(t, o.Pod)
		pod := podOf(pods[o.Pod])
		pod.PortMappings = o.Ports
		r, err := n.Attach(context.Background(), pod)
		return answerOf{IPs: r.IPs}, err
	case "serve":
		serve(t, p, o.Addr)
	case "detach":
		err = n.Detach(context.Background(), Pod{ID: p.ID})
		return a, errors.Join(err, n.Wait(context.Background()))
	case "ask":
		a.Text, err = ask(t, p, o.Addr)
	case "podmtu":
		p.Do(t, func() error {
			eth, err := net.InterfaceByName(ifName)
			if err == nil {
				a.Text = fmt.Sprint(eth.MTU)
			}
			return err
		})
	case "datagram": // one that must not be fragmented
		p.Do(t, func() error {
			err = sendWhole(o.Addr, o.Size)
			return nil
		})
	case "routes":
		a.Text = strings.Join(testpod.Links(t), "\n")
	default:
		err = fmt.Errorf("no such order %q", o.Do)
	}
	return a, err
}

// sendWhole sends a UDP datagram that makes an IPv4 packet of that size, with "don't fragment".
func sendWhole(addr string, size int) error {
	c, err := net.Dial("udp4", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	err = raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	if err != nil {
		return err
	}
	_, err = c.Write(make([]byte, size-28))
	return err
}

type node struct {
	t       *testing.T
	name    string
	dir     string
	cmd     *exec.Cmd
	in, out *os.File
	answers *json.Decoder
}

// cable makes the switch.
func cable(t *testing.T) netlink.Link {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "cable"
	br := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(br); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(br) })
	if err := netlink.LinkSetUp(br); err != nil {
		t.Fatal(err)
	}
	return br
}

// startNode starts node i with the addresses 192.0.2.i and 2001:db8::i on its uplink.
func startNode(t *testing.T, sw netlink.Link, i int, files map[string]string) *node {
	t.Helper()
	n := &node{t: t, name: fmt.Sprintf("node%d", i), dir: t.TempDir()}
	orders, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, answers, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	n.in, n.out, n.answers = in, out, json.NewDecoder(out)
	if err := os.Mkdir(filepath.Join(n.dir, "net.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(strings.ReplaceAll(text, "DIR", n.dir)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.cmd = exec.Command("/proc/self/exe", "-test.run=^TestNodeProcess$", "-test.v")
	n.cmd.Env = append(os.Environ(), nodeEnv+"="+n.dir)
	n.cmd.ExtraFiles = []*os.File{orders, answers}
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	log := &strings.Builder{}
	n.cmd.Stdout, n.cmd.Stderr = log, log
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = orders.Close(), answers.Close()
	t.Cleanup(func() {
		n.stop()
		if t.Failed() {
			t.Logf("%s: %s", n.name, log)
		}
	})
	n.plug(sw, i)
	n.must(order{Do: "address", Addr: fmt.Sprintf("192.0.2.%d/24 2001:db8::%d/64", i, i)})
	return n
}

// plug connects the node to the switch once its namespace is there.
func (n *node) plug(sw netlink.Link, i int) {
	n.t.Helper()
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		n.t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", n.cmd.Process.Pid))
		if err == nil && its != own {
			break
		}
		if time.Now().After(deadline) {
			n.t.Fatal("node has no namespace of its own:", err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = fmt.Sprintf("port%d", i), sw.Attrs().Index
	err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "uplink0", PeerNamespace: netlink.NsPid(n.cmd.Process.Pid),
		PeerHardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, byte(i)}}) // a node that comes back has its old hardware
	if err == nil {
		l, e := netlink.LinkByName(attrs.Name)
		err = errors.Join(e, netlink.LinkSetUp(l))
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) stop() {
	_ = n.in.Close()
	_ = n.cmd.Wait()
	_ = n.out.Close()
}

func (n *node) tell(o order) (answerOf, error) {
	b, err := json.Marshal(o)
	if err == nil {
		_, err = n.in.Write(append(b, '\n'))
	}
	var a answerOf
	if err == nil {
		err = n.answers.Decode(&a)
	}
	if err != nil {
		n.t.Helper()
		n.t.Fatalf("%s: %s: %v", n.name, o.Do, err)
	}
	if a.Err != "" {
		return a, errors.New(a.Err)
	}
	return a, nil
}

func (n *node) must(o order) answerOf {
	n.t.Helper()
	a, err := n.tell(o)
	if err != nil {
		n.t.Fatalf("%s: %s: %v", n.name, o.Do, err)
	}
	return a
}

const (
	vxlanList = `{"cniVersion":"1.1.0","name":"flat","plugins":[{"type":"vxlan","network":["10.244.0.0/16","fd00:244::/48"],"peersFile":"DIR/peers.json"},
		{"type":"portmap","capabilities":{"portMappings":true}}]}`
	threePeers = `[{"node":"192.0.2.1","subnets":["10.244.1.0/24","fd00:244:0:1::/64"]},{"node":"192.0.2.2","subnets":["10.244.2.0/24","fd00:244:0:2::/64"]},
		{"node":"192.0.2.3","subnets":["10.244.3.0/24","fd00:244:0:3::/64"]}]`
	twoPeers = `[{"node":"192.0.2.1","subnets":["10.244.1.0/24","fd00:244:0:1::/64"]},{"node":"192.0.2.2","subnets":["10.244.2.0/24","fd00:244:0:2::/64"]}]`
)

func TestPodsAcrossNodes(t *testing.T) {
	testpod.Node(t)
	sw := cable(t)
	files := map[string]string{"net.d/10-flat.conflist": vxlanList, "peers.json": twoPeers}
	a, b := startNode(t, sw, 1, files), startNode(t, sw, 2, files)
	ra := a.must(order{Do: "attach", Pod: 1, Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80}}})
	rb := b.must(order{Do: "attach", Pod: 1})
	if ra.IPs[0].String() != "10.244.1.2" || rb.IPs[0].String() != "10.244.2.2" || ra.IPs[1].String() != "fd00:244:0:1::2" {
		t.Fatalf("addresses %v %v", ra.IPs, rb.IPs)
	}
	a.must(order{Do: "serve", Pod: 1, Addr: "[::]:80"})
	b.must(order{Do: "serve", Pod: 1, Addr: "[::]:80"})
	wants := func(from *node, pod int, to, as string) {
		t.Helper()
		got, err := from.tell(order{Do: "ask", Pod: pod, Addr: to})
		if err != nil || got.Text != as {
			t.Errorf("%s pod %d to %s: seen as %q, %v; want %s", from.name, pod, to, got.Text, err, as)
		}
	}
	wants(a, 1, "10.244.2.2:80", "10.244.1.2")
	wants(b, 1, "10.244.1.2:80", "10.244.2.2")
	wants(a, 1, "[fd00:244:0:2::2]:80", "fd00:244:0:1::2")
	wants(b, 0, "10.244.1.2:80", "10.244.2.0") // the node itself
	wants(b, 0, "192.0.2.1:8080", "192.0.2.2") // a host port of another node
	wants(b, 1, "192.0.2.1:8080", "192.0.2.2") // and a pod's packets to that node are masqueraded

	// What fits through the tunnel, and no byte more.
	if m := a.must(order{Do: "podmtu", Pod: 1}); m.Text != "1450" {
		t.Errorf("MTU %s", m.Text)
	}
	if _, err := a.tell(order{Do: "datagram", Pod: 1, Addr: "10.244.2.2:9", Size: 1450}); err != nil {
		t.Errorf("1450 bytes: %v", err)
	}
	if _, err := a.tell(order{Do: "datagram", Pod: 1, Addr: "10.244.2.2:9", Size: 1451}); err == nil {
		t.Error("1451 bytes are sent")
	}

	// A third node joins: the file changes on the others, which follow by themselves.
	files["peers.json"] = threePeers
	c := startNode(t, sw, 3, files)
	rc := c.must(order{Do: "attach", Pod: 1})
	c.must(order{Do: "serve", Pod: 1, Addr: "[::]:80"})
	for _, n := range []*node{a, b} {
		n.replacePeers(threePeers)
		n.await("10.244.3.0/24")
		wants(n, 1, rc.IPs[0].String()+":80", map[*node]string{a: "10.244.1.2", b: "10.244.2.2"}[n])
	}
	// It is lost, and comes back.
	c.stop()
	wants(a, 1, "10.244.2.2:80", "10.244.1.2")
	if _, err := a.tell(order{Do: "ask", Pod: 1, Addr: "10.244.3.2:80"}); err == nil {
		t.Error("a pod of the lost node answers")
	}
	c = startNode(t, sw, 3, files)
	rc = c.must(order{Do: "attach", Pod: 1})
	c.must(order{Do: "serve", Pod: 1, Addr: "[::]:80"})
	wants(a, 1, rc.IPs[0].String()+":80", "10.244.1.2")
	wants(c, 1, "10.244.1.2:80", rc.IPs[0].String())
	// It leaves for good: no trace on the others. A file that makes no sense changes nothing.
	for _, n := range []*node{a, b} {
		n.replacePeers(twoPeers)
		n.awaitGone("10.244.3.0/24")
		n.replacePeers("[{")
	}
	wants(a, 1, "10.244.2.2:80", "10.244.1.2")
	a.must(order{Do: "detach", Pod: 1})
}

func (n *node) replacePeers(text string) {
	n.t.Helper()
	tmp := filepath.Join(n.dir, "peers.tmp")
	err := os.WriteFile(tmp, []byte(text), 0o600)
	if err == nil {
		err = os.Rename(tmp, filepath.Join(n.dir, "peers.json"))
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) await(route string)     { n.awaitRoute(route, true) }
func (n *node) awaitGone(route string) { n.awaitRoute(route, false) }

func (n *node) awaitRoute(route string, there bool) {
	n.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if strings.Contains(n.must(order{Do: "routes"}).Text, "route "+route) == there {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("%s: route to %s there: %t", n.name, route, !there)
		}
	}
}

func TestBadOverlay(t *testing.T) {
	testpod.Node(t)
	world(t, 1) // 192.0.2.1 is an address of this node
	for name, c := range map[string]struct{ conf, peers, want string }{
		"no network":    {`"peersFile":"PEERS"`, `[]`, "no network"},
		"no peers":      {`"network":["10.244.0.0/16"]`, `[]`, "neither peers"},
		"no file":       {`"network":["10.244.0.0/16"],"peersFile":"/nonexistent/peers"`, ``, "no such file"},
		"garbage":       {`"network":["10.244.0.0/16"],"peersFile":"PEERS"`, `<xml/>`, "parse"},
		"unknown key":   {`"network":["10.244.0.0/16"],"peersFile":"PEERS"`, `[{"node":"192.0.2.1","subnets":["10.244.1.0/24"],"color":1}]`, "color"},
		"not here":      {`"network":["10.244.0.0/16"],"peersFile":"PEERS"`, `[{"node":"192.0.2.9","subnets":["10.244.9.0/24"]}]`, "no peer has an address of this host"},
		"not in it":     {`"network":["10.244.0.0/16"],"peersFile":"PEERS"`, `[{"node":"192.0.2.1","subnets":["10.99.1.0/24"]}]`, "not in the network"},
		"overlapping":   {`"network":["10.244.0.0/16"],"peersFile":"PEERS"`, `[{"node":"192.0.2.1","subnets":["10.244.1.0/24"]},{"node":"192.0.2.2","subnets":["10.244.0.0/20"]}]`, "overlaps"},
		"host's route":  {`"network":["192.0.0.0/16"],"peersFile":"PEERS"`, `[{"node":"192.0.2.1","subnets":["192.0.9.0/24"]}]`, "overlaps the host's route"},
		"bad vni":       {`"network":["10.244.0.0/16"],"vni":99999999,"peersFile":"PEERS"`, `[]`, "vni"},
		"wrong address": {`"network":["10.244.0.0/16"],"node":"192.0.2.7","peersFile":"PEERS"`, `[{"node":"192.0.2.7","subnets":["10.244.1.0/24"]}]`, "this host has no address 192.0.2.7"},
	} {
		n, peers := open(t, nil), filepath.Join(t.TempDir(), "peers.json")
		if err := os.WriteFile(peers, []byte(c.peers), 0o600); err != nil {
			t.Fatal(err)
		}
		write(t, n, "10-x.conflist", `{"cniVersion":"1.1.0","name":"x","plugins":[{"type":"vxlan",`+strings.ReplaceAll(c.conf, "PEERS", peers)+`}]}`)
		if err := n.Status(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
}
