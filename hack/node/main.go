// SPDX-License-Identifier: Apache-2.0

// Command node brings up a throw-away node, runs a command on it, and takes everything down again:
//
//	go run ./hack/node bash
//	go run ./hack/node crictl info
//
// The command finds the node by its environment (testnode.Node.Env): crictl is in PATH and knows the socket. The exit
// status is the command's; with -strict it is 1 as well when anything is left behind once all pods are removed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"crishim.dev/internal/testnode"
)

// options are the flags.
type options struct {
	strict, verbose, empty bool
	config                 string
	command                []string
}

func main() {
	var o options
	flag.BoolVar(&o.strict, "strict", false, "fail when the node is not clean at the end")
	flag.BoolVar(&o.verbose, "v", false, "say what happens")
	flag.BoolVar(&o.empty, "empty", false, "no images in the registry")
	flag.StringVar(&o.config, "config", "", "TOML that overrides the daemon's configuration")
	flag.Parse()
	o.command = flag.Args()
	if len(o.command) == 0 {
		fmt.Fprintln(os.Stderr, "usage: node [flags] COMMAND [ARGUMENT…]")
		os.Exit(2)
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "node: run as root: a node is made of namespaces")
		os.Exit(1)
	}
	code, inside, err := testnode.Enter()
	if inside {
		code, err = run(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(max(code, 1))
	}
	os.Exit(code)
}

// run is what happens inside.
func run(o options) (code int, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	signal.Ignore(syscall.SIGINT) // the command gets it too
	opts := testnode.Options{Config: o.config, NoImages: o.empty}
	if o.verbose {
		opts.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	n, err := testnode.Start(ctx, opts)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, n.Close(context.WithoutCancel(ctx))) }()
	cmd := exec.CommandContext(ctx, o.command[0], o.command[1:]...)
	cmd.Env = n.Env()
	for _, e := range cmd.Env { // the command itself is looked for in the node's PATH, too
		if len(e) > 5 && e[:5] == "PATH=" {
			if err := os.Setenv("PATH", e[5:]); err != nil {
				return 1, err
			}
		}
	}
	if path, err := exec.LookPath(o.command[0]); err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 1, err
	}
	code = cmd.ProcessState.ExitCode()
	if left := n.Clean(context.WithoutCancel(ctx)); len(left) > 0 && (o.strict || o.verbose) {
		for _, l := range left {
			fmt.Fprintln(os.Stderr, "left behind:", l)
		}
		if o.strict {
			code = max(code, 1)
		}
	}
	if code != 0 && o.verbose {
		fmt.Fprintln(os.Stderr, n.Log(100))
	}
	return code, nil
}
