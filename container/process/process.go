// SPDX-License-Identifier: Apache-2.0

// Package process says what a container's first process is: command, environment, directory, user, and the signal that stops it,
// out of the request, the image's configuration and the image's accounts. It starts nothing.
package process

import (
	"cmp"
	"path"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
)

// Process is a process as resolved from image and request; its JSON form is stored.
type Process struct {
	Args   []string `json:"args"`
	Env    []string `json:"env"`
	Cwd    string   `json:"cwd"`
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
}

// Resolve makes the process; what can't be is errs.Invalid.
func Resolve(cfg *cri.ContainerConfig, img v1.ImageConfig, a Accounts, hostname string) (Process, error) {
	args, err := command(cfg, img)
	if err != nil {
		return Process{}, err
	}
	who, err := identify(cfg.GetLinux().GetSecurityContext(), img.User, a)
	if err != nil {
		return Process{}, err
	}
	env, err := environment(cfg, img, hostname, who.home)
	if err != nil {
		return Process{}, err
	}
	cwd := cmp.Or(cfg.GetWorkingDir(), img.WorkingDir, "/")
	if !path.IsAbs(cwd) || strings.ContainsRune(cwd, 0) {
		return Process{}, errs.Newf(errs.Invalid, "working_dir: %q is not an absolute path", cwd)
	}
	return Process{Args: args, Env: env, Cwd: path.Clean(cwd), UID: who.uid, GID: who.gid, Groups: who.groups}, nil
}

// User is who the process runs as, in CRI's terms.
func (p *Process) User() *cri.LinuxContainerUser {
	u := &cri.LinuxContainerUser{Uid: int64(p.UID), Gid: int64(p.GID)}
	for _, g := range p.Groups {
		u.SupplementalGroups = append(u.SupplementalGroups, int64(g))
	}
	return u
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command applies Kubernetes' rules: the request's command replaces the image's entrypoint and drops the image's arguments; its
// args replace the image's arguments.
func command(cfg *cri.ContainerConfig, img v1.ImageConfig) ([]string, error) {
	entry, args := cfg.GetCommand(), cfg.GetArgs()
	if len(entry) == 0 {
		entry = img.Entrypoint
		if len(args) == 0 {
			args = img.Cmd
		}
	}
	out := slices.Concat(entry, args)
	if len(out) == 0 || out[0] == "" {
		return nil, errs.Newf(errs.Invalid, "no command: neither the request nor the image has one")
	}
	return out, checkStrings("command", out)
}

// environment is the image's, then the request's over it, with the defaults that are missing then (KUBELET.md 23).
func environment(cfg *cri.ContainerConfig, img v1.ImageConfig, hostname, home string) ([]string, error) {
	var out []string
	index := map[string]int{}
	set := func(kv string, replace bool) {
		key, _, _ := strings.Cut(kv, "=")
		if i, ok := index[key]; ok {
			if replace {
				out[i] = kv
			}
			return
		}
		index[key] = len(out)
		out = append(out, kv)
	}
	set(defaultPath, true)
	if hostname != "" {
		set("HOSTNAME="+hostname, true)
	}
	if cfg.GetTty() {
		set("TERM=xterm", true)
	}
	for _, kv := range img.Env {
		set(kv, true)
	}
	for _, kv := range cfg.GetEnvs() {
		if strings.ContainsAny(kv.GetKey(), "=\x00") || kv.GetKey() == "" {
			return nil, errs.Newf(errs.Invalid, "envs: %q is no name of a variable", kv.GetKey())
		}
		set(kv.GetKey()+"="+string(kv.GetValue()), true)
	}
	if home != "" {
		set("HOME="+home, false)
	}
	return out, checkStrings("envs", out)
}

// checkStrings refuses what execve would cut short, without repeating the value: it may be secret.
func checkStrings(field string, list []string) error {
	for i, s := range list {
		if strings.ContainsRune(s, 0) {
			return errs.Newf(errs.Invalid, "%s[%d]: it has a zero byte", field, i)
		}
	}
	return nil
}

// Add puts variables over those of the same name, and joins groups.
func (p *Process) Add(env []string, groups []uint32) error {
	if err := checkStrings("environment", env); err != nil {
		return err
	}
	p.Env = override(p.Env, env)
	for _, g := range groups {
		if !slices.Contains(p.Groups, g) {
			p.Groups = append(p.Groups, g)
		}
	}
	return nil
}

// override puts the variables of more into env, over those of the same name.
func override(env, more []string) []string {
	for _, kv := range more {
		name, _, _ := strings.Cut(kv, "=")
		i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
		if i < 0 {
			env = append(env, kv)
		} else {
			env[i] = kv
		}
	}
	return env
}
