// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"crishim.dev/cni/builtin"
	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/internal/errs"
	"crishim.dev/internal/progress"
)

// builtinPath is how a built-in plugin is called where libcni wants the path of a binary.
const builtinPath = "built-in:"

// Limits of what is read from a plugin.
const (
	maxStdout = 1 << 20
	maxStderr = 16 << 10
)

// executor runs the plugins of one operation on one pod: libcni's invoke.Exec.
type executor struct {
	version.PluginDecoder
	n     *Network
	pod   *rtnl.Conn // nil: no way into the pod
	later *job       // nil: DEL does everything at once
}

// FindInPath says where a plugin is, without knowing its configuration: that a built-in may not understand it turns out in ExecPlugin.
func (e *executor) FindInPath(typ string, dirs []string) (string, error) {
	if err := validType(typ); err != nil {
		return "", err
	}
	if builtin.Is(typ) && !e.n.binaries {
		return builtinPath + typ, nil
	}
	return findBinary(typ, dirs)
}

// ExecPlugin runs one plugin.
func (e *executor) ExecPlugin(ctx context.Context, path string, config []byte, environ []string) ([]byte, error) {
	typ, ours := strings.CutPrefix(path, builtinPath)
	if !ours {
		return e.n.run.runBinary(ctx, path, config, environ)
	}
	out, err := e.n.host.Run(ctx, typ, e.call(config, environ))
	if !errors.Is(err, builtin.ErrNotUnderstood) {
		return out, err
	}
	binary, e2 := findBinary(typ, e.n.opts.BinDirs)
	if e2 != nil {
		return nil, errs.Newf(errs.Unsupported, "%w, and %w", err, e2)
	}
	return e.n.run.runBinary(ctx, binary, config, environ)
}

func (e *executor) call(config []byte, environ []string) *builtin.Call {
	c := &builtin.Call{Config: config, Pod: e.pod}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		switch k {
		case "CNI_COMMAND":
			c.Command = v
		case "CNI_CONTAINERID":
			c.Container = v
		case "CNI_NETNS":
			c.NetNS = v
		case "CNI_IFNAME":
			c.IfName = v
		case "CNI_ARGS":
			c.Args = v
		}
	}
	c.Delegate = func(ctx context.Context, typ string, config []byte) ([]byte, error) {
		if err := validType(typ); err != nil {
			return nil, err
		}
		path, err := findBinary(typ, e.n.opts.BinDirs)
		if err != nil {
			return nil, err
		}
		return e.n.run.runBinary(ctx, path, config, withCommand(environ, c.Command))
	}
	if e.later != nil {
		c.Later = e.later.add
	}
	return c
}

// withCommand replaces the verb: undoing an ADD is a DEL.
func withCommand(environ []string, command string) []string {
	out := make([]string, 0, len(environ))
	for _, kv := range environ {
		if strings.HasPrefix(kv, "CNI_COMMAND=") {
			kv = "CNI_COMMAND=" + command
		}
		out = append(out, kv)
	}
	return out
}

// findBinary looks for an executable file of that name. The name was checked by validType.
func findBinary(typ string, dirs []string) (string, error) {
	if err := validType(typ); err != nil {
		return "", err
	}
	for _, d := range dirs {
		path := filepath.Join(d, typ)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", errs.Newf(errs.NotFound, "no plugin %q in %s", typ, strings.Join(dirs, ", "))
}

// isSelf says that a plugin's file is a link to this program.
func isSelf(path string) bool {
	self, err := os.Executable()
	if err != nil {
		return false
	}
	to, err := filepath.EvalSymlinks(path)
	return err == nil && to == self
}

// runner runs plugins that are binaries.
type runner struct {
	dirs    []string
	timeout time.Duration
	env     []string // added to the environment of each
	log     *slog.Logger
}

// runBinary runs a plugin until its deadline. It gets a process group of its own, which is killed as a whole: a plugin's child that
// holds the pipes open is ended too.
func (r *runner) runBinary(ctx context.Context, path string, config []byte, environ []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	for try := 0; ; try++ {
		out, err := r.runOnce(ctx, path, config, environ)
		// A plugin that is just being replaced is open for writing.
		if !errors.Is(err, unix.ETXTBSY) || try == 5 {
			return out, err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (r *runner) runOnce(ctx context.Context, path string, config []byte, environ []string) ([]byte, error) {
	verb := ""
	for _, kv := range environ {
		if v, ok := strings.CutPrefix(kv, "CNI_COMMAND="); ok {
			verb = v
		}
	}
	progress.Stage(ctx, "wait for plugin "+path+" ("+verb+")")
	stdout, stderr := &capped{max: maxStdout}, &capped{max: maxStderr}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = slices.Concat(environ, r.env), bytes.NewReader(config), stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	started := time.Now()
	err := cmd.Run()
	switch {
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, errs.Newf(errs.Unavailable, "plugin %s did not finish %s within %s and was killed", path, verb, time.Since(started).Round(time.Second/10))
	case ctx.Err() != nil:
		return nil, fmt.Errorf("plugin %s: %s was cancelled: %w", path, verb, context.Cause(ctx))
	case errors.Is(err, exec.ErrWaitDelay): // it ended well, a child of its did not: that one is not waited for
	case stdout.over:
		return nil, errs.Newf(errs.Unavailable, "plugin %s: %s wrote more than %d bytes", path, verb, maxStdout)
	case err != nil:
		return nil, pluginError(path, verb, err, stdout.data, stderr.data)
	}
	if len(stderr.data) > 0 {
		r.log.Debug("plugin wrote to standard error", "plugin", path, "verb", verb, "text", string(stderr.data))
	}
	if out := bytes.TrimSpace(stdout.data); verb == "ADD" && !json.Valid(out) {
		return nil, errs.Newf(errs.Unavailable, "plugin %s: %s printed no JSON: %q", path, verb, short(out))
	}
	return stdout.data, nil
}

// pluginError reads what a failed plugin printed: by the specification an error object on standard output.
func pluginError(path, verb string, err error, stdout, stderr []byte) error {
	var e types.Error
	if json.Unmarshal(stdout, &e) == nil && (e.Msg != "" || e.Code != 0) {
		if e.Msg == "" {
			e.Msg = fmt.Sprintf("error code %d", e.Code)
		}
		return &e
	}
	text := short(bytes.TrimSpace(append(append(stdout, ' '), stderr...)))
	if text == "" {
		return errs.Newf(errs.Unavailable, "plugin %s: %s: %w", path, verb, err)
	}
	return errs.Newf(errs.Unavailable, "plugin %s: %s: %w: %q", path, verb, err, text)
}

func short(b []byte) string {
	const most = 200
	if len(b) > most {
		return string(b[:most]) + "…"
	}
	return string(b)
}

// capped is a buffer that forgets what is over its limit, so that a plugin that writes for ever costs nothing. It has no ReadFrom on
// purpose: io.Copy would prefer that.
type capped struct {
	data []byte
	max  int
	over bool
}

// Write takes everything and keeps what fits.
func (c *capped) Write(p []byte) (int, error) {
	room := c.max - len(c.data)
	c.over = c.over || len(p) > room
	c.data = append(c.data, p[:min(len(p), room)]...)
	return len(p), nil
}
