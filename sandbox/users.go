// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
	"crishim.dev/internal/kernel"
	"crishim.dev/keeper/client"
	"crishim.dev/launch"
	"crishim.dev/proto"
)

// Range is the ids of a pod's user namespace: the users and groups 0 to Length-1 inside are Host to Host+Length-1 outside.
type Range struct{ Host, Length uint32 }

// Users gives the ids of the pod's user namespace; false when it uses the host's.
func (s Sandbox) Users() (Range, bool) { return users(s.Config) }

func users(cfg *cri.PodSandboxConfig) (Range, bool) {
	u := nsOptions(cfg).GetUsernsOptions()
	if u == nil || u.GetMode() != cri.NamespaceMode_POD || len(u.GetUids()) == 0 {
		return Range{}, false
	}
	return Range{Host: u.GetUids()[0].GetHostId(), Length: u.GetUids()[0].GetLength()}, true
}

// checkUsers refuses user namespaces that can't be made.
func (m *Manager) checkUsers(cfg *cri.PodSandboxConfig) error {
	ns := nsOptions(cfg)
	u := ns.GetUsernsOptions()
	if u == nil || u.GetMode() == cri.NamespaceMode_NODE {
		return nil
	}
	if u.GetMode() != cri.NamespaceMode_POD {
		return errs.Newf(errs.Invalid, "userns_options.mode: %s is neither POD nor NODE", u.GetMode())
	}
	if m.o.NoUserNS != nil {
		return fmt.Errorf("userns_options: %w", m.o.NoUserNS)
	}
	for _, shared := range []struct {
		name string
		mode cri.NamespaceMode
	}{{"network", ns.GetNetwork()}, {"pid", ns.GetPid()}, {"ipc", ns.GetIpc()}} {
		// The host's namespaces do not belong to the pod's user namespace: nothing could be mounted or set in them.
		if shared.mode == cri.NamespaceMode_NODE {
			return errs.Newf(errs.Invalid, "namespace_options.%s: NODE can't be had with a user namespace (userns_options)", shared.name)
		}
	}
	return checkMappings(u)
}

// checkMappings wants one range from id 0 on, the same for users and groups: what kubelet assigns.
func checkMappings(u *cri.UserNamespace) error {
	for _, side := range []struct {
		name string
		m    []*cri.IDMapping
	}{{"uids", u.GetUids()}, {"gids", u.GetGids()}} {
		field := "userns_options." + side.name
		if len(side.m) != 1 {
			return errs.Newf(errs.Invalid, "%s: %d mappings; exactly one is needed", field, len(side.m))
		}
		r := side.m[0]
		switch {
		case r.GetContainerId() != 0:
			return errs.Newf(errs.Invalid, "%s: container_id is %d; it must be 0", field, r.GetContainerId())
		case r.GetLength() == 0 || uint64(r.GetHostId())+uint64(r.GetLength()) > 1<<32-1:
			return errs.Newf(errs.Invalid, "%s: %d ids from host_id %d on are no range of ids", field, r.GetLength(), r.GetHostId())
		}
	}
	if uid, gid := u.GetUids()[0], u.GetGids()[0]; uid.GetHostId() != gid.GetHostId() || uid.GetLength() != gid.GetLength() {
		return errs.Newf(errs.Invalid, "userns_options.gids: %d+%d; it must be the range of uids, %d+%d",
			gid.GetHostId(), gid.GetLength(), uid.GetHostId(), uid.GetLength())
	}
	return nil
}

// usersID names the process that makes a pod's user namespace for the keeper.
func usersID(id ID) string { return "user-" + string(id) }

// makeUserNS makes and pins the pod's user namespace. It returns nil for a pod with the host's users.
func (m *Manager) makeUserNS(ctx context.Context, r *record) (*os.File, error) {
	ids, ok := users(r.Config)
	if !ok {
		return nil, nil
	}
	ns, err := newUserNS(ctx, m.o.Keeper, usersID(r.ID), ids) // teardown forgets the process
	if err != nil {
		return nil, err
	}
	if err := m.pin(r.ID, "user", ns); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return ns, nil
}

// newUserNS lets the keeper make a user namespace. The process waits at its gate, in the new namespace, until its ids are
// mapped: only the parent's root may map a range, and only once.
func newUserNS(ctx context.Context, k Keeper, id string, ids Range) (*os.File, error) {
	const name = "make user namespace"
	plan := launch.UserNS()
	p, err := k.Spawn(ctx, client.Spawn{
		Spawn:   proto.Spawn{ID: id, CloneFlags: plan.CloneFlags, Cgroup: -1, Run: true, Hold: true},
		Program: plan.Program, Name: name,
	})
	if err != nil {
		return nil, err
	}
	defer p.Close()
	if err := mapIDs(p, ids); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	made, err := k.Release(ctx, id, name, plan.Program)
	if err != nil {
		return nil, err
	}
	if len(made.Files) != 1 {
		made.Close()
		return nil, fmt.Errorf("%s: the keeper returned %d descriptors, not 1", name, len(made.Files))
	}
	if made.PIDFD != nil {
		_ = made.PIDFD.Close()
	}
	return made.Files[0], nil
}

// ProbeUserNS says why pods can't have user namespaces on this host, whose images are in dir; nil when they can. It makes one, and
// maps the owners of dir by it.
func ProbeUserNS(ctx context.Context, k Keeper, host kernel.Facts, dir string) error {
	if !host.AtLeast(5, 19) {
		return errs.Newf(errs.Unsupported, "user namespaces: overlay on id-mapped layers needs Linux 5.19, this is %s", host.Release)
	}
	const id = "user-probe"
	ns, err := newUserNS(ctx, k, id, Range{Host: 65536, Length: 65536})
	if err != nil {
		return errors.Join(errs.As(errs.Unsupported, err), k.Forget(ctx, id))
	}
	defer ns.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("user namespaces: open_tree %s: %w", dir, err)
	}
	defer unix.Close(tree)
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())})
	if err != nil {
		return errs.Newf(errs.Unsupported, "user namespaces: the file system of %s has no id-mapped mounts in Linux %s: %w", dir, host.Release, err)
	}
	return nil
}

// mapIDs writes the maps of a process at its gate. The pid is that process's only as long as its pidfd says that it lives, so it
// is asked once the files are open.
func mapIDs(p *client.Process, ids Range) error {
	line := fmt.Sprintf("0 %d %d\n", ids.Host, ids.Length)
	for _, name := range []string{"uid_map", "gid_map"} {
		f, err := os.OpenFile("/proc/"+strconv.Itoa(p.PID)+"/"+name, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("map ids: %w", err)
		}
		err = unix.PidfdSendSignal(int(p.PIDFD.Fd()), 0, nil, 0)
		if err == nil {
			_, err = f.WriteString(line)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("map ids: write %s: %w", name, err)
		}
	}
	return nil
}
