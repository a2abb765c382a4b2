// SPDX-License-Identifier: Apache-2.0

package process

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
)

// identity is who the first process runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// identify resolves the request's user and groups, or the image's "user[:group]", against the image's accounts.
func identify(sc *cri.LinuxContainerSecurityContext, imageUser string, a Accounts) (identity, error) {
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

func findUser(spec string, a Accounts) (identity, string, error) {
	if spec == "" {
		spec = "0"
	}
	uid, numeric, err := parseID(spec)
	if err != nil {
		return identity{}, "", err
	}
	if found, ok := a.findAccount(func(c account) bool { return numeric && c.uid == uid || !numeric && c.name == spec }); ok {
		return identity{uid: found.uid, gid: found.gid, home: found.home}, found.name, nil
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

func findGroup(spec string, a Accounts) (uint32, error) {
	gid, numeric, err := parseID(spec)
	if err != nil || numeric {
		return gid, err
	}
	found := false
	a.groups(func(name string, id uint32, _ []string) {
		if name == spec && !found { // the first counts
			gid, found = id, true
		}
	})
	if !found {
		return 0, errs.Newf(errs.Invalid, "find group %q: the image's /etc/group has no such group", spec)
	}
	return gid, nil
}

// withGroups adds the supplementary groups: the primary group, those of the image's /etc/group (policy Merge), the request's.
func withGroups(id identity, name string, sc *cri.LinuxContainerSecurityContext, a Accounts) (identity, error) {
	id.groups = []uint32{id.gid}
	add := func(g uint32) {
		if !slices.Contains(id.groups, g) {
			id.groups = append(id.groups, g)
		}
	}
	if name != "" && sc.GetSupplementalGroupsPolicy() == cri.SupplementalGroupsPolicy_Merge {
		a.groups(func(_ string, gid uint32, members []string) {
			if slices.Contains(members, name) {
				add(gid)
			}
		})
	}
	for _, g := range sc.GetSupplementalGroups() {
		if g < 0 || g > maxID {
			return identity{}, errs.Newf(errs.Invalid, "supplemental_groups: %d is outside 0 to %d", g, uint32(maxID))
		}
		add(uint32(g))
	}
	return id, nil
}
