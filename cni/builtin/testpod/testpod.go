// SPDX-License-Identifier: Apache-2.0

// Package testpod gives tests a throw-away node and pods: network namespaces with nothing in them and no way out. It does what the keeper does
// for real pods, by setns, which the packages under test never do. For tests only.
package testpod

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const inNode = "TESTPOD_NODE"

// Main runs the tests of a package in a process that has a network and a mount namespace of its own. Without root it runs them where they
// are; those that need a node skip (Node).
func Main(m *testing.M) {
	if os.Getuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv(inNode) != "" {
		os.Exit(runInNode(m))
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNode+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState == nil {
			fmt.Fprintln(os.Stderr, "start the tests in a network namespace:", err)
			os.Exit(1)
		}
		os.Exit(cmd.ProcessState.ExitCode())
	}
	os.Exit(0)
}

// runInNode brings lo up and gives the tests temporary directories on tmpfs, where the state of the real thing is too.
func runInNode(m *testing.M) int {
	dir, err := os.MkdirTemp("", "node")
	if err == nil {
		err = errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	}
	if err == nil {
		err = os.Setenv("TMPDIR", dir)
	}
	lo, e := netlink.LinkByName("lo")
	if err = errors.Join(err, e); err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "make a node for the tests:", err)
		return 1
	}
	// Package net finds out once, in the namespace of whichever thread comes first, whether there is IPv6. In a pod without lo there is not.
	if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
		_ = l.Close()
	}
	code := m.Run()
	_ = unix.Unmount(dir, unix.MNT_DETACH)
	_ = os.Remove(dir)
	return code
}

// Node skips the test where there is no node to use.
func Node(t testing.TB) {
	t.Helper()
	if os.Getenv(inNode) == "" {
		t.Skip("needs root, to make network namespaces")
	}
}

// Pod is a network namespace pinned at Path, and a netlink socket that was opened in it.
type Pod struct {
	ID, Path string
	Socket   *os.File
	gone     atomic.Bool
}

// New makes a pod. The ID is of the form a sandbox has.
func New(t testing.TB, n int) *Pod {
	t.Helper()
	p := &Pod{ID: fmt.Sprintf("%064x", n), Path: filepath.Join(t.TempDir(), "net")}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		// What the pod's launch program sets (see cni.PodSysctls).
		for _, of := range []string{"all", "default"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+of+"/accept_ra", []byte("0"), 0); err != nil {
				return err
			}
		}
		f, err := os.OpenFile(p.Path, os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_ = f.Close()
		if err := unix.Mount("/proc/thread-self/ns/net", p.Path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin: %w", err)
		}
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		p.Socket = os.NewFile(uintptr(fd), "netlink")
		return err
	})
	if err != nil {
		t.Fatal("make pod:", err)
	}
	t.Cleanup(p.Kill)
	return p
}

// Kill ends the namespace: what is in it goes when the kernel gets to it.
func (p *Pod) Kill() {
	if p.gone.Swap(true) {
		return
	}
	_ = p.Socket.Close()
	_ = unix.Unmount(p.Path, unix.MNT_DETACH)
	_ = os.Remove(p.Path)
}

// Gone says that Kill was called.
func (p *Pod) Gone() bool { return p.gone.Load() }

// Do runs f inside the pod's namespace.
func (p *Pod) Do(t testing.TB, f func() error) {
	t.Helper()
	err := onThread(func() error {
		ns, err := os.Open(p.Path)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("setns: %w", err)
		}
		return f()
	})
	if err != nil {
		t.Helper()
		t.Fatal(err)
	}
}

// onThread runs f on a thread that is thrown away with its namespaces.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

// Census lists what the calling thread's network namespace has: links, addresses, routes, nftables tables with their sets' elements;
// and the process's open files. The random parts are left out.
func Census(t testing.TB) []string {
	t.Helper()
	out := append(Links(t), Ruleset(t)...)
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, fd := range fds {
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err != nil {
			continue
		}
		kind, _, _ := strings.Cut(to, "[")
		kinds[kind]++
	}
	for k, n := range kinds {
		out = append(out, fmt.Sprintf("fd %s %d", k, n))
	}
	sort.Strings(out)
	return out
}

// Links lists links, addresses and routes.
func Links(t testing.TB) []string {
	t.Helper()
	var out []string
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		out = append(out, fmt.Sprintf("link %s %s mtu %d up %t", l.Attrs().Name, l.Type(), l.Attrs().MTU, l.Attrs().Flags&1 != 0))
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if ip, _ := netip.AddrFromSlice(a.IP); ip.IsLinkLocalUnicast() {
				continue // comes and goes with the carrier
			}
			out = append(out, fmt.Sprintf("addr %s %s", l.Attrs().Name, a.IPNet))
		}
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if ip, _ := netip.AddrFromSlice(r.Dst.IP); !ip.IsLinkLocalUnicast() {
			out = append(out, fmt.Sprintf("route %s via %s", r.Dst, r.Gw))
		}
	}
	sort.Strings(out)
	return slices.Compact(out)
}

// Ruleset lists all nftables tables with their chains, numbers of rules and elements.
func Ruleset(t testing.TB) []string {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, table := range tables {
		out = append(out, fmt.Sprintf("table %d %s", table.Family, table.Name))
		chains, err := c.ListChainsOfTableFamily(table.Family)
		if err != nil {
			t.Fatal(err)
		}
		for _, chain := range chains {
			if chain.Table.Name != table.Name {
				continue
			}
			rules, err := c.GetRules(table, chain)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, fmt.Sprintf("chain %s %s rules %d", table.Name, chain.Name, len(rules)))
		}
		sets, err := c.GetSets(table)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sets {
			elems, err := c.GetSetElements(s)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range elems {
				out = append(out, fmt.Sprintf("element %s %s %x %x %x", table.Name, s.Name, e.Key, e.KeyEnd, e.Val))
			}
		}
	}
	sort.Strings(out)
	return out
}
