// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crishim.dev/internal/errs"
)

// maxErrorText bounds an error's text: it travels in an HTTP/2 header.
const maxErrorText = 4096

// code is the gRPC code of err, which came from a call whose context was ctx. This and the names in named are all that
// callers can tell errors apart by.
func code(ctx context.Context, err error) codes.Code {
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	// What the caller's own end caused is told so, whatever the kind that a manager gave it.
	if cause := ctx.Err(); cause != nil && errors.Is(err, cause) {
		return status.FromContextError(cause).Code()
	}
	// kubelet sees the name of a failed pull only where it begins the text, and cri-client takes the code off none but this one.
	if errors.Is(err, crierrors.ErrRegistryUnavailable) || errors.Is(err, crierrors.ErrSignatureValidationFailed) {
		return codes.Unknown
	}
	for _, k := range []struct {
		kind error
		code codes.Code
	}{
		{errs.Invalid, codes.InvalidArgument},
		{errs.NotFound, codes.NotFound},
		{errs.AlreadyExists, codes.AlreadyExists},
		{errs.Precondition, codes.FailedPrecondition},
		{errs.Exhausted, codes.ResourceExhausted},
		{errs.Denied, codes.PermissionDenied},
		{errs.Deadline, codes.DeadlineExceeded},
		{errs.Unavailable, codes.Unavailable},
		// Not Unimplemented, by which kubelet understands that the RPC does not exist at all.
		{errs.Unsupported, codes.FailedPrecondition},
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
	} {
		if errors.Is(err, k.kind) {
			return k.code
		}
	}
	return codes.Unknown
}

// toStatus is err as the caller gets it.
func toStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if s, ok := status.FromError(err); ok {
		text = s.Message()
	}
	text = strings.ToValidUTF8(named(err, text), "\uFFFD")
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "") + " …"
	}
	return status.Error(code(ctx, err), text)
}

// named puts the name of an error that kubelet knows by name in front of its text, where kubelet looks for it.
func named(err error, text string) string {
	for _, known := range []error{
		crierrors.ErrRegistryUnavailable,
		crierrors.ErrSignatureValidationFailed,
		crierrors.ErrRROUnsupported,
		crierrors.ErrImageVolumeMountFailed,
	} {
		if errors.Is(err, known) && !strings.HasPrefix(text, known.Error()) {
			return known.Error() + ": " + text
		}
	}
	return text
}

// ignoreNotFound is for what succeeds when its object is gone.
func ignoreNotFound(err error) error {
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	return err
}
