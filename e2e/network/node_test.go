// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode"
	"crishim.dev/internal/testnode/testimage"
)

// nodeEnv tells this test binary that it is a node.
const nodeEnv = "SHIM_E2E_NODE"

func TestMain(m *testing.M) {
	if os.Getenv(nodeEnv) == "" {
		os.Exit(testnode.Main(m))
	}
	code, inside, err := testnode.Enter()
	if inside {
		err = beNode(context.Background())
	}
	if err != nil {
		fmt.Println("error:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// beNode runs a node and obeys lines on standard input: "mark" takes stock, "restart" kills the daemon and starts it. Each is answered by a
// line. At the end of the input the node must be as it was when stock was taken.
func beNode(ctx context.Context) error {
	n, err := testnode.Start(ctx, testnode.Options{})
	if err != nil {
		return err
	}
	fmt.Println("ready", n.Dir)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		do := n.Mark
		if in.Text() == "restart" {
			do = func(ctx context.Context) error { return n.Restart(ctx, syscall.SIGKILL) }
		}
		if err := do(ctx); err != nil {
			return errors.Join(err, n.Close(ctx))
		}
		fmt.Println("done")
	}
	for _, left := range n.Clean(ctx) {
		err = errors.Join(err, fmt.Errorf("left behind: %s", left))
	}
	if err != nil {
		err = fmt.Errorf("%w\nthe daemon's log ends:\n%s", err, n.Log(60))
	}
	return errors.Join(err, n.Close(ctx))
}

// member is one node of a test, and what the other packages' helpers need to work on it.
type member struct {
	*testnode.Node
	t       *testing.T
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	init    int // its process 1, as seen from here
	stopped bool
}

// startNode starts a node, which takes stock, and stops it at the end of the test.
func startNode(t *testing.T) *member {
	t.Helper()
	testnode.Need(t)
	m := &member{t: t, cmd: exec.Command("/proc/self/exe")}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "SHIM_NODE_STAGE=") && !strings.HasPrefix(kv, "SHIM_NODE_DIR=") {
			m.cmd.Env = append(m.cmd.Env, kv)
		}
	}
	m.cmd.Env = append(m.cmd.Env, nodeEnv+"=1", testnode.EnvBin+"="+filepath.Join(testnode.Dir(), "bin"))
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	m.cmd.Stderr = os.Stderr
	in, err := m.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	m.in, m.out = in, bufio.NewReader(out)
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.stop)
	dir, ok := strings.CutPrefix(m.answer(), "ready ")
	if !ok {
		t.Fatal("the node did not start")
	}
	m.init = m.child()
	socket := fmt.Sprintf("/proc/%d/root/run/shim/shim.sock", m.init)
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	m.Node = &testnode.Node{Dir: dir, Conn: conn, Runtime: cri.NewRuntimeServiceClient(conn), Images: cri.NewImageServiceClient(conn)}
	if _, err := m.Runtime.Version(kit.Context(t), &cri.VersionRequest{}); err != nil {
		t.Fatal(err)
	}
	m.mark()
	return m
}

// answer is the next line that the node says; "" at its end.
func (m *member) answer() string {
	m.t.Helper()
	line, err := m.out.ReadString('\n')
	if err != nil || strings.HasPrefix(line, "error:") {
		rest, _ := io.ReadAll(m.out)
		m.t.Errorf("node: %s%s", line, rest)
		return ""
	}
	return strings.TrimSpace(line)
}

// tell has the node obey an order.
func (m *member) tell(order string) {
	m.t.Helper()
	if _, err := io.WriteString(m.in, order+"\n"); err != nil {
		m.t.Fatal(err)
	}
	if m.answer() != "done" {
		m.t.FailNow()
	}
}

// mark takes stock on the node.
func (m *member) mark() {
	m.t.Helper()
	m.tell("mark")
}

// stop ends the node, which says what is left behind on it.
func (m *member) stop() {
	if m.stopped {
		return
	}
	m.stopped = true
	_ = m.in.Close()
	rest, _ := io.ReadAll(m.out)
	if err := m.cmd.Wait(); err != nil {
		m.t.Errorf("node: %v\n%s", err, rest)
	}
	if m.Node != nil {
		_ = m.Conn.Close() // not before: the daemon's end of it was there when stock was taken
	}
}

// crash is the loss of a node: all that runs on it is gone at once.
func (m *member) crash() {
	m.t.Helper()
	m.stopped = true
	if err := unix.Kill(m.init, unix.SIGKILL); err != nil {
		m.t.Fatal(err)
	}
	_ = m.in.Close()
	_, _ = io.Copy(io.Discard, m.out)
	_ = m.cmd.Wait() // it was killed
}

// child is the node's process 1: the one child of the process that was started.
func (m *member) child() int {
	m.t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		m.t.Fatal(err)
	}
	for _, s := range stats {
		text, err := os.ReadFile(s)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(m.cmd.Process.Pid) {
			pid, _, _ := strings.Cut(string(text), " ")
			n, err := strconv.Atoi(pid)
			if err == nil {
				return n
			}
		}
	}
	m.t.Fatal("the node has no process 1")
	return 0
}

// configure writes a CNI configuration.
func (m *member) configure(text string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.Dir, "cni/net.d/10-test.conflist"), []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// plugin writes a CNI plugin that is a script.
func (m *member) plugin(name, text string) {
	m.t.Helper()
	tmp := filepath.Join(m.Dir, "cni/bin/."+name)
	if err := os.WriteFile(tmp, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(m.Dir, "cni/bin", name)); err != nil {
		m.t.Fatal(err)
	}
}

// cable makes the switch that nodes are plugged into.
func cable(t *testing.T) netlink.Link {
	t.Helper()
	testnode.Need(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "cable"
	sw := &netlink.Bridge{LinkAttrs: attrs}
	if err := errors.Join(netlink.LinkAdd(sw), netlink.LinkSetUp(sw)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(sw) })
	return sw
}

// plug connects a node to the switch, as node i: 198.51.100.i and 2001:db8:100::i. A node that comes back has its old hardware.
func (m *member) plug(sw netlink.Link, i int) {
	m.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = port(i), sw.Attrs().Index
	err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "uplink0", PeerNamespace: netlink.NsPid(m.init),
		PeerHardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, byte(i)}})
	if err != nil {
		m.t.Fatal(err)
	}
	setPort(m.t, i, true)
	m.run("ip", "link", "set", "uplink0", "up")
	m.run("ip", "address", "add", fmt.Sprintf("198.51.100.%d/24", i), "dev", "uplink0")
	m.run("ip", "address", "add", fmt.Sprintf("2001:db8:100::%d/64", i), "dev", "uplink0", "nodad")
}

// run runs a program in the node's network namespace.
func (m *member) run(args ...string) {
	m.t.Helper()
	cmd := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(m.init), "-n"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("%q: %v: %s", args, err, out)
	}
}

// output runs one of the node's own programs on it and gives what it prints.
func (m *member) output(program string, args ...string) string {
	m.t.Helper()
	cmd := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(m.init), "-a", filepath.Join(testnode.Dir(), "bin", program)}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s %q: %v: %s", program, args, err, out)
	}
	return string(out)
}

func port(i int) string { return fmt.Sprintf("port%d", i) }

// setPort plugs a node's cable in, or pulls it out.
func setPort(t *testing.T, i int, up bool) {
	t.Helper()
	l, err := netlink.LinkByName(port(i))
	if err == nil && up {
		err = netlink.LinkSetUp(l)
	} else if err == nil {
		err = netlink.LinkSetDown(l)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// web runs a pod that says its name over HTTP at port 80.
func (m *member) web(name string, mods ...func(*cri.PodSandboxConfig)) (*kit.Pod, *kit.Container) {
	m.t.Helper()
	p := kit.RunPod(m.t, m.Node, mods...)
	p.Run(testimage.Busybox, []string{"probe", "http", "[::]:80", name})
	return p, p.Run(testimage.Busybox, kit.Sleep())
}

// doomed runs a pod as web does, on a node that will not be there to remove it from, and gives its address.
func (m *member) doomed(name string) string {
	m.t.Helper()
	ctx, config := kit.Context(m.t), kit.PodConfig(m.t, m.Node)
	pod, err := m.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		m.t.Fatal(err)
	}
	inner, err := m.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod.GetPodSandboxId(), SandboxConfig: config,
		Config: kit.ContainerConfig(m.t, testimage.Busybox, []string{"probe", "http", "[::]:80", name})})
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := m.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: inner.GetContainerId()}); err != nil {
		m.t.Fatal(err)
	}
	s, err := m.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: pod.GetPodSandboxId()})
	if err != nil {
		m.t.Fatal(err)
	}
	return s.GetStatus().GetNetwork().GetIp()
}

// hears waits until a container gets a text from a URL.
func hears(t *testing.T, c *kit.Container, url, want string) {
	t.Helper()
	kit.Until(t, func() error {
		r, err := c.ExecSync(10, "wget", "-T", "2", url)
		if err == nil && string(r.GetStdout()) != want+"\n" {
			err = fmt.Errorf("%s: heard %q, %s; want %q", url, r.GetStdout(), r.GetStderr(), want)
		}
		return err
	})
}

// hearsNothing fails the test if a container gets an answer within a second.
func hearsNothing(t *testing.T, c *kit.Container, url string) {
	t.Helper()
	r, err := c.ExecSync(10, "wget", "-T", "1", url)
	if err == nil && r.GetExitCode() == 0 {
		t.Errorf("%s: heard %q; want silence", url, r.GetStdout())
	}
}
