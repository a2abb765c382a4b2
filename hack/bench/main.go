// SPDX-License-Identifier: Apache-2.0

// Command bench times a container runtime through its CRI socket, whichever runtime it is: each RPC over pods in
// sequence, pods all at once, listings, exec, log throughput, and what the runtime's own processes cost in memory and
// idle CPU. README.md beside this file says how to point it at containerd.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	socket, image, handler     string
	pods, parallel, execs      int
	logBytes                   int64
	idle                       time.Duration
	comms, dirs                string
	cgroupParent, logDir, json string
	compare                    string
}

func main() {
	var o options
	flag.StringVar(&o.socket, "socket", "/run/shim/shim.sock", "the runtime's CRI socket")
	flag.StringVar(&o.image, "image", "registry.k8s.io/e2e-test-images/busybox:1.29-2", "an image with sh, sleep, true and yes; pulled when missing")
	flag.StringVar(&o.handler, "handler", "", "runtime handler")
	flag.IntVar(&o.pods, "n", 50, "pods in sequence")
	flag.IntVar(&o.parallel, "p", 20, "pods at once; 0: leave it out")
	flag.IntVar(&o.execs, "execs", 100, "execs of true in one container")
	flag.Int64Var(&o.logBytes, "log", 200<<20, "bytes that one container logs; 0: leave it out")
	flag.DurationVar(&o.idle, "idle", 10*time.Second, "how long idle CPU is watched, with 0 and with n pods; 0: leave it out")
	flag.StringVar(&o.comms, "comm", "shim,shim-keeper", "names of the runtime's processes, as in /proc/PID/comm; a name counts for longer ones it begins")
	flag.StringVar(&o.dirs, "tmpfs", "", "directories on tmpfs that count as memory, separated by commas")
	flag.StringVar(&o.cgroupParent, "cgroup-parent", "", "cgroup parent of the pods")
	flag.StringVar(&o.logDir, "logs", os.TempDir(), "directory for the pods' logs")
	flag.StringVar(&o.json, "json", "", "file for the results as JSON")
	flag.StringVar(&o.compare, "compare", "", "measure nothing: print JSON files side by side, \"A1 A2 / B1 B2\"")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if o.compare != "" {
		return compare(o.compare, os.Stdout)
	}
	b, err := connect(ctx, o)
	if err != nil {
		return err
	}
	defer b.conn.Close()
	steps := []struct {
		name string
		f    func(context.Context) error
	}{
		{"pods in sequence", b.sequence}, {"listings, memory and idle CPU", b.standing},
		{"exec", b.exec}, {"pods at once", b.atOnce}, {"log", b.log},
	}
	for _, s := range steps {
		fmt.Fprintf(os.Stderr, "%s…\n", s.name)
		if err := s.f(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	b.result.print(os.Stdout)
	if o.json == "" {
		return nil
	}
	text, err := json.MarshalIndent(b.result, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.json, append(text, '\n'), 0o644)
}

// split reads a list of flags.
func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}
