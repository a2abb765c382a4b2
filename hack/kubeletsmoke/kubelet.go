// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/testnode"
)

// kubelet is a running kubelet and the node it works on.
type kubelet struct {
	node   *testnode.Node
	dir    string
	cmd    *exec.Cmd
	exited chan struct{}
	client *http.Client
}

// nodeName is the kubelet's name for the node; static pods carry it as a suffix.
const nodeName = "smoke"

// startKubelet shields the sysctls, writes the configuration and starts the program.
func startKubelet(ctx context.Context, n *testnode.Node) (*kubelet, error) {
	if os.Getenv("KUBELET") == "" {
		return nil, errors.New("KUBELET names no program; use hack/kubelet-smoke")
	}
	k := &kubelet{node: n, dir: filepath.Join(testnode.Dir(), "kubelet")}
	k.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, // its certificate is its own, on loopback
	}}
	for _, d := range []string{"manifests", "root", "certs", "logs", "shield"} {
		if err := os.MkdirAll(filepath.Join(k.dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("make directory: %w", err)
		}
	}
	if err := k.shield(); err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
containerRuntimeEndpoint: unix://%s
enforceNodeAllocatable: [pods]
evictionHard: {memory.available: 1Mi, nodefs.available: 1Mi, imagefs.available: 1Mi}
failCgroupV1: false
failSwapOn: false
fileCheckFrequency: 1s
healthzBindAddress: 127.0.0.1
makeIPTablesUtilChains: false
podLogsDir: %s
readOnlyPort: 0
resolvConf: /etc/resolv.conf
staticPodPath: %s
syncFrequency: 2s
volumePluginDir: %s
`, n.Socket, k.path("logs"), k.path("manifests"), k.path("plugins"))
	if err := os.WriteFile(k.path("config.yaml"), []byte(config), 0o600); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	return k, k.start(ctx)
}

// start starts the program on the configuration that is there.
func (k *kubelet) start(ctx context.Context) error {
	log, err := os.OpenFile(k.path("kubelet.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("make log: %w", err)
	}
	defer log.Close()
	k.exited = make(chan struct{})
	k.cmd = exec.CommandContext(ctx, os.Getenv("KUBELET"), "--config="+k.path("config.yaml"), "--root-dir="+k.path("root"),
		"--cert-dir="+k.path("certs"), "--hostname-override="+nodeName, "--node-ip="+testnode.NodeIP, "--v=2")
	k.cmd.Stdout, k.cmd.Stderr = log, log
	k.cmd.Cancel = func() error { return k.cmd.Process.Signal(unix.SIGTERM) }
	if err := k.cmd.Start(); err != nil {
		return fmt.Errorf("start kubelet: %w", err)
	}
	cmd, exited := k.cmd, k.exited
	go func() {
		_ = cmd.Wait() // the state is read from cmd.ProcessState
		close(exited)
	}()
	return nil
}

func (k *kubelet) path(name string) string { return filepath.Join(k.dir, name) }

// shield binds private files over the sysctls of the whole machine that a kubelet sets, in this mount namespace.
func (k *kubelet) shield() error {
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"} {
		source, target := k.path("shield/"+strings.ReplaceAll(name, "/", "-")), "/proc/sys/"+name
		value, err := os.ReadFile(target)
		if err != nil {
			return fmt.Errorf("shield sysctl: %w", err)
		}
		if err := os.WriteFile(source, value, 0o644); err != nil {
			return fmt.Errorf("shield sysctl: %w", err)
		}
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil { //nolint:forbidigo // host path in a mount namespace of our own
			return fmt.Errorf("shield sysctl %s: %w", name, err)
		}
	}
	return nil
}

// stop ends the kubelet.
func (k *kubelet) stop() error {
	if err := k.cmd.Process.Signal(unix.SIGTERM); err != nil {
		return fmt.Errorf("stop kubelet: %w", err)
	}
	select {
	case <-k.exited:
		return nil
	case <-time.After(20 * time.Second):
		return errors.Join(errors.New("stop kubelet: it does not end"), k.cmd.Process.Kill())
	}
}

// call asks the kubelet's API and gives the body of a good answer.
func (k *kubelet) call(ctx context.Context, method, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://127.0.0.1:10250"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, body)
	}
	return string(body), err
}

// until repeats try for a while.
func (k *kubelet) until(ctx context.Context, within time.Duration, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("within %v: %w", within, err)
		case <-k.exited:
			return fmt.Errorf("kubelet ended (%v): %w", k.cmd.ProcessState, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// tail is the end of the kubelet's log.
func (k *kubelet) tail(lines int) string {
	text, err := os.ReadFile(k.path("kubelet.log"))
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
