// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
	"crishim.dev/internal/fsx"
)

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

// identity is who the first process runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// accounts are an image's /etc/passwd and /etc/group; nil where it has none.
type accounts struct{ passwd, group []byte }

// accountsLimit is the size of the largest passwd or group file that is read from an image.
const accountsLimit = 4 << 20

func readAccounts(root *os.File) (accounts, error) {
	var a accounts
	for path, dst := range map[string]*[]byte{"/etc/passwd": &a.passwd, "/etc/group": &a.group} {
		b, err := fsx.ReadFileInRoot(root, path, accountsLimit)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return a, fmt.Errorf("read the image's accounts: %w", err)
		}
		*dst = b
	}
	return a, nil
}

// identify resolves the request's user and groups, or the image's "user[:group]", against the image's accounts.
func identify(sc *cri.LinuxContainerSecurityContext, imageUser string, a accounts) (identity, error) {
	spec, group, _ := strings.Cut(imageUser, ":")
	switch {
	case sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "":
		return identity{}, errs.Newf(errs.Invalid, "run_as_user and run_as_username: only one of them may be set")
	case sc.GetRunAsUser() != nil:
		spec, group = strconv.FormatInt(sc.GetRunAsUser().GetValue(), 10), ""
	case sc.GetRunAsUsername() != "":
		spec, group = sc.GetRunAsUsername(), ""
	}
	if g := sc.GetRunAsGroup(); g != nil {
		if sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "" {
			return identity{}, errs.Newf(errs.Invalid, "run_as_group: it needs run_as_user or run_as_username")
		}
		group = strconv.FormatInt(g.GetValue(), 10)
	}
	id, name, err := findUser(spec, a)
	if err != nil && sc.GetRunAsUsername() != "" {
		err = fmt.Errorf("run_as_username: %w", err)
	}
	if err != nil {
		return identity{}, err
	}
	if group != "" {
		if id.gid, err = findGroup(group, a); err != nil {
			return identity{}, err
		}
	}
	return withGroups(id, name, sc, a)
}

// maxID is the largest uid or gid that isn't (uid_t)-1.
const maxID = 1<<32 - 2

func parseID(s string) (id uint32, numeric bool, err error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, false, nil //nolint:nilerr // a name
	}
	if n < 0 || n > maxID {
		return 0, true, errs.Newf(errs.Invalid, "find user or group %s: it is outside 0 to %d", s, uint32(maxID))
	}
	return uint32(n), true, nil
}

func findUser(spec string, a accounts) (identity, string, error) {
	if spec == "" {
		spec = "0"
	}
	uid, numeric, err := parseID(spec)
	if err != nil {
		return identity{}, "", err
	}
	found, err := user.ParsePasswdFilter(bytes.NewReader(a.passwd), func(u user.User) bool {
		return (numeric && u.Uid == int(uid)) || (!numeric && u.Name == spec)
	})
	if err != nil {
		return identity{}, "", errs.Newf(errs.Invalid, "read the image's /etc/passwd: %w", err)
	}
	if len(found) > 0 {
		u := found[0]
		if u.Uid < 0 || u.Uid > maxID || u.Gid < 0 || u.Gid > maxID {
			return identity{}, "", errs.Newf(errs.Invalid, "find user %q: the image's /etc/passwd has an id out of range", spec)
		}
		return identity{uid: uint32(u.Uid), gid: uint32(u.Gid), home: u.Home}, u.Name, nil
	}
	if !numeric {
		return identity{}, "", errs.Newf(errs.Invalid, "find user %q: the image's /etc/passwd has no such user", spec)
	}
	home := "/"
	if uid == 0 {
		home = "/root"
	}
	return identity{uid: uid, home: home}, "", nil
}

func findGroup(spec string, a accounts) (uint32, error) {
	gid, numeric, err := parseID(spec)
	if err != nil || numeric {
		return gid, err
	}
	found, err := user.ParseGroupFilter(bytes.NewReader(a.group), func(g user.Group) bool { return g.Name == spec })
	if err != nil {
		return 0, errs.Newf(errs.Invalid, "read the image's /etc/group: %w", err)
	}
	if len(found) == 0 || found[0].Gid < 0 || found[0].Gid > maxID {
		return 0, errs.Newf(errs.Invalid, "find group %q: the image's /etc/group has no such group", spec)
	}
	return uint32(found[0].Gid), nil
}

// withGroups adds the supplementary groups: the primary group, those of the image's /etc/group (policy Merge), the request's.
func withGroups(id identity, name string, sc *cri.LinuxContainerSecurityContext, a accounts) (identity, error) {
	id.groups = []uint32{id.gid}
	add := func(g uint32) {
		if !slices.Contains(id.groups, g) {
			id.groups = append(id.groups, g)
		}
	}
	if name != "" && sc.GetSupplementalGroupsPolicy() == cri.SupplementalGroupsPolicy_Merge {
		found, err := user.ParseGroupFilter(bytes.NewReader(a.group), func(g user.Group) bool { return slices.Contains(g.List, name) })
		if err != nil {
			return identity{}, errs.Newf(errs.Invalid, "read the image's /etc/group: %w", err)
		}
		for _, g := range found {
			if g.Gid >= 0 && g.Gid <= maxID {
				add(uint32(g.Gid))
			}
		}
	}
	for _, g := range sc.GetSupplementalGroups() {
		if g < 0 || g > maxID {
			return identity{}, errs.Newf(errs.Invalid, "supplemental_groups: %d is outside 0 to %d", g, uint32(maxID))
		}
		add(uint32(g))
	}
	return id, nil
}
