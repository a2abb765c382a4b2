// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"crishim.dev/internal/errs"
)

// failure is a failed launch.
type failure struct {
	label  string
	reason syscall.Errno
}

func (f failure) Error() string                 { return f.label }
func (f failure) Step() (string, syscall.Errno) { return f.label, f.reason }

func TestBlamed(t *testing.T) {
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
		err := fmt.Errorf("launch: %w", failure{tt.label, tt.reason})
		got := Blamed(err)
		for _, kind := range []error{errs.Invalid, errs.Unsupported} {
			if errors.Is(got, kind) != errors.Is(kind, tt.want) || got.Error() != err.Error() {
				t.Errorf("%s: %v: %v; want %v", tt.label, tt.reason, got, tt.want)
			}
		}
	}
}
