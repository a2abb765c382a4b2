// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// stageError names the step that failed.
type stageError struct {
	stage string
	err   error
}

func (e *stageError) Error() string { return e.stage + ": " + e.err.Error() }
func (e *stageError) Unwrap() error { return e.err }

// At gives err the name of the step it happened in; nil stays nil.
func At(stage string, err error) error {
	if err == nil {
		return nil
	}
	return &stageError{stage, err}
}

// Errno finds the system call's error in err; EIO stands for errors without one.
func Errno(err error) unix.Errno {
	for err != nil {
		if e, ok := err.(syscall.Errno); ok { //nolint:errorlint // this is the unwrapping
			return e
		}
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			break
		}
		err = u.Unwrap()
	}
	return unix.EIO
}

// Retry repeats f while a signal interrupts it.
func Retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR { //nolint:errorlint // system calls return bare errnos
			return err
		}
	}
}
