// SPDX-License-Identifier: Apache-2.0

// Command kubeletsmoke runs a real kubelet, standalone, against shim on a throw-away node, and checks what only the two
// together can show: a static pod with an init container and a volume runs, answers its probes, is restarted when its
// liveness probe fails, gives its logs and an exec through the kubelet's API, reports stats, and goes away with its file.
//
// The kubelet is the program that $KUBELET names; hack/kubelet-smoke builds it. The node has a cgroup namespace of its own
// and the global sysctls that the kubelet sets are shielded by private files.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"crishim.dev/internal/testnode"
)

func main() {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "kubelet-smoke: run as root: a node is made of namespaces")
		os.Exit(1)
	}
	if err := os.Setenv(testnode.EnvCgroupNS, "1"); err != nil {
		fmt.Fprintln(os.Stderr, "kubelet-smoke:", err)
		os.Exit(1)
	}
	code, inside, err := testnode.Enter()
	if inside {
		err = run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubelet-smoke:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// run is what happens inside.
func run() (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	n, err := testnode.Start(ctx, testnode.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close(context.WithoutCancel(ctx))) }()
	k, err := startKubelet(ctx, n)
	if err != nil {
		return err
	}
	began := time.Now()
	for _, s := range k.steps() {
		at := time.Now()
		if err := s.f(ctx); err != nil {
			return fmt.Errorf("%s: %w\nkubelet's log ends:\n%s\nshim's log ends:\n%s", s.name, err, k.tail(25), n.Log(25))
		}
		fmt.Printf("ok  %-66s %6.1f s\n", s.name, time.Since(at).Seconds())
	}
	if err := k.stop(); err != nil {
		return err
	}
	fmt.Printf("ok  kubelet smoke in %.1f s\n", time.Since(began).Seconds())
	return nil
}
