// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

func TestExecSync(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep())
	r, err := c.ExecSync(10, "sh", "-c", "echo out; echo err >&2; exit 42")
	if err != nil || r.GetExitCode() != 42 || string(r.GetStdout()) != "out\n" || string(r.GetStderr()) != "err\n" {
		t.Errorf("exec: %v, %v", r, err)
	}
	r, err = c.ExecSync(10, "probe", "die", "9")
	if err != nil || r.GetExitCode() != 137 {
		t.Errorf("exec of one that is killed: %v, %v; want 137", r, err)
	}
	_, err = c.ExecSync(10, "/no/such/program")
	if err == nil || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("exec of what is not there: %v", err)
	}
	_, err = c.ExecSync(10)
	wantCode(t, err, codes.InvalidArgument)
	before := c.PIDs()
	for range 20 {
		c.Exec("true")
	}
	kit.Until(t, func() error {
		if after := c.PIDs(); len(after) != len(before) {
			return fmt.Errorf("processes %v; before the execs %v", after, before)
		}
		return nil
	})
	c.Stop(0)
	_, err = c.ExecSync(10, "true")
	wantCode(t, err, codes.FailedPrecondition)
}

// Output of 16 MiB is the limit; the daemon must neither grow with what is beyond nor hang.
func TestExecSyncOutputIsCapped(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep())
	r, err := c.ExecSync(0, "sh", "-c", "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2")
	if err != nil || len(r.GetStdout()) != 1000000 || len(r.GetStderr()) != 1000000 {
		t.Errorf("a megabyte each: %d, %d, %v", len(r.GetStdout()), len(r.GetStderr()), err)
	}
	r, err = c.ExecSync(0, "sh", "-c", "head -c 100000000 /dev/zero")
	if err == nil && (len(r.GetStdout()) > 16<<20 || len(r.GetStdout()) < 15<<20) {
		t.Errorf("100 MB: %d bytes came; want about 16 MiB at most", len(r.GetStdout()))
	}
	c.Exec("true")
}

func TestExecTimeoutKillsWhatEscaped(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep())
	began := time.Now()
	_, err := c.ExecSync(1, "probe", "escape")
	wantCode(t, err, codes.DeadlineExceeded)
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("a timeout of one second took %v", took)
	}
	kit.Until(t, func() error {
		for _, pid := range c.PIDs() {
			if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.Contains(string(args), "trap '' HUP TERM") {
				return fmt.Errorf("process %d, which left the session, still runs", pid)
			}
		}
		return nil
	})
}

func TestLogPartialLines(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, []string{"probe", "lines", "2", "40000"})
	c.Exited()
	var lengths []string
	for _, l := range c.Log() {
		lengths = append(lengths, fmt.Sprintf("%d%v", len(l.Text), l.Full))
	}
	if got, want := strings.Join(lengths, " "), "16384false 16384false 7232true 16384false 16384false 7232true"; got != want {
		t.Errorf("lines of 40000 bytes became %s; want %s", got, want)
	}
}

func TestLogStreams(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, []string{"probe", "both", "1000"})
	c.Exited()
	for stream, prefix := range map[string]string{"stdout": "out", "stderr": "err"} {
		var want strings.Builder
		for i := range 1000 {
			fmt.Fprintf(&want, "%s %d\n", prefix, i)
		}
		if got := c.Text(stream); got != want.String() {
			t.Errorf("%s has %d bytes; want %d", stream, len(got), want.Len())
		}
	}
	last := time.Time{}
	for _, l := range c.Log() {
		if l.Time.Before(last.Add(-time.Second)) {
			t.Errorf("time goes back from %v to %v", last, l.Time)
		}
		last = l.Time
	}
	end := kit.RunPod(t, n).Run(testimage.Busybox, []string{"printf", "no newline"})
	end.Exited()
	if got := end.Log(); len(got) != 1 || got[0].Text != "no newline" {
		t.Errorf("a last line without its end: %v", got)
	}
}

func TestNoLogPathNoLog(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) { c.LogDirectory = "" })
	c := pod.Run(testimage.Busybox, []string{"probe", "lines", "100000"})
	if s := c.Exited(); s.GetExitCode() != 0 || s.GetLogPath() != "" {
		t.Errorf("without a log directory: exit code %d, log path %q", s.GetExitCode(), s.GetLogPath())
	}
}

func TestCrictl(t *testing.T) {
	n := node(t)
	ctx := kit.Context(t)
	dir := t.TempDir()
	name := kit.Unique(t)
	write := func(file, text string) string {
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pod := write("pod.json", fmt.Sprintf(`{"metadata": {"name": %q, "namespace": "e2e", "uid": "u"}, "log_directory": %q, "linux": {}}`, name, dir))
	container := write("container.json", fmt.Sprintf(`{"metadata": {"name": "c"}, "image": {"image": %q}, "command": ["sh", "-c", "echo hello; sleep 600"], "log_path": "c.log", "linux": {}}`, testimage.Busybox))
	run := func(args ...string) string {
		t.Helper()
		out, err := n.Crictl(ctx, args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	sandbox := run("runp", pod)
	id := run("create", sandbox, container, pod)
	run("start", id)
	if got := run("exec", "--sync", id, "echo", "from exec"); got != "from exec" {
		t.Errorf("exec --sync: %q", got)
	}
	if got := run("exec", id, "echo", "streamed"); got != "streamed" {
		t.Errorf("exec: %q", got)
	}
	kit.Until(t, func() error {
		if got := run("logs", id); got != "hello" {
			return fmt.Errorf("logs: %q", got)
		}
		return nil
	})
	for _, args := range [][]string{{"ps", "-o", "json"}, {"pods"}, {"images"}, {"inspect", id}, {"inspectp", sandbox}, {"inspecti", testimage.Busybox}, {"stats", "-o", "json", id}, {"statsp"}, {"info"}, {"imagefsinfo"}, {"version"}} {
		if out := run(args...); out == "" {
			t.Errorf("crictl %q prints nothing", args)
		}
	}
	run("stop", id)
	run("rm", id)
	run("stopp", sandbox)
	run("rmp", sandbox)
}
