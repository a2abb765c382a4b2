// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"os"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// mountOption is what an option of a bind mount means to mount_setattr(2).
type mountOption struct{ set, clear uint64 }

// mountOptions are the options that a request may add, as mount(8) and the OCI runtime specification name them. Like there,
// they are those of the mount itself and not of others below it.
func mountOptions() map[string]mountOption {
	return map[string]mountOption{
		"noexec":      {set: unix.MOUNT_ATTR_NOEXEC},
		"nodev":       {set: unix.MOUNT_ATTR_NODEV},
		"nosuid":      {set: unix.MOUNT_ATTR_NOSUID},
		"exec":        {clear: unix.MOUNT_ATTR_NOEXEC},
		"dev":         {clear: unix.MOUNT_ATTR_NODEV},
		"suid":        {clear: unix.MOUNT_ATTR_NOSUID},
		"nosymfollow": {set: unix.MOUNT_ATTR_NOSYMFOLLOW},
		"nodiratime":  {set: unix.MOUNT_ATTR_NODIRATIME},
		"noatime":     {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
		"relatime":    {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	}
}

// attributes puts options together, the later over the earlier.
func attributes(options []string) (unix.MountAttr, error) {
	var out unix.MountAttr
	known := mountOptions()
	for _, name := range options {
		o, ok := known[name]
		if !ok {
			return out, errs.Newf(errs.Invalid, "mount_options: %q is not offered", name)
		}
		out.Attr_set = out.Attr_set&^o.clear | o.set
		out.Attr_clr = out.Attr_clr&^o.set | o.clear
	}
	return out, nil
}

// SetOptions gives a detached mount the options of the request.
func SetOptions(f *os.File, options []string) error {
	attr, err := attributes(options)
	if err != nil || attr == (unix.MountAttr{}) {
		return err
	}
	return SetAttr(f, &attr, 0)
}
