// SPDX-License-Identifier: Apache-2.0

// Package seccomp compiles seccomp profiles to filters: the default one (Moby's, whose data comes from moby/profiles), and those
// that users write in OCI's JSON format.
//
// A profile means here what it means to runc with libseccomp, so that one file works under both: a rule without arguments
// wins over rules with arguments for the same call; several conditions on one argument are alternatives; calls newer than the
// newest one that a profile names are answered with ENOSYS, for which programs have a fallback, and not with its default error.
//
// The filter is a binary search over ranges of call numbers that are treated alike, per architecture, which takes a call some ten
// instructions; a linear filter, some hundreds. It is made of golang.org/x/net/bpf instructions.
//
// Neighbours: launch puts the filter into a program.
package seccomp
