// SPDX-License-Identifier: Apache-2.0

// Package cgroup makes, limits, freezes, kills, measures and removes control groups, version 1 and 2, with the naming of the
// cgroupfs and the systemd driver. The systemd driver (Bus) asks systemd for a pod's slice and a container's scope, on version 2 only,
// and then sets everything itself as well: systemd has no property for some of it.
//
// Terms: a hierarchy is one mounted cgroup file system. Version 2 has one. Version 1 has several, each with one or more
// controllers (cpu and cpuacct often share one), perhaps some with a name only (name=systemd), and perhaps a cgroup2 mount
// without controllers beside them ("hybrid"): a process joins all of them, as runc and the kubelet do, so that service managers
// that track by a hierarchy leave containers alone and pressure stall information exists. A path names a group in every
// hierarchy at once, starts with a slash and is relative to the mount points.
//
// Life of a container's group:
//
//	pod, err := m.Pod(cgroupParent, sandboxID)
//	g, err := m.Create(ctx, m.Container(pod, id), resources)
//	procs, dir, err := g.Files()      // for the launch program
//	…
//	n, err := g.OOMKills()            // after the exit, before Remove
//	err = g.Kill(ctx)                 // what is left
//	err = g.Remove(ctx)
//
// The kubelet makes a pod's group itself; crictl does not. CreatePod makes what is missing and marks it with an extended
// attribute, and Prune removes only what bears the mark, so that nothing of the kubelet's is ever removed and nothing of
// ours is left behind, also after a restart of the daemon.
//
// Nothing outside the paths asked for is written, with one exception: on version 2 a controller works in a group only if all
// groups above hand it down, so Create adds missing controllers to cgroup.subtree_control on the way (never removes one).
//
// What this is not: no process is started or moved here except by Place, nothing is remembered (a Group is a path and may be
// opened any number of times), and nothing is sampled. Neighbours: launch joins the group, stats turns Stats into CRI messages.
//
// Sources: Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst of Linux; conversions from version 1 to 2 values as
// github.com/opencontainers/cgroups does them. github.com/containerd/cgroups/v3 is not used: on eight hierarchies it takes twice as
// long to make a group and six times as long to read one (1.0 and 0.63 ms against 0.5 and 0.1), and its device filter lets a rule
// for reading pass an open for reading and writing.
package cgroup
