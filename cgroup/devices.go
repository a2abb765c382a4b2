// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"fmt"
	"strconv"
	"strings"

	"crishim.dev/internal/errs"
)

// Devices is what the processes of a group may do with device nodes. Everything not allowed is denied.
type Devices struct {
	// All allows everything (privileged containers); Allow is then ignored.
	All bool
	// Allow adds to StandardDevices.
	Allow []Device
}

// Device is a rule: which nodes, and what may be done with them.
type Device struct {
	// Type is 'c' or 'b'.
	Type byte
	// Major and Minor are -1 for any.
	Major, Minor int64
	// Access is made of r (read), w (write), m (mknod).
	Access string
}

// StandardDevices are the nodes that every container has, and the right to make (not open) any node. The same as runc's
// list; /dev/console is not in it, since a container's console is a pty.
func StandardDevices() []Device {
	return []Device{
		{'c', -1, -1, "m"}, {'b', -1, -1, "m"},
		{'c', 1, 3, "rwm"},    // null
		{'c', 1, 5, "rwm"},    // zero
		{'c', 1, 7, "rwm"},    // full
		{'c', 1, 8, "rwm"},    // random
		{'c', 1, 9, "rwm"},    // urandom
		{'c', 5, 0, "rwm"},    // tty
		{'c', 5, 2, "rwm"},    // ptmx
		{'c', 136, -1, "rwm"}, // pts/N
	}
}

// rules are all that is allowed.
func (d *Devices) rules() []Device { return append(StandardDevices(), d.Allow...) }

func (d *Devices) check() error {
	if d == nil || d.All {
		return nil
	}
	for _, r := range d.Allow {
		valid := (r.Type == 'c' || r.Type == 'b') && r.Major >= -1 && r.Minor >= -1 && r.Major < 1<<12 && r.Minor < 1<<20 &&
			r.Access != "" && strings.Trim(r.Access, "rwm") == ""
		if !valid {
			return errs.Newf(errs.Invalid, "check devices: %q is not a device rule", r.String())
		}
	}
	return nil
}

// String is the form that devices.allow takes: "c 136:* rwm".
func (d Device) String() string {
	num := func(n int64) string {
		if n < 0 {
			return "*"
		}
		return strconv.FormatInt(n, 10)
	}
	return fmt.Sprintf("%c %s:%s %s", d.Type, num(d.Major), num(d.Minor), d.Access)
}
