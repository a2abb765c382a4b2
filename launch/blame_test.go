// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"syscall"
	"testing"

	"crishim.dev/internal/errs"
)

func TestBlame(t *testing.T) {
	for _, tt := range []struct {
		label  string
		reason syscall.Errno
		want   error
	}{
		{`exec "/x"`, syscall.ENOENT, errs.Invalid},
		{`exec "/x"`, syscall.E2BIG, errs.Invalid},
		{`exec "/x"`, syscall.ENOMEM, nil},
		{"set working directory /x", syscall.EACCES, errs.Invalid},
		{"mount /x", syscall.ENOTDIR, errs.Invalid},
		{"mount /x", syscall.ENOENT, nil},
		{"set sysctl net.x", syscall.EINVAL, errs.Invalid},
		{"set sysctl net.x", syscall.ENOENT, errs.Unsupported},
		{"clone", syscall.EINVAL, nil},
		{"", 0, nil},
	} {
		if got := Blame(tt.label, tt.reason); !errors.Is(got, tt.want) {
			t.Errorf("%s: %v: %v; want %v", tt.label, tt.reason, got, tt.want)
		}
	}
}
