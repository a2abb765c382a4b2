// SPDX-License-Identifier: Apache-2.0

// Package kernel learns once, at start, what this host's kernel is and lets us do: version, capabilities, limits, cgroup
// hierarchies, optional features.
//
// It only asks. Features are probed by calls that can have no effect, never guessed from the version; what depends on a file
// system or a driver is left to where it is used. Parsers take an io.Reader.
//
// Neighbours: launch.FromKernel picks what launch programs depend on.
package kernel
