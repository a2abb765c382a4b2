// SPDX-License-Identifier: Apache-2.0

package testnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// readyWithin is how long the daemon may take from its start to its first answer.
const readyWithin = 20 * time.Second

// daemon is one run of shim serve.
type daemon struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed once cmd.Wait has returned
}

// StartDaemon starts shim serve and waits until it answers.
func (n *Node) StartDaemon(ctx context.Context) error {
	log, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open daemon's log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(Dir(), "bin", "shim"), "serve", "--config", n.path("config.toml"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	n.log.Debug("daemon started", "pid", cmd.Process.Pid)
	d := &daemon{cmd: cmd, exited: make(chan struct{})}
	n.daemon = d
	go func() {
		_ = cmd.Wait() // the state is read from cmd.ProcessState
		close(d.exited)
	}()
	return n.ready(ctx, d)
}

// ready waits for the first answer.
func (n *Node) ready(ctx context.Context, d *daemon) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	n.Conn.ResetConnectBackoff()
	for {
		_, err := n.Runtime.Version(ctx, &cri.VersionRequest{})
		if err == nil {
			return nil
		}
		select {
		case <-d.exited:
			return fmt.Errorf("start daemon: it ended: %v", d.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("start daemon: no answer within %v: %w", readyWithin, err)
		case <-time.After(2 * time.Millisecond):
			n.Conn.ResetConnectBackoff()
		}
	}
}

// DaemonPID is the daemon's pid; 0 when none runs.
func (n *Node) DaemonPID() int {
	if n.daemon == nil {
		return 0
	}
	select {
	case <-n.daemon.exited:
		return 0
	default:
		return n.daemon.cmd.Process.Pid
	}
}

// StopDaemon sends the daemon a signal and waits for its end.
func (n *Node) StopDaemon(ctx context.Context, sig os.Signal) error {
	d := n.daemon
	n.daemon = nil
	if d == nil {
		return nil
	}
	if err := d.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop daemon: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	select {
	case <-d.exited:
		return nil
	case <-ctx.Done():
		_ = d.cmd.Process.Signal(syscall.SIGQUIT) // its stacks go to the log
		<-time.After(time.Second)
		return errors.Join(errors.New("stop daemon: it does not end; stacks are in its log"), d.cmd.Process.Kill())
	}
}

// Restart ends the daemon with a signal (syscall.SIGKILL, syscall.SIGTERM) and starts it again.
func (n *Node) Restart(ctx context.Context, sig os.Signal) error {
	if err := n.StopDaemon(ctx, sig); err != nil {
		return err
	}
	return n.StartDaemon(ctx)
}

// Keepers gives the pids of the node's keepers by role: "elder", "younger". They are told by their arguments and by the
// directory that each holds open; only processes of this pid namespace, which is the test's own, are looked at.
func (n *Node) Keepers() map[string]int {
	out := make(map[string]int)
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return out
	}
	for _, l := range lines {
		text, err := os.ReadFile(l)
		if err != nil {
			continue
		}
		args := strings.Split(string(bytes.TrimRight(text, "\x00")), "\x00")
		if len(args) < 2 || filepath.Base(args[0]) != "shim-keeper" || args[1] != "elder" && args[1] != "younger" {
			continue
		}
		if !n.holdsState(filepath.Dir(l)) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(l))); err == nil {
			out[args[1]] = pid
		}
	}
	return out
}

// KillKeeper kills the keeper of a role at once and gives its pid.
func (n *Node) KillKeeper(role string) (int, error) {
	pid := n.Keepers()[role]
	if pid <= 1 { // 0 would be this process's whole group
		return 0, fmt.Errorf("kill keeper: no %s among %v", role, n.Keepers())
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return pid, fmt.Errorf("kill keeper: %w", err)
	}
	return pid, nil
}

// holdsState says whether a process has the keeper's directory of this node open.
func (n *Node) holdsState(proc string) bool {
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return false
	}
	want, err := os.Stat(filepath.Join(n.State, "keeper"))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if got, err := os.Stat(proc + "/fd/" + fd.Name()); err == nil && os.SameFile(want, got) {
			return true
		}
	}
	return false
}

func (n *Node) logFile() string { return n.path("shim.log") }

// Log gives the last lines of the daemon's log.
func (n *Node) Log(lines int) string {
	text, err := os.ReadFile(n.logFile())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Crictl runs crictl against the node and gives its standard output.
func (n *Node) Crictl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, os.Getenv(envCrictl), args...)
	cmd.Env = n.Env()
	return output(cmd)
}

// Shim runs the shim command, other than serve, with the node's configuration and gives its standard output.
func (n *Node) Shim(ctx context.Context, args ...string) (string, error) {
	return output(n.ShimCommand(ctx, args...))
}

// ShimCommand is such a command, not started yet, for a test that follows it.
func (n *Node) ShimCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(Dir(), "bin", "shim"), append([]string{"--config", n.path("config.toml")}, args...)...)
	cmd.Env = n.Env()
	return cmd
}

// Mirror lets the daemon pull from another registry by its address, over http.
func (n *Node) Mirror(r *Registry) error { return r.writeMirrors(n.path("certs.d"), r.Host) }

// output runs a command and gives what it wrote to its standard output; what it wrote to the other is in the error.
func output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(append([]string{filepath.Base(cmd.Path)}, cmd.Args[1:]...), " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
