// SPDX-License-Identifier: Apache-2.0

// Package launch turns plain descriptions of what is to be started into launch programs (proto.Program): flat lists of
// system calls that a child of the keeper makes between clone and execve.
//
// It is pure: it opens nothing, asks the kernel nothing and keeps no state. What it must know of the host comes in Facts;
// descriptors are opened by the caller and named by their index in the list that travels with the program (type FD).
//
//   - Container: the first process of a container, with its own mount namespace
//   - Exec: another process in a container that runs
//   - Pod: the namespaces of a pod, made and returned as descriptors
//   - PodInit: the tiny first process of a pod with a shared pid namespace
//
// The keeper, whose mount namespace the child starts with a copy of, has a tmpfs as its root with /proc, /sys and an empty
// directory /r; programs use these paths and no other outside the container's root. Inside it, paths that an image or a
// volume can influence are resolved by openat2 with RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS; everything else goes from
// descriptor to descriptor.
//
// Neighbours: proto defines the instruction set, keeper executes it, launch/seccomp compiles filters, container and sandbox call this.
package launch
