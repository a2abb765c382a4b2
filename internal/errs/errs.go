// SPDX-License-Identifier: Apache-2.0

// Package errs gives an error its kind: what a caller may do about it.
//
// A kind travels with the error through any number of %w wraps and becomes a gRPC code once, in
// server/errors.go. This package knows nothing of gRPC.
package errs

import (
	"errors"
	"fmt"
	"syscall"
)

// The kinds. Test with errors.Is(err, errs.NotFound).
var (
	// NotFound: the named object does not exist.
	NotFound = errors.New("not found")
	// AlreadyExists: the name is taken by an object with another configuration.
	AlreadyExists = errors.New("already exists")
	// Invalid: the request itself is wrong, whatever the state of the system.
	Invalid = errors.New("invalid argument")
	// Precondition: the request is right but the object's state forbids it.
	Precondition = errors.New("failed precondition")
	// Unavailable: something outside (a registry, a plugin, the keeper) did not answer; try again.
	Unavailable = errors.New("unavailable")
	// Exhausted: a limit was reached (disk, addresses, message size).
	Exhausted = errors.New("resource exhausted")
	// Denied: credentials or policy refuse it.
	Denied = errors.New("permission denied")
	// Unsupported: this host (kernel, file system, configuration) can't do it; the text names the feature.
	Unsupported = errors.New("unsupported")
	// Deadline: the request's own time limit passed (an ExecSync timeout).
	Deadline = errors.New("deadline exceeded")
)

type kinded struct {
	kind  error
	cause error
}

func (e *kinded) Error() string   { return e.cause.Error() }
func (e *kinded) Unwrap() []error { return []error{e.cause, e.kind} }

// As gives err the kind kind and leaves its text as it is. As(kind, nil) is nil.
func As(kind, err error) error {
	if err == nil {
		return nil
	}
	return &kinded{kind: kind, cause: err}
}

// Newf makes an error of the kind kind; format and args are those of fmt.Errorf, %w included.
func Newf(kind error, format string, args ...any) error {
	return &kinded{kind: kind, cause: fmt.Errorf(format, args...)}
}

// OfPath gives err the kind Invalid where the reason is a path that the caller or an image has chosen: it goes through what is no
// directory, leads in circles, is too long, or is a directory where a file must be.
func OfPath(err error) error {
	for _, reason := range []error{syscall.ENOTDIR, syscall.ELOOP, syscall.ENAMETOOLONG, syscall.EISDIR} {
		if errors.Is(err, reason) {
			return As(Invalid, err)
		}
	}
	return err
}
