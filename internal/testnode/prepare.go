// SPDX-License-Identifier: Apache-2.0

package testnode

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Environment variables that say what a node is made of.
const (
	// EnvBin is a directory with shim and shim-keeper to use; unset, they are built from the sources around.
	EnvBin     = "SHIM_NODE_BIN"
	envCrictl  = "SHIM_NODE_CRICTL"
	envBusybox = "SHIM_NODE_BUSYBOX"
)

// prepare does what needs the outside, in the node's directory: the daemon and the probe built from the sources as they
// are now, the tools fetched. Builds are the Go cache's work, so that a second time is quick.
func prepare(dir string) error {
	module, err := root()
	if err != nil {
		return err
	}
	for _, d := range []string{"bin", "tmp", "log"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return fmt.Errorf("make node directory: %w", err)
		}
	}
	targets := []string{"./internal/testnode/probe"}
	if os.Getenv(EnvBin) == "" {
		targets = append(targets, "./cmd/...")
	}
	args := []string{"build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "bin") + "/"}
	if os.Getenv("GOCOVERDIR") != "" {
		args = append(args, "-cover", "-coverpkg=crishim.dev/...")
	}
	build := exec.Command("go", append(args, targets...)...)
	build.Dir = module
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build node: %w\n%s", err, out)
	}
	if given := os.Getenv(EnvBin); given != "" {
		for _, name := range []string{"shim", "shim-keeper"} {
			if err := os.Symlink(filepath.Join(given, name), filepath.Join(dir, "bin", name)); err != nil {
				return fmt.Errorf("link given program: %w", err)
			}
		}
	}
	for name, variable := range map[string]string{"crictl": envCrictl, "busybox": envBusybox} {
		cmd := exec.Command(filepath.Join(module, "hack/tool"), name)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("get tool %s: %w", name, err)
		}
		if err := os.Setenv(variable, strings.TrimSpace(string(out))); err != nil {
			return err
		}
	}
	return os.Setenv("TMPDIR", filepath.Join(dir, "tmp"))
}

// waitFor calls try until it gives nil, for ten seconds at most.
func waitFor(try func() error) error {
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if err = try(); err == nil {
			return nil
		}
		<-time.After(5 * time.Millisecond)
	}
	return errors.Join(errors.New("wait: ten seconds passed"), err)
}
