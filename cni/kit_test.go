// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"crishim.dev/cni/builtin/testpod"
)

// stateEnv tells the test binary, when it runs as a plugin, where the test's state is.
const stateEnv = "CNI_TEST_STATE"

func TestMain(m *testing.M) {
	if typ := filepath.Base(os.Args[0]); slices.Contains(Types(), typ) {
		state := os.Getenv(stateEnv)
		os.Exit(Plugin(Options{StateDir: state, CacheDir: filepath.Join(filepath.Dir(state), "cache"), LastingDir: filepath.Join(filepath.Dir(state), "lasting")}, typ))
	}
	testpod.Main(m)
}

// install links the names of our plugins to this test binary.
func install(t testing.TB, n *Network) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Install(self, n.opts.BinDirs[0]); err != nil {
		t.Fatal(err)
	}
	t.Setenv(stateEnv, n.opts.StateDir)
}

// open makes a Network with directories of its own. What it leaves in the node (bridges, the table) is removed at the end of the test.
func open(t testing.TB, change func(*Options)) *Network {
	t.Helper()
	testpod.Node(t)
	dir := t.TempDir()
	o := Options{
		ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{filepath.Join(dir, "bin")},
		CacheDir: filepath.Join(dir, "cache"), LastingDir: filepath.Join(dir, "lasting"), StateDir: filepath.Join(dir, "state"), Builtin: true,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, d := range []string{o.ConfDir, o.BinDirs[0]} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if change != nil {
		change(&o)
	}
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.GC(context.Background(), nil); err != nil {
			t.Error("clean up:", err)
		}
		if err := n.Close(); err != nil {
			t.Error("close:", err)
		}
		clearNode(t, o)
	})
	return n
}

// clearNode removes what outlives pods by design.
func clearNode(t testing.TB, o Options) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "bridge" || l.Type() == "veth" || l.Type() == "vxlan" {
			_ = netlink.LinkDel(l)
		}
	}
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.host.RemoveTable(); err != nil {
		t.Error("clean up:", err)
	}
}

func podOf(p *testpod.Pod) Pod {
	return Pod{ID: p.ID, Name: "web", Namespace: "default", UID: "uid-" + p.ID[60:], NetNS: p.Path, Socket: p.Socket}
}

// attach fails the test if the pod can't be attached.
func attach(t testing.TB, n *Network, p Pod) Result {
	t.Helper()
	res, err := n.Attach(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func detach(t testing.TB, n *Network, p Pod) {
	t.Helper()
	if err := n.Detach(context.Background(), p); err != nil {
		t.Fatal(err)
	}
	if err := n.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, n *Network, name, text string) string {
	t.Helper()
	path := filepath.Join(n.opts.ConfDir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// same fails the test unless the census is as before.
func same(t testing.TB, before []string) {
	t.Helper()
	// Other goroutines of the test binary close files when they like; the kernel ends namespaces when it likes.
	deadline := time.Now().Add(10 * time.Second)
	for {
		after := testpod.Census(t)
		if slices.Equal(before, after) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("census:", cmp.Diff(before, after))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// serve answers every TCP connection in the pod with the address it sees, until the test ends.
func serve(t testing.TB, p *testpod.Pod, addr string) {
	t.Helper()
	var l net.Listener
	p.Do(t, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	go answer(l)
}

func answer(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Write([]byte(c.RemoteAddr().(*net.TCPAddr).IP.String()))
		_ = c.Close()
	}
}

// ask connects from inside the pod (nil: from the node) and gives the answer.
func ask(t testing.TB, p *testpod.Pod, addr string) (string, error) {
	t.Helper()
	var out string
	var err error
	dial := func() error {
		out, err = read(addr)
		return nil
	}
	if p == nil {
		_ = dial()
	} else {
		p.Do(t, dial)
	}
	return out, err
}

func read(addr string) (string, error) {
	c, err := net.DialTimeout("tcp", addr, 2*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	b := make([]byte, 64)
	k, err := c.Read(b)
	return string(b[:k]), err
}

func addrPort(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }
