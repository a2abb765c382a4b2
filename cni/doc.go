// SPDX-License-Identifier: Apache-2.0

// Package cni attaches pods to networks as the Container Network Interface describes, version 1.1.
//
// libcni chains the plugins of the first configuration in the configuration directory. Where it would run a binary, this package decides:
// a standard type whose configuration is understood is served in this process (package builtin), anything else by the binary of that
// name from the plugin directories. Without a configuration there is no network, unless the built-in one is switched on.
//
// Each attachment has a directory named after the pod, written before anything is done and removed when nothing is left of it:
//
//	CacheDir/POD/attachment     network, configuration and arguments as ADD got them (JSON)
//	CacheDir/POD/results/…      libcni's own cache of the result, which DEL and CHECK pass on
//	LastingDir/POD/…            the same where a binary has a part in the attachment: it gets its DEL after a reboot too
//
// DEL uses what is in there and not the configuration directory, so it works when that has changed. One that fails is repeated in the
// background, with growing pauses, and holds the pod's address until it succeeds. What a crash leaves is found by the names of the
// directories (GC).
//
// Neighbours: sandbox calls Attach and Detach; the keeper opened the netlink socket that comes with a pod. This package never enters a
// network namespace.
package cni
