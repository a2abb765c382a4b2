// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"fmt"
	"os"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/container/process"
	"crishim.dev/internal/errs"
	"crishim.dev/launch"
	"crishim.dev/sandbox"
)

// checkUsers refuses what does not fit the pod's user namespace: other mappings than its own, the host's pid namespace, mounts that are to
// reach the host, users and groups that it has no ids for. A container that says nothing has the pod's.
func checkUsers(box sandbox.Sandbox, cfg *cri.ContainerConfig, p process.Process) error {
	ids, mapped := box.Users()
	if u := security(cfg).GetNamespaceOptions().GetUsernsOptions(); u != nil {
		if asks := u.GetMode() == cri.NamespaceMode_POD; asks != mapped {
			return errs.Newf(errs.Invalid, "userns_options.mode: %s, but the pod's is not", u.GetMode())
		}
		if err := sameIDs("userns_options.", u.GetUids(), u.GetGids(), ids, mapped); err != nil {
			return err
		}
	}
	for i, mt := range cfg.GetMounts() {
		if mapped && mt.GetPropagation() == cri.MountPropagation_PROPAGATION_BIDIRECTIONAL {
			return errs.Newf(errs.Invalid, "mounts[%d].propagation: BIDIRECTIONAL can't be had in a pod with a user namespace: mounts made there stay there", i)
		}
		if len(mt.GetUidMappings())+len(mt.GetGidMappings()) == 0 {
			continue
		}
		field := fmt.Sprintf("mounts[%d].", i)
		if !mapped {
			return errs.Newf(errs.Invalid, "%suidMappings: the pod has no user namespace", field)
		}
		if err := sameIDs(field, mt.GetUidMappings(), mt.GetGidMappings(), ids, true); err != nil {
			return err
		}
	}
	if !mapped {
		return nil
	}
	if pidMode(cfg) == cri.NamespaceMode_NODE {
		return errs.Newf(errs.Invalid, "namespace_options.pid: NODE can't be had in a pod with a user namespace")
	}
	inside := func(what string, id uint32) error {
		if id >= ids.Length {
			return errs.Newf(errs.Invalid, "%s %d: the pod's user namespace has only %d ids", what, id, ids.Length)
		}
		return nil
	}
	err := errors.Join(inside("user", p.UID), inside("group", p.GID))
	for _, g := range p.Groups {
		err = errors.Join(err, inside("supplementary group", g))
	}
	return err
}

// sameIDs refuses mappings that are not the pod's; field is what their names are below.
func sameIDs(field string, uids, gids []*cri.IDMapping, ids sandbox.Range, mapped bool) error {
	names := []string{"uids", "gids"}
	if field != "userns_options." {
		names = []string{"uidMappings", "gidMappings"}
	}
	for i, side := range [][]*cri.IDMapping{uids, gids} {
		same := len(side) == 0 && !mapped
		if mapped && len(side) == 1 {
			same = side[0].GetContainerId() == 0 && side[0].GetHostId() == ids.Host && side[0].GetLength() == ids.Length
		}
		if !same {
			return errs.Newf(errs.Invalid, "%s%s: %v; they must be the pod's", field, names[i], side)
		}
	}
	return nil
}

// joinUsers opens the pod's user namespace; a pod with the host's users has none.
func (l *launching) joinUsers(d *launch.Description) error {
	if _, mapped := l.box.Users(); !mapped {
		return nil
	}
	f, err := os.Open(l.m.o.Layout.Pin(l.box.ID, "user"))
	if err != nil {
		return fmt.Errorf("join the pod's user namespace: %w", err)
	}
	l.userNS = f
	d.UserNS = l.files.Add(f)
	return nil
}

// rootID is what the container's root is on the host.
func (l *launching) rootID() int {
	ids, _ := l.box.Users()
	return int(ids.Host)
}
