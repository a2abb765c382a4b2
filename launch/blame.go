// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"slices"
	"strings"
	"syscall"

	"crishim.dev/internal/errs"
)

// Blamed gives a failed launch its kind: errs.Invalid where the request or the image names what can't be, a program or directory that is not
// there or a sysctl's bad value; errs.Unsupported where this kernel has no such sysctl. All else stays as it is: the fault may be ours. What
// failed is known from a Step method, which *client.LaunchError has: the step's label and the kernel's reason.
func Blamed(err error) error {
	var failed interface {
		Step() (label string, reason syscall.Errno)
	}
	if !errors.As(err, &failed) {
		return err
	}
	label, reason := failed.Step()
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
			return errs.As(b.kind, err)
		}
	}
	return err
}
