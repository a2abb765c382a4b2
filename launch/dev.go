// SPDX-License-Identifier: Apache-2.0

package launch

import "golang.org/x/sys/unix"

// Node is an entry of a container's /dev, which the caller makes in a detached tmpfs (mode 0755, "size=65536k") before the launch.
type Node struct {
	// Path is relative to /dev. Parents come before children.
	Path string
	// Mode has the type: S_IFDIR, S_IFREG, S_IFCHR or S_IFLNK.
	Mode uint32
	// Dev is the number of a device, Link the target of a link.
	Dev  uint64
	Link string
}

// DevNodes is what every container has in /dev, besides the devices that were asked for.
// Modes are exact: clear the umask or chmod.
func DevNodes(tty bool) []Node {
	nodes := []Node{
		{Path: "pts", Mode: unix.S_IFDIR | 0o755},
		{Path: "shm", Mode: unix.S_IFDIR | 0o755},
		{Path: "mqueue", Mode: unix.S_IFDIR | 0o755},
		{Path: "fd", Mode: unix.S_IFLNK, Link: "/proc/self/fd"},
		{Path: "stdin", Mode: unix.S_IFLNK, Link: "/proc/self/fd/0"},
		{Path: "stdout", Mode: unix.S_IFLNK, Link: "/proc/self/fd/1"},
		{Path: "stderr", Mode: unix.S_IFLNK, Link: "/proc/self/fd/2"},
		{Path: "core", Mode: unix.S_IFLNK, Link: "/proc/kcore"},
		{Path: "ptmx", Mode: unix.S_IFLNK, Link: "pts/ptmx"},
	}
	for _, d := range []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}} {
		nodes = append(nodes, Node{Path: d.name, Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(d.major, d.minor)})
	}
	if tty {
		nodes = append(nodes, Node{Path: "console", Mode: unix.S_IFREG | 0o600})
	}
	return nodes
}
