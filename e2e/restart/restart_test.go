// SPDX-License-Identifier: Apache-2.0

package restart

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode"
	"crishim.dev/internal/testnode/testimage"
)

// shared is the package's node, set once by TestMain.
var shared *testnode.Node

func TestMain(m *testing.M) {
	os.Exit(kit.Main(m, testnode.Options{}, func(n *testnode.Node) { shared = n }))
}

func node(t *testing.T) *testnode.Node {
	t.Helper()
	testnode.Need(t)
	if err := shared.Mark(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the first to be registered is the last to run: the test's pods are gone
		for _, l := range shared.Leaks(context.Background()) {
			t.Errorf("left behind: %s", l)
		}
	})
	return shared
}

// state is everything that a client can list, in a comparable form.
func state(t *testing.T, n *testnode.Node) string {
	t.Helper()
	pods, err := n.Runtime.ListPodSandbox(kit.Context(t), &cri.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	lines := make(map[string]bool)
	for _, p := range pods.GetItems() {
		s, err := n.Runtime.PodSandboxStatus(kit.Context(t), &cri.PodSandboxStatusRequest{PodSandboxId: p.GetId()})
		if err != nil {
			t.Fatal(err)
		}
		lines[fmt.Sprintf("pod %v status %v", p, s.GetStatus())] = true
	}
	containers, err := n.Runtime.ListContainers(kit.Context(t), &cri.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers.GetContainers() {
		s, err := n.Runtime.ContainerStatus(kit.Context(t), &cri.ContainerStatusRequest{ContainerId: c.GetId()})
		if err != nil {
			t.Fatal(err)
		}
		lines[fmt.Sprintf("container %v status %v", c, s.GetStatus())] = true
	}
	images, err := n.Images.ListImages(kit.Context(t), &cri.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range images.GetImages() {
		lines[fmt.Sprint("image ", i)] = true
	}
	keys := make([]string, 0, len(lines))
	for l := range lines {
		keys = append(keys, strings.Join(strings.Fields(l), " ")) // protobuf text spaces at random
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintln(&b, k)
	}
	return b.String()
}

func TestDaemonRestart(t *testing.T) {
	n := node(t)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			shared := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) {
				c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
				c.Labels = map[string]string{"a": "b"}
			})
			pod := kit.RunPod(t, n)
			running := pod.Run(testimage.Busybox, []string{"sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done"})
			created := pod.Create(testimage.Busybox, kit.Sleep())
			exited := pod.Run(testimage.Busybox, []string{"sh", "-c", "exit 9"})
			inShared := shared.Run(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD })
			exited.Exited()
			ends := pod.Run(testimage.Busybox, []string{"sh", "-c", "while [ ! -e /go ]; do sleep 0.01; done; echo last words; exit 17"})
			running.WaitLog(" 5\n")
			before := state(t, n)
			pids := running.PIDs()

			if err := n.StopDaemon(t.Context(), sig); err != nil {
				t.Fatal(err)
			}
			// While no daemon runs a container ends. Its root is reached through its process: nobody is there to exec.
			end := fmt.Sprintf("/proc/%d/root/go", ends.PIDs()[0])
			if err := n.StartDaemon(t.Context()); err != nil {
				t.Fatalf("%v\n%s", err, n.Log(30))
			}
			if after := state(t, n); after != before {
				t.Errorf("after %v the daemon lists\n%s\nbefore it listed\n%s", sig, after, before)
			}
			if got := running.PIDs(); fmt.Sprint(got[0]) != fmt.Sprint(pids[0]) {
				t.Errorf("processes %v; before %v", got, pids)
			}
			if err := n.StopDaemon(t.Context(), sig); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(end, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			kit.Until(t, func() error { return gone(end) })
			if err := n.StartDaemon(t.Context()); err != nil {
				t.Fatalf("%v\n%s", err, n.Log(30))
			}
			if s := ends.Exited(); s.GetExitCode() != 17 || s.GetReason() != "Error" || s.GetFinishedAt() == 0 {
				t.Errorf("what ended meanwhile: exit code %d, reason %q; want 17, Error", s.GetExitCode(), s.GetReason())
			}
			if got := ends.Text("stdout"); got != "last words\n" {
				t.Errorf("its log: %q", got)
			}
			if got := running.Exec("echo", "still"); got != "still\n" {
				t.Errorf("exec: %q", got)
			}
			inShared.Exec("true")
			created.Start()
			running.Stop(0)
			counting(t, running)
			running.Remove()
			if got := shared.Run(testimage.Busybox, []string{"true"}).Exited(); got.GetExitCode() != 0 {
				t.Errorf("a new container: exit code %d", got.GetExitCode())
			}
		})
	}
}

// gone gives an error while path can be reached.
func gone(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s is still there", path)
	}
	return nil
}

// counting checks that stdout is 0, 1, 2, … with neither gap nor repetition, and gives how many lines there are.
func counting(t *testing.T, c *kit.Container) int {
	t.Helper()
	n := 0
	for _, l := range c.Log() {
		if l.Stream != "stdout" {
			continue
		}
		if l.Text != fmt.Sprint(n) {
			t.Errorf("line %d of the log is %q", n, l.Text)
			return n
		}
		n++
	}
	if n == 0 {
		t.Error("the log is empty")
	}
	return n
}

func TestKeepersDie(t *testing.T) {
	n := node(t)
	for _, role := range []string{"younger", "elder"} {
		t.Run(role, func(t *testing.T) {
			pod := kit.RunPod(t, n)
			c := pod.Run(testimage.Busybox, []string{"sh", "-c", "i=0; while [ ! -e /go ]; do echo $i; i=$((i+1)); done; exit 23"})
			tty := pod.Run(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) { c.Tty = true })
			c.WaitLog(" 100\n")
			for range 5 {
				pid, err := n.KillKeeper(role)
				if err != nil {
					t.Fatal(err)
				}
				kit.Until(t, func() error {
					if now := n.Keepers(); len(now) != 2 || now[role] == pid {
						return fmt.Errorf("keepers %v; killed %d", now, pid)
					}
					return nil
				})
				if got := c.Exec("echo", "alive"); got != "alive\n" {
					t.Errorf("exec: %q", got)
				}
				tty.Exec("true")
			}
			if _, err := c.ExecSync(10, "touch", "/go"); err != nil { // which may be killed with the container it ends
				t.Error(err)
			}
			if s := c.Exited(); s.GetExitCode() != 23 {
				t.Errorf("exit code %d, reason %q; want 23", s.GetExitCode(), s.GetReason())
			}
			counting(t, c)
			if s := pod.Run(testimage.Busybox, []string{"sh", "-c", "exit 4"}).Exited(); s.GetExitCode() != 4 {
				t.Errorf("a new container: exit code %d", s.GetExitCode())
			}
		})
	}
}

// Both keepers are killed at once: nobody takes the output of what they kept, so it is ended, with the status that the kernel tells of what ended
// by itself, and everything goes on with a new pair.
func TestBothKeepersKilled(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	shared := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD })
	inShared := func(c *cri.ContainerConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD }
	runs := pod.Run(testimage.Busybox, []string{"sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done"})
	ends := pod.Run(testimage.Busybox, []string{"sh", "-c", "while [ ! -e /go ]; do sleep 0.01; done; exit 7"})
	other := shared.Run(testimage.Busybox, kit.Sleep(), inShared)
	exited := pod.Run(testimage.Busybox, []string{"sh", "-c", "exit 9"})
	exited.Exited()
	runs.WaitLog(" 5\n")
	exec := make(chan error, 1)
	go func() {
		_, err := runs.ExecSync(60, "sleep", "3600")
		exec <- err
	}()
	kit.Until(t, func() error {
		if pids := runs.PIDs(); len(pids) < 3 { // the shell, its sleep, the exec's
			return fmt.Errorf("processes %v", pids)
		}
		return nil
	})
	first := ends.PIDs()[0]
	keepers := n.Keepers()
	for _, pid := range keepers {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/root/go", first), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	kit.Until(t, func() error { // a zombie, since its parent sleeps
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", first))
		if err == nil && !strings.Contains(string(stat), ") Z ") {
			err = fmt.Errorf("it still runs: %s", stat)
		}
		return err
	})
	for _, pid := range keepers {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	told := kernelTellsExits(t)
	for _, c := range []struct {
		what string
		*kit.Container
		code int32
	}{{"what ran", runs, 137}, {"what ran in the shared pid namespace", other, 137}, {"what had ended", ends, 7}} {
		want := c.code
		if !told {
			want = 255
		}
		if s := c.Exited(); s.GetExitCode() != want {
			t.Errorf("%s: exit code %d, reason %q; want %d", c.what, s.GetExitCode(), s.GetReason(), want)
		}
	}
	if s := exited.Status(); s.GetExitCode() != 9 {
		t.Errorf("what was on record: exit code %d", s.GetExitCode())
	}
	if err := <-exec; errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded {
		t.Errorf("exec in what ran: %v", err)
	}
	counting(t, runs)
	for _, p := range []*kit.Pod{pod, shared} {
		if got := p.Output(testimage.Busybox, []string{"echo", "anew"}); got != "anew\n" {
			t.Errorf("a new container wrote %q", got)
		}
	}
	if now := n.Keepers(); len(now) != 2 {
		t.Errorf("keepers %v", now)
	}
}

// kernelTellsExits says whether a pidfd tells the status of somebody else's child (PIDFD_INFO_EXIT, Linux 6.15).
func kernelTellsExits(t *testing.T) bool {
	t.Helper()
	var u unix.Utsname
	var major, minor int
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major > 6 || major == 6 && minor >= 15
}

// A log of five million lines is complete and in order, also when the younger keeper and the daemon are killed meanwhile.
func TestLongLog(t *testing.T) {
	n := node(t)
	lines := 5_000_000
	if testing.Short() {
		lines = 200_000
	}
	pod := kit.RunPod(t, n)
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprintf("kill=%v", kill), func(t *testing.T) {
			c := pod.Run(testimage.Busybox, []string{"probe", "lines", fmt.Sprint(lines)})
			if kill {
				for i := range 3 {
					c.WaitLog(fmt.Sprintf(" %d\n", lines/8*(i+1)))
					kit.Until(t, func() error {
						_, err := n.KillKeeper("younger")
						return err
					})
				}
				if err := n.Restart(context.WithoutCancel(t.Context()), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			if s := c.Exited(); s.GetExitCode() != 0 {
				t.Errorf("exit code %d, reason %q", s.GetExitCode(), s.GetReason())
			}
			checkLong(t, c.LogPath(), lines)
		})
	}
}
