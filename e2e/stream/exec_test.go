// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

const (
	stdin  = remotecommand.StreamTypeStdin
	stdout = remotecommand.StreamTypeStdout
	stderr = remotecommand.StreamTypeStderr
	resize = remotecommand.StreamTypeResize
)

func TestExec(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep())

	// A megabyte through stdin and back; the end of stdin reaches the process.
	s := connect(t, execURL(t, c, &cri.ExecRequest{Cmd: []string{"cat"}, Stdin: true, Stdout: true}), stdin, stdout)
	text := strings.Repeat("there and back\n", 70000)
	go func() {
		_, _ = io.WriteString(s.stdin, text)
		_ = s.stdin.Close()
	}()
	if got := all(t, s.stdout); got != text {
		t.Errorf("%d bytes came back of %d", len(got), len(text))
	}
	if got := all(t, s.status); !strings.Contains(got, `"Success"`) {
		t.Errorf("status %s", got)
	}

	s = connect(t, execURL(t, c, &cri.ExecRequest{Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 42"}, Stdout: true, Stderr: true}), stdout, stderr)
	if out, err, status := all(t, s.stdout), all(t, s.stderr), all(t, s.status); out != "out\n" || err != "err\n" || !strings.Contains(status, `"42"`) {
		t.Errorf("stdout %q, stderr %q, status %s", out, err, status)
	}

	// Version 5 has a message that ends stdin.
	for version, input := range map[string][]string{
		"v4.channel.k8s.io": {"\x00hello\n"},
		"v5.channel.k8s.io": {"\x00hello", "\xff\x00"},
	} {
		conn, u, err := dial(execURL(t, c, &cri.ExecRequest{Cmd: []string{"sh", "-c", "read x; echo got $x; exit 7"}, Stdin: true, Stdout: true}))
		if err != nil {
			t.Fatal(err)
		}
		ws, err := socket(conn, u, version)
		if err != nil {
			t.Fatal(err)
		}
		defer ws.Close()
		for _, m := range input {
			if err := websocket.Message.Send(ws, []byte(m)); err != nil {
				t.Fatal(err)
			}
		}
		receive(t, ws, 1, "got hello\n")
		receive(t, ws, 3, `"7"`)
	}
}

// TestExecTerminal has a controlling terminal that takes the sizes of the client's.
func TestExecTerminal(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep())
	s := connect(t, execURL(t, c, &cri.ExecRequest{Cmd: []string{"sh"}, Stdin: true, Stdout: true, Tty: true}), stdin, stdout, resize)
	for _, size := range []string{"132x50", "80x24"} {
		var width, height int
		fmt.Sscanf(size, "%dx%d", &width, &height)
		fmt.Fprintf(s.resize, `{"Width":%d,"Height":%d}`, width, height)
		want := fmt.Sprintf("%d %d", height, width)
		fmt.Fprintf(s.stdin, "until stty size | grep -q '%s'; do :; done; echo now $(stty size) on $(tty)\n", want)
		until(t, s.stdout, "now "+want+" on /dev/pts/")
	}
	// What is typed to end a line reaches the foreground: the signal of the terminal, then the end.
	fmt.Fprint(s.stdin, "trap 'echo interrupted' INT; sleep 600\n")
	until(t, s.stdout, "sleep 600")
	kit.Until(t, func() error {
		if out := c.Exec("ps"); !strings.Contains(out, "sleep 600") {
			return fmt.Errorf("no sleep among\n%s", out)
		}
		return nil
	})
	fmt.Fprint(s.stdin, "\x03")
	until(t, s.stdout, "interrupted")
	fmt.Fprint(s.stdin, "exit 5\n")
	if got := all(t, s.status); !strings.Contains(got, `"5"`) {
		t.Errorf("status %s", got)
	}
}

// TestAttach: several clients at once see the same output, any of them may type, and one that leaves takes nothing along.
func TestAttach(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, []string{"sh", "-c", "while read l; do echo \"got $l\"; echo \"err $l\" >&2; done"}, func(c *cri.ContainerConfig) { c.Stdin = true })
	request := func() string {
		return attachURL(t, c, &cri.AttachRequest{Stdin: true, Stdout: true, Stderr: true})
	}
	first, second := connect(t, request(), stdin, stdout, stderr), connect(t, request(), stdin, stdout, stderr)
	greet := func(from *session, text string, to ...*session) {
		t.Helper()
		// Output from before an attach is in the log alone: type until it comes.
		if _, err := io.WriteString(from.stdin, text+"\n"); err != nil {
			t.Fatal(err)
		}
		for _, s := range to {
			until(t, s.stdout, "got "+text)
			until(t, s.stderr, "err "+text)
		}
	}
	ready(t, c, first, second)
	greet(first, "one", first, second)
	greet(second, "two", first, second)
	_ = first.conn.Close()
	greet(second, "three", second)
	if s := c.Status(); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after one has left: %v", s.State)
	}
	c.WaitLog("got three")
	third := connect(t, request(), stdin, stdout, stderr)
	ready(t, c, third)
	greet(third, "four", second, third)
	c.Stop(0)
	for _, s := range []*session{second, third} {
		_ = all(t, s.stdout)
	}
}

// ready types until each client has seen something: an attach begins at some moment after its connection is there.
func ready(t *testing.T, c *kit.Container, clients ...*session) {
	t.Helper()
	for _, s := range clients {
		seen := make(chan struct{})
		go func() {
			defer close(seen)
			_, _ = s.stdout.Read(make([]byte, 1))
		}()
		kit.Until(t, func() error {
			if _, err := io.WriteString(s.stdin, "-\n"); err != nil {
				t.Fatal(err)
			}
			select {
			case <-seen:
				return nil
			default:
				return fmt.Errorf("client of %s sees nothing", c.ID)
			}
		})
	}
}

// TestAttachStdinOnce: with stdin_once the end of the client's input is the end of the container's.
func TestAttachStdinOnce(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	c := pod.Run(testimage.Busybox, []string{"sh", "-c", "cat; echo end"}, func(c *cri.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
	s := connect(t, attachURL(t, c, &cri.AttachRequest{Stdin: true, Stdout: true}), stdin, stdout)
	_, _ = io.WriteString(s.stdin, "text\n")
	_ = s.stdin.Close()
	if st := c.Exited(); st.ExitCode != 0 || c.Text("stdout") != "text\nend\n" {
		t.Errorf("exit code %d, log %q", st.ExitCode, c.Text("stdout"))
	}
}

// TestAttachTerminal resizes the container's own terminal, and leaves it with the process when the client goes.
func TestAttachTerminal(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, []string{"sh"}, func(c *cri.ContainerConfig) { c.Stdin, c.Tty = true, true })
	for _, size := range [][2]int{{120, 40}, {80, 25}} {
		s := connect(t, attachURL(t, c, &cri.AttachRequest{Stdin: true, Stdout: true, Tty: true}), stdin, stdout, resize)
		fmt.Fprintf(s.resize, `{"Width":%d,"Height":%d}`, size[0], size[1])
		want := fmt.Sprintf("%d %d", size[1], size[0])
		fmt.Fprintf(s.stdin, "until stty size | grep -q '%s'; do :; done; echo now $(stty size)\n", want)
		until(t, s.stdout, "now "+want)
		_ = s.conn.Close()
		if st := c.Status(); st.State != cri.ContainerState_CONTAINER_RUNNING {
			t.Fatalf("after the client left: %v", st.State)
		}
	}
}

// TestURLsWorkOnce: a URL is good for one connection, whatever comes of that.
func TestURLsWorkOnce(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep())
	u := execURL(t, c, &cri.ExecRequest{Cmd: []string{"echo", "once"}, Stdout: true})
	if !strings.HasPrefix(u, "http://127.0.0.1:") {
		t.Errorf("URL %s", u) // KUBELET.md 34
	}
	if got := all(t, connect(t, u, stdout).stdout); got != "once\n" {
		t.Errorf("first use: %q", got)
	}
	resp, err := http.Get(u) //nolint:noctx // the daemon's own server
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("second use: %s", resp.Status)
	}
}

// TestKubelet34_StreamingOnLoopbackLargeMessages: streaming listens on loopback by default, and messages of 16 MiB pass either way.
func TestKubelet34_StreamingOnLoopbackLargeMessages(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	c := pod.Run(testimage.Busybox, kit.Sleep())
	if u := execURL(t, c, &cri.ExecRequest{Cmd: []string{"true"}, Stdout: true}); !strings.HasPrefix(u, "http://127.0.0.1:") {
		t.Errorf("URL %s", u)
	}
	const big = 15 << 20
	config := kit.ContainerConfig(t, testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) {
		c.Annotations = map[string]string{"big": strings.Repeat("x", big)}
	})
	made, err := pod.TryCreate(config)
	if err != nil {
		t.Fatalf("create with an annotation of 15 MiB: %v", err)
	}
	s, err := n.Runtime.ContainerStatus(kit.Context(t), &cri.ContainerStatusRequest{ContainerId: made.ContainerId})
	if err != nil || len(s.GetStatus().GetAnnotations()["big"]) != big {
		t.Errorf("status: %d bytes, %v", len(s.GetStatus().GetAnnotations()["big"]), err)
	}
}

// TestCrictl is the client that administrators use, over both of its transports.
func TestCrictl(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep())
	for _, transport := range []string{"spdy", "websocket"} {
		if out, err := n.Crictl(kit.Context(t), "exec", "--transport", transport, c.ID, "echo", "hello"); err != nil || out != "hello\n" {
			t.Errorf("%s: %q, %v", transport, out, err)
		}
		if _, err := n.Crictl(kit.Context(t), "exec", "--transport", transport, c.ID, "sh", "-c", "exit 9"); err == nil || !strings.Contains(err.Error(), "exit code 9") {
			t.Errorf("%s: exit code 9: %v", transport, err)
		}
	}
}
