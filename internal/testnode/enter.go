// SPDX-License-Identifier: Apache-2.0

// Package testnode brings up a throw-away node: a shim daemon and its keepers that can reach nothing of this machine, with
// a registry on loopback that serves images made from local files, for tests, the demo, benchmarks and conformance runs.
//
// A process enters once, from TestMain (Main) or from a command (Enter): it starts itself again in namespaces of its own
// (network, mount, pid, ipc, uts), so the registry, the clients and the pods of a test are all on the same wire and the
// end of the process is the end of everything in it. There it starts nodes (Start). Neither mounts below /sys/fs/cgroup
// nor global sysctls are touched; control groups live under one parent with the node's own name.
//
// The layers outside in: this process prepares what needs the outside (builds, tools) and removes the remains; process 1
// of the new pid namespace mounts, reaps, and passes signals on; its child is the test.
package testnode

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Environment variables between the layers.
const (
	envStage = "SHIM_NODE_STAGE" // stageInit or stageInside
	envDir   = "SHIM_NODE_DIR"   // the node's directory, made by the outermost layer
	// EnvKeep keeps the node's directory when it is set: daemon log, pod logs, state.
	EnvKeep = "SHIM_NODE_KEEP"

	stageInit   = "init"
	stageInside = "inside"
)

// Main is for TestMain: os.Exit(testnode.Main(m)). Without root the tests run where they are; those that call Need skip.
func Main(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run()
	}
	code, inside, err := Enter()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if inside {
		return m.Run()
	}
	return code
}

// Need skips a test that is not inside a node.
func Need(t testing.TB) {
	t.Helper()
	if !Inside() {
		t.Skip("needs root: a test node is made of namespaces")
	}
}

// Inside says whether this process is inside.
func Inside() bool { return os.Getenv(envStage) == stageInside }

// Enter starts the running program again inside and waits for its end: then code is its exit status. In the inner
// process it returns at once with inside true.
func Enter() (code int, inside bool, err error) {
	switch os.Getenv(envStage) {
	case stageInside:
		return 0, true, nil
	case stageInit:
		runtime.LockOSThread() // the parent-death signal and mounts are the thread's
		code, err = beInit()
		return code, false, err
	}
	// Nodes stand on a disk: /tmp may be a tmpfs, where an overlay's upper layer works but is not what a node has.
	base := os.Getenv("SHIM_NODE_BASE")
	if base == "" {
		base = "/var/tmp"
	}
	dir, err := os.MkdirTemp(base, "shim-node-")
	if err != nil {
		return 0, false, fmt.Errorf("make node directory: %w", err)
	}
	defer func() { err = errors.Join(err, remains(dir)) }()
	if err := prepare(dir); err != nil {
		return 0, false, err
	}
	code, err = startInit(dir)
	return code, false, err
}

// startInit runs process 1 of the node and passes signals to it.
func startInit(dir string) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), envStage+"="+stageInit, envDir+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start node: %w", err)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	defer signal.Stop(signals)
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // gone is fine
		}
	}()
	err := cmd.Wait()
	var status *exec.ExitError
	if errors.As(err, &status) {
		return max(status.ExitCode(), 1), nil
	}
	return 0, err
}

// beInit is process 1: it makes the node's own view of the machine, starts the program once more, reaps whatever dies and
// ends with the program. The kernel then kills the rest.
func beInit() (int, error) {
	if err := view(); err != nil {
		return 0, err
	}
	if err := loopback(); err != nil {
		return 0, err
	}
	if os.Getenv(EnvCgroupNS) != "" {
		if err := ownCgroups(); err != nil {
			return 0, err
		}
	}
	if err := os.Setenv(envStage, stageInside); err != nil {
		return 0, err
	}
	self, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		return 0, fmt.Errorf("start node: %w", err)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	go func() {
		for s := range signals {
			if n, ok := s.(syscall.Signal); ok {
				_ = unix.Kill(self, n) // gone is fine
			}
		}
	}()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, fmt.Errorf("wait for node: %w", err)
		case pid == self && status.Signaled():
			return 128 + int(status.Signal()), nil
		case pid == self:
			return status.ExitStatus(), nil
		}
	}
}

// view makes the mounts of the node. The tree still follows the machine's mounts, but nothing goes the other way, and
// inside it is shared, as a host's is.
func view() error {
	steps := []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{"", "/", "", unix.MS_REC | unix.MS_SLAVE, ""},
		{"", "/", "", unix.MS_REC | unix.MS_SHARED, ""},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755,size=4g"},
	}
	for _, s := range steps {
		if err := unix.Mount(s.source, s.target, s.kind, s.flags, s.data); err != nil { //nolint:forbidigo // host paths, before any container exists
			return fmt.Errorf("mount %s: %w", s.target, err)
		}
	}
	for _, d := range []string{"/run/lock", "/run/netns"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	if err := unix.Sethostname([]byte("shim-node")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return nil
}

// Dir is the directory of this process's node: bin, log, state, temporary files. It goes when the process has ended.
func Dir() string { return os.Getenv(envDir) }

// CgroupParent is the one control group, in every hierarchy, under which everything of this process's nodes lives.
// In a cgroup namespace that is the root.
func CgroupParent() string {
	if os.Getenv(EnvCgroupNS) != "" {
		return "/"
	}
	return "/" + filepath.Base(Dir())
}

// remains removes what the end of the namespaces leaves: control groups and the directory.
func remains(dir string) error {
	var errs []error
	groups, err := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(dir))
	if err != nil {
		return err
	}
	groups = append(groups, "/sys/fs/cgroup/"+filepath.Base(dir)) // the one hierarchy of version 2
	for _, g := range groups {
		errs = append(errs, removeGroups(g))
	}
	if os.Getenv(EnvKeep) != "" {
		fmt.Fprintf(os.Stderr, "node kept in %s\n", dir)
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// removeGroups removes a control group and those below it; none is fine.
func removeGroups(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list control group: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeGroups(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return waitFor(func() error {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("remove control group %s: %w", dir, err)
	})
}

// root is the module's directory, found upwards from the working directory.
func root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if text, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && strings.HasPrefix(string(text), "module crishim.dev\n") {
			return dir, nil
		}
	}
	return "", errors.New("find module crishim.dev: not above the working directory")
}
