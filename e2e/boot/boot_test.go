// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode"
	"crishim.dev/internal/testnode/testimage"
)

func TestMain(m *testing.M) { os.Exit(testnode.Main(m)) }

// start brings up a node for one test.
func start(t *testing.T, o testnode.Options) *testnode.Node {
	t.Helper()
	testnode.Need(t)
	n, err := testnode.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the daemon's log ends:\n%s", n.Log(40))
		}
	})
	return n
}

// serve runs the daemon with arguments of its own until it ends and gives what it said.
func serve(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(testnode.Dir(), "bin", "shim"), args...).CombinedOutput()
	return string(out), err
}

func TestServeRefusesUnknownKeys(t *testing.T) {
	testnode.Need(t)
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte("[network]\nsubnets = \"10.0.0.0/8\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := serve(t, "serve", "--config", path)
	if err == nil || !strings.Contains(out, "network.subnets") || !strings.Contains(out, path) {
		t.Errorf("unknown key: %v: %s; want an error naming the key and its file", err, out)
	}
}

func TestConfigDefaultIsValid(t *testing.T) {
	testnode.Need(t)
	out, err := serve(t, "config", "default")
	if err != nil || !strings.Contains(out, "# ") || !strings.Contains(out, "socket = ") {
		t.Errorf("config default: %v\n%s", err, out)
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	n := start(t, testnode.Options{Name: "second", NoImages: true})
	out, err := serve(t, "serve", "--config", filepath.Join(n.Dir, "config.toml"))
	if err == nil || !strings.Contains(out, n.Socket) {
		t.Errorf("a second daemon on the socket: %v: %s", err, out)
	}
	if _, err := n.Runtime.Version(kit.Context(t), &cri.VersionRequest{}); err != nil {
		t.Errorf("the first one: %v", err)
	}
}

func TestKubelet13_ReadyIsNotified(t *testing.T) {
	testnode.Need(t)
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	start(t, testnode.Options{Name: "notify", NoImages: true})
	if err := l.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for {
		k, err := l.Read(buf)
		if err != nil {
			t.Fatalf("no READY=1: %v", err)
		}
		if strings.Contains(string(buf[:k]), "READY=1") {
			return
		}
	}
}

// networkReady is the condition as kubelet reads it.
func networkReady(t *testing.T, n *testnode.Node) (bool, string) {
	t.Helper()
	s, err := n.Runtime.Status(kit.Context(t), &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.GetStatus().GetConditions() {
		if c.GetType() == "NetworkReady" {
			return c.GetStatus(), c.GetReason()
		}
	}
	t.Fatal("no condition NetworkReady")
	return false, ""
}

func TestKubelet31_NetworkIsReadyWhenConfigured(t *testing.T) {
	n := start(t, testnode.Options{Name: "net", Config: "[network]\nbuiltin = false\n"})
	if ready, reason := networkReady(t, n); ready || reason != "NetworkPluginNotReady" {
		t.Errorf("without a configuration: ready %v, reason %q", ready, reason)
	}
	if _, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: kit.PodConfig(t, n)}); err == nil {
		t.Error("a pod runs without a network")
	}
	conf := filepath.Join(n.Dir, "cni/net.d/10-e2e.conflist")
	text := `{"cniVersion": "1.0.0", "name": "e2e", "plugins": [
		{"type": "bridge", "bridge": "cni-e2e", "isGateway": true, "ipMasq": false,
		 "ipam": {"type": "host-local", "ranges": [[{"subnet": "198.51.100.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	kit.Until(t, func() error {
		if ready, reason := networkReady(t, n); !ready {
			return fmt.Errorf("with a configuration: %s", reason)
		}
		return nil
	})
	pod := kit.RunPod(t, n)
	if ip := pod.IP(); !strings.HasPrefix(ip, "198.51.100.") {
		t.Errorf("address %s; want one of the configuration's range", ip)
	}
}

func TestKubelet31_PodCIDRFeedsTheBuiltInNetwork(t *testing.T) {
	for name, cold := range map[string]bool{"before the first pod": true, "after it": false} {
		t.Run(name, func(t *testing.T) {
			podCIDR(t, start(t, testnode.Options{Name: fmt.Sprint("cidr-", cold), Cold: cold, NoImages: true}))
		})
	}
}

func podCIDR(t *testing.T, n *testnode.Node) {
	t.Helper()
	if _, err := n.Runtime.UpdateRuntimeConfig(kit.Context(t), &cri.UpdateRuntimeConfigRequest{
		RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: "203.0.113.0/24"}},
	}); err != nil {
		t.Fatal(err)
	}
	if ip := kit.RunPod(t, n).IP(); !strings.HasPrefix(ip, "203.0.113.") {
		t.Errorf("address %s; want one of the pod CIDR", ip)
	}
}

// TestKubelet19_AfterAReboot takes everything away that a reboot takes: processes, mounts and the tmpfs; and the boot id
// changes.
func TestKubelet19_AfterAReboot(t *testing.T) {
	n := start(t, testnode.Options{Name: "reboot"})
	pod := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) { c.Labels = map[string]string{"survives": "yes"} })
	running := pod.Run(testimage.Busybox, kit.Sleep())
	exited := pod.Run(testimage.Busybox, []string{"sh", "-c", "exit 3"})
	exited.Exited()
	pids := running.PIDs()
	kit.Until(t, func() error { return copied(n, running.ID) })
	if err := n.StopDaemon(t.Context(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	powerCut(t, n, pids)
	if err := n.StartDaemon(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, n.Log(30))
	}
	if s := pod.Status().GetStatus(); s.GetState() != cri.PodSandboxState_SANDBOX_NOTREADY || s.GetLabels()["survives"] != "yes" {
		t.Errorf("pod after the reboot: %v", s)
	}
	if s := running.Status(); s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 255 || s.GetReason() != "Unknown" {
		t.Errorf("what ran: %v, exit code %d, reason %q; want EXITED, 255, Unknown", s.GetState(), s.GetExitCode(), s.GetReason())
	}
	if s := exited.Status(); s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 3 {
		t.Errorf("what had ended: %v, exit code %d; want EXITED, 3", s.GetState(), s.GetExitCode())
	}
	if got := kit.RunPod(t, n).Output(testimage.Busybox, []string{"echo", "new"}); got != "new\n" {
		t.Errorf("a new pod: %q", got)
	}
}

// copied gives an error until the record of a container has reached the disk.
func copied(n *testnode.Node, id string) error {
	found := false
	err := filepath.WalkDir(filepath.Join(n.Root, "records"), func(path string, _ os.DirEntry, err error) error {
		found = found || strings.Contains(filepath.Base(path), id)
		return err
	})
	if err == nil && !found {
		err = fmt.Errorf("no record of %s below %s/records", id, n.Root)
	}
	return err
}

// powerCut ends every process of the node and empties its tmpfs directory, namespaces' pins included.
func powerCut(t *testing.T, n *testnode.Node, pids []int) {
	t.Helper()
	for _, role := range []string{"elder", "younger"} {
		for { // one that dies is replaced by the other, until both are dead
			pid := n.Keepers()[role]
			if pid == 0 {
				break
			}
			if other := n.Keepers()["younger"]; other > 1 {
				_ = unix.Kill(other, unix.SIGSTOP) // so that it can't replace the elder
			}
			if _, err := n.KillKeeper(role); err != nil {
				t.Fatal(err)
			}
			kit.Until(t, func() error {
				if n.Keepers()[role] == pid {
					return fmt.Errorf("%s %d still runs", role, pid)
				}
				return nil
			})
		}
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
			t.Fatal(err)
		}
	}
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(table)) {
		if point := strings.Fields(l)[1]; strings.HasPrefix(point, n.State+"/") {
			if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.RemoveAll(n.State); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(n.State, 0o700); err != nil {
		t.Fatal(err)
	}
	boot := filepath.Join(t.TempDir(), "boot_id")
	if err := os.WriteFile(boot, []byte("01234567-89ab-cdef-0123-456789abcdef\n"), 0o444); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(boot, "/proc/sys/kernel/random/boot_id", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount("/proc/sys/kernel/random/boot_id", unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
