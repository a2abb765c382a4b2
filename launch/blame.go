// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"slices"
	"strings"
	"syscall"

	"crishim.dev/internal/errs"
)

// Blame is the kind of a launch's failure at the step that label names: errs.Invalid where the request or the image names what can't be, a
// program or directory that is not there or a sysctl's bad value; errs.Unsupported where this kernel has no such sysctl. It is nil for
// all else: the fault may be ours.
func Blame(label string, reason syscall.Errno) error {
	path := []syscall.Errno{syscall.ENOTDIR, syscall.ELOOP, syscall.ENAMETOOLONG, syscall.EISDIR}
	for _, b := range []struct {
		step    string
		reasons []syscall.Errno
		kind    error
	}{
		{"exec ", append(path, syscall.ENOENT, syscall.EACCES, syscall.ENOEXEC, syscall.E2BIG), errs.Invalid},
		{"set working directory ", append(path, syscall.ENOENT, syscall.EACCES), errs.Invalid},
		{"mount ", path, errs.Invalid},
		{"mask ", path, errs.Invalid},
		{"make ", path, errs.Invalid},
		{"set sysctl ", []syscall.Errno{syscall.EINVAL, syscall.ERANGE}, errs.Invalid},
		{"set sysctl ", []syscall.Errno{syscall.ENOENT, syscall.EACCES, syscall.EPERM}, errs.Unsupported},
	} {
		if strings.HasPrefix(label, b.step) && slices.Contains(b.reasons, reason) {
			return b.kind
		}
	}
	return nil
}
