// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"crishim.dev/cni/builtin"
	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/internal/errs"
	"crishim.dev/internal/thread"
)

// byDaemon is set in the environment of the plugins that the daemon runs, to where the daemon's state is. A plugin that runs one of ours
// passes it on; without it the caller is another runtime, and what it gets is not ours to clear up.
const byDaemon = "SHIM_CNI"

// toPlugins is the value of byDaemon; fromDaemon reads it and says whether it is set.
func (o *Options) toPlugins() string {
	return strings.Join([]string{o.StateDir, o.CacheDir, o.LastingDir}, string(filepath.ListSeparator))
}

func (o *Options) fromDaemon(value string) bool {
	dirs := filepath.SplitList(value)
	if len(dirs) != 3 {
		return false
	}
	o.StateDir, o.CacheDir, o.LastingDir = dirs[0], dirs[1], dirs[2]
	return true
}

// Types lists the plugins that are built in, and that Plugin can be.
func Types() []string { return builtin.Types() }

// Plugin is the whole of a process that was started as a CNI plugin of that type: it reads the environment and standard input, does what it
// is told, and writes the result or the error to standard output. It shares leases and port claims with the daemon. The result is the exit
// status.
func Plugin(o Options, typ string) int {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	p := &plugin{foreign: !o.fromDaemon(os.Getenv(byDaemon)), typ: typ}
	p.opts = o
	funcs := skel.CNIFuncs{Add: p.do("ADD"), Del: p.do("DEL"), Check: p.do("CHECK"), GC: p.do("GC"), Status: p.do("STATUS")}
	about := "CNI plugin " + typ + " of shim"
	if e := skel.PluginMainFuncsWithError(funcs, version.All, about); e != nil {
		_ = e.Print()
		return 1
	}
	return 0
}

type plugin struct {
	opts    Options
	foreign bool // the caller is another runtime
	typ     string
}

func (p *plugin) do(verb string) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		err := p.run(verb, args)
		var known *types.Error
		switch {
		case err == nil || errors.As(err, &known):
			return err
		case errors.Is(err, builtin.ErrNotUnderstood), errors.Is(err, errs.Invalid):
			return types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
		case errors.Is(err, errs.Exhausted), errors.Is(err, errs.Unavailable):
			return types.NewError(types.ErrTryAgainLater, err.Error(), "")
		}
		return types.NewError(types.ErrInternal, err.Error(), "")
	}
}

func (p *plugin) run(verb string, args *skel.CmdArgs) error {
	var host *builtin.Host
	host, err := builtin.Open(builtin.Options{
		StateDir: p.opts.StateDir, Foreign: p.foreign, Log: p.opts.Log,
		Live: func(id string) bool {
			return records{p.opts.CacheDir, p.opts.LastingDir}.has(id) || host.HasLease(id)
		},
	})
	if err != nil {
		return err
	}
	defer host.Close()
	ctx := context.Background()
	run := &runner{dirs: filepath.SplitList(args.Path), timeout: p.opts.Timeout, log: p.opts.Log}
	call := &builtin.Call{Command: verb, Container: args.ContainerID, NetNS: args.Netns, IfName: args.IfName, Args: args.Args, Config: args.StdinData}
	call.Delegate = func(ctx context.Context, typ string, config []byte) ([]byte, error) {
		path, err := findBinary(typ, run.dirs)
		if err != nil {
			return nil, err
		}
		return run.runBinary(ctx, path, config, withCommand(os.Environ(), call.Command))
	}
	call.Sysctl = func(path, _ string) error {
		return errs.Newf(errs.NotFound, "set sysctl %s: no network namespace", path)
	}
	if args.Netns != "" {
		in, err := enter(args.Netns)
		if err != nil && verb != "DEL" { // a DEL works without
			return err
		}
		if err == nil {
			defer in.close()
			call.Pod, call.Sysctl = in.conn, in.sysctl
		}
	}
	out, err := host.Run(ctx, p.typ, call)
	if err != nil || out == nil {
		return err
	}
	_, err = os.Stdout.Write(append(out, '\n'))
	return err
}

// inside is a network namespace, seen from a process that serves one call and ends. Unlike the daemon it may enter: on threads that are
// thrown away.
type inside struct {
	path   string
	socket *os.File
	conn   *rtnl.Conn
}

func enter(path string) (*inside, error) {
	in := &inside{path: path}
	err := in.do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err == nil {
			in.socket = os.NewFile(uintptr(fd), "netlink")
		}
		return err
	})
	if err == nil {
		in.conn, err = rtnl.Wrap(in.socket)
	}
	if err != nil {
		return nil, fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return in, nil
}

func (in *inside) close() { _ = in.socket.Close() }

// sysctl writes a file below /proc/sys; path is relative to that.
func (in *inside) sysctl(path, value string) error {
	if !strings.HasPrefix(path, "net/") || strings.Contains(path, "..") {
		return errs.Newf(errs.Invalid, "sysctl %s is not the namespace's own", path)
	}
	return in.do(func() error { return os.WriteFile("/proc/sys/"+path, []byte(value), 0) })
}

// do runs f on a thread inside the namespace.
func (in *inside) do(f func() error) (err error) {
	thread.Discard(func() {
		var ns *os.File
		if ns, err = os.Open(in.path); err != nil {
			return
		}
		defer ns.Close()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err == nil {
			err = f()
		}
	})
	return err
}

// Install links the names of the built-in plugins that dir lacks to the program, for plugins that run others (flannel, multus). A name that
// is taken stays as it is. It gives the names that were linked.
func Install(program, dir string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("install plugins: %w", err)
	}
	var made []string
	for _, typ := range Types() {
		err := os.Symlink(program, filepath.Join(dir, typ))
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return made, fmt.Errorf("install plugins: %w", err)
		}
		made = append(made, typ)
	}
	return made, nil
}
