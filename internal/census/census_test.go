// SPDX-License-Identifier: Apache-2.0

package census

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// diff takes a census, changes something, and gives the difference.
func diff(t *testing.T, o Options, change func()) []string {
	t.Helper()
	before := take(t, o)
	change()
	return Diff(before, take(t, o))
}

func take(t *testing.T, o Options) *Census {
	t.Helper()
	c, err := Take(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// want checks that each line of got holds the text at its place.
func want(t *testing.T, got []string, texts ...string) {
	t.Helper()
	ok := len(got) == len(texts)
	for i := range min(len(got), len(texts)) {
		ok = ok && strings.Contains(got[i], texts[i])
	}
	if !ok {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(texts, "\n"))
	}
}

func root(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("making kernel objects needs root")
	}
}

// inNewNet starts a process in a network namespace of its own and gives its pid.
func inNewNet(t *testing.T) *exec.Cmd {
	t.Helper()
	root(t)
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	o := Options{Dirs: []string{dir, dir + "/absent"}, Ignore: func(kind, object string) bool { return strings.Contains(object, "ignored") }}
	got := diff(t, o, func() {
		for _, err := range []error{os.Mkdir(dir+"/d", 0o755), os.WriteFile(dir+"/d/f", []byte("abc"), 0o600), os.Symlink("x", dir+"/l"),
			os.WriteFile(dir+"/ignored", nil, 0o600), unix.Mkfifo(dir+"/p", 0o600)} {
			if err != nil {
				t.Fatal(err)
			}
		}
	})
	want(t, got, "+ file "+dir+"/d/ [", "+ file "+dir+"/d/f [-rw-------, 3 bytes]", "+ file "+dir+"/l@", "+ file "+dir+"/p|")
	got = diff(t, o, func() { os.Remove(dir + "/d/f") })
	want(t, got, "- file "+dir+"/d/f")
}

func TestProcesses(t *testing.T) {
	var cmd *exec.Cmd
	o := Options{Descendants: []int{os.Getpid()}}
	got := diff(t, o, func() {
		cmd = exec.Command("sh", "-c", "sleep 1000 & exec sleep 1001")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for len(Diff(&Census{}, take(t, o))) < 2 {
			time.Sleep(time.Millisecond)
		}
	})
	if len(got) != 2 || !strings.HasPrefix(got[0], "+ process ") || !strings.Contains(strings.Join(got, ""), "sleep 1000") {
		t.Errorf("got %q", got)
	}
	link, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []Options{{InNamespaces: []string{link}}, {InCgroups: []string{"/"}}} {
		if text := strings.Join(Diff(&Census{}, take(t, o)), "\n"); !strings.Contains(text, fmt.Sprintf("process %d started", cmd.Process.Pid)) {
			t.Errorf("%+v does not list the process", o)
		}
	}
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	_ = cmd.Wait()
}

func TestParseNameWithParenthesis(t *testing.T) {
	p, err := readStat(os.Getpid())
	if err != nil || p.pid != os.Getpid() || p.parent != os.Getppid() {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestDescriptors(t *testing.T) {
	var l net.Listener
	f, err := os.CreateTemp(t.TempDir(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil { // the runtime's own poller descriptors come with the first
		t.Fatal(err)
	}
	o := Options{FDsOf: map[string]int{"me": os.Getpid()}}
	got := diff(t, o, func() {
		if _, err := os.Open(f.Name()); err != nil {
			t.Fatal(err)
		}
		if _, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		l.Close()
		f.Close()
		if f, err = os.Open(os.DevNull); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.EpollCreate1(0); err != nil {
			t.Fatal(err)
		}
	})
	want(t, got, "+ descriptor of me to /dev/null", "+ descriptor of me to anon_inode:[eventpoll]")
}

func TestMounts(t *testing.T) {
	root(t)
	dir := t.TempDir()
	// A process in a mount namespace of its own.
	cmd := exec.Command("sh", "-c", "mount -t tmpfs -o ro mine "+dir+" && echo && exec sleep 1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	got := Diff(take(t, Options{MountsOf: map[string]int{"it": os.Getpid()}}), take(t, Options{MountsOf: map[string]int{"it": cmd.Process.Pid}}))
	want(t, got, "+ mount of it at "+dir+": tmpfs ro,")
}

func TestNetNamespaces(t *testing.T) {
	root(t)
	dir := t.TempDir()
	o := Options{NetNamespaces: true}
	before := take(t, o)
	cmd := inNewNet(t)
	link, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	has := func() string {
		for _, l := range Diff(before, take(t, o)) {
			if strings.Contains(l, link) {
				return l
			}
		}
		return ""
	}
	if l := has(); !strings.Contains(l, fmt.Sprintf("+ network namespace %s [held by process %d", link, cmd.Process.Pid)) {
		t.Errorf("a process's: %q", l)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if l := has(); !strings.Contains(l, fmt.Sprintf("held by fd %d of process %d", f.Fd(), os.Getpid())) {
		t.Errorf("an open file's: %q", l)
	}
	// A pin in somebody else's mount namespace only.
	pinner := exec.Command("sh", "-c", fmt.Sprintf("touch %s/pin && mount --bind /proc/self/fd/3 %s/pin && exec 3>&- && echo && exec sleep 1000", dir, dir))
	pinner.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	pinner.ExtraFiles = []*os.File{f}
	out, _ := pinner.StdoutPipe()
	if err := pinner.Start(); err != nil {
		t.Fatal(err)
	}
	defer pinner.Wait()
	defer pinner.Process.Kill()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if l := has(); !strings.Contains(l, "held by mount "+dir+"/pin seen by process") {
		t.Errorf("a pinned one: %q", l)
	}
}

func TestNetwork(t *testing.T) {
	cmd := inNewNet(t)
	ns, err := netns.GetFromPid(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{Net: true, NetNS: fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)}
	got := diff(t, o, func() {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br7"}}
		must(h.LinkAdd(br))
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v1", MTU: 1400, MasterIndex: br.Index}, PeerName: "v2"}
		must(h.LinkAdd(veth))
		addr, _ := netlink.ParseAddr("10.9.8.7/24")
		must(h.AddrAdd(br, addr), h.LinkSetUp(br))
		_, net6, _ := net.ParseCIDR("2001:db8::/64")
		rule := netlink.NewRule()
		rule.Src, rule.Table, rule.Priority = addr.IPNet, 77, 1000
		rule.Src.IP = rule.Src.IP.Mask(rule.Src.Mask)
		must(h.RouteAdd(&netlink.Route{Dst: net6, Type: unix.RTN_BLACKHOLE}), h.RuleAdd(rule))
	})
	kept := got[:0]
	for _, l := range got {
		if !strings.Contains(l, "fe80") && !strings.Contains(l, "ff00::") && !strings.Contains(l, "table 255") {
			kept = append(kept, l)
		}
	}
	want(t, kept, "+ address 10.9.8.7/24 on br7", "+ link br7 bridge up mtu 1400", "+ link v1 veth master br7 mtu 1400 [index", "+ link v2 veth mtu",
		"+ route 10.9.8.0/24 type 1 table 254 protocol 2 dev br7", "+ route 2001:db8::/64 type 6 table 254 protocol 3", "+ rule family 2 priority 1000 from 10.9.8.0/24 to any/0 table 77")
	want(t, diff(t, o, func() {
		l, err := h.LinkByName("v1")
		must(err, h.LinkDel(l))
	}), "+ link br7 bridge up mtu 1500", "- link br7 bridge up mtu 1400", "- link v1", "- link v2")
	if own := take(t, Options{Net: true}); strings.Contains(strings.Join(Diff(&Census{}, own), "\n"), "br7") {
		t.Error("the caller's namespace has the other one's bridge")
	}
	nftObjects(t, o, int(ns), must)
}

func nftObjects(t *testing.T, o Options, ns int, must func(...error)) {
	c, err := nftables.New(nftables.WithNetNSFd(ns))
	must(err)
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "shimtest"}
	set := &nftables.Set{Table: table, Name: "s", KeyType: nftables.TypeIPAddr}
	one := []nftables.SetElement{{Key: []byte{10, 0, 0, 1}}}
	got := diff(t, o, func() {
		c.AddTable(table)
		must(c.AddSet(set, one), c.AddSet(&nftables.Set{Table: table, Name: "m", IsMap: true, KeyType: nftables.TypeInetService, DataType: nftables.TypeIPAddr},
			[]nftables.SetElement{{Key: []byte{0, 80}, Val: []byte{10, 0, 0, 2}}}))
		chain := c.AddChain(&nftables.Chain{Table: table, Name: "c"})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Counter{Packets: 5}, &expr.Verdict{Kind: expr.VerdictDrop}}})
		c.AddObj(&nftables.CounterObj{Table: table, Name: "n"})
		must(c.Flush())
	})
	want(t, got, "+ nft chain inet shimtest c", "+ nft element inet shimtest m 0050 : 0a000002", "+ nft element inet shimtest s 0a000001",
		"+ nft object inet shimtest n type 1", "+ nft rule inet shimtest c counter immediate:", "+ nft set inet shimtest m", "+ nft set inet shimtest s", "+ nft table inet shimtest")
	want(t, diff(t, o, func() { must(c.SetDeleteElements(set, one), c.Flush()) }), "- nft element inet shimtest s 0a000001")
}

func TestCgroups(t *testing.T) {
	root(t)
	top := fmt.Sprintf("shimtest-%d-census", os.Getpid())
	dirs, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if err != nil || len(dirs) == 0 {
		t.Skip("needs cgroup hierarchies on /sys/fs/cgroup/*")
	}
	dir := filepath.Join(filepath.Dir(dirs[0]), top)
	o := Options{Cgroups: []string{"/sys/fs/cgroup/*/" + top}}
	got := diff(t, o, func() {
		if err := os.MkdirAll(dir+"/a", 0o755); err != nil {
			t.Fatal(err)
		}
	})
	defer os.Remove(dir)
	defer os.Remove(dir + "/a")
	want(t, got, "+ cgroup "+dir, "+ cgroup "+dir+"/a")
}

func TestSettle(t *testing.T) {
	dir := t.TempDir()
	o := Options{Dirs: []string{dir}}
	before := take(t, o)
	if err := os.WriteFile(dir+"/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	want(t, Settle(ctx, before, o), "+ file "+dir+"/f")
	taken := 0
	o.Ignore = func(_, object string) bool {
		if strings.HasSuffix(object, "/f") {
			if taken++; taken == 3 {
				os.Remove(dir + "/f")
			}
		}
		return false
	}
	want(t, Settle(t.Context(), before, o))
}
