// SPDX-License-Identifier: Apache-2.0

// Package rootfs makes what is put into a container's root file system: its /dev with the devices, its volumes with their
// options and owners, parts of images, what CDI devices bring. All of it is detached mounts, descriptors that a launch program
// attaches; nothing appears in the host's mount table. Whose container it is, and when it is all taken away, package container says.
package rootfs
