// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"log/slog"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// boundary is around every call: it turns errors into statuses, logs each once, and keeps a panic to its call.
type boundary struct {
	log *slog.Logger
	// ending is done when the server is to stop.
	ending context.Context //nolint:containedctx // the server's life, which its streams' contexts end with
}

func (b boundary) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	start := time.Now()
	defer func() { err = b.end(ctx, info.FullMethod, start, err, recover()) }()
	return handler(ctx, req)
}

func (b boundary) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	start := time.Now()
	defer func() { err = b.end(ss.Context(), info.FullMethod, start, err, recover()) }()
	ctx, cancel := context.WithCancel(ss.Context())
	defer cancel()
	defer context.AfterFunc(b.ending, cancel)()
	return handler(srv, &endingStream{ss, ctx})
}

// endingStream is a stream whose context ends with the server too.
type endingStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // that of the stream, as grpc has it
}

func (s *endingStream) Context() context.Context { return s.ctx }

// end is err, or the panic p, as the caller gets it. It runs on the panicking goroutine, whose stack is still there.
func (b boundary) end(ctx context.Context, method string, start time.Time, err error, p any) error {
	took := time.Since(start)
	if p != nil {
		b.log.ErrorContext(ctx, "panic in a call", "method", method, "panic", p, "took", took, "stack", string(debug.Stack()))
		return status.Errorf(codes.Internal, "%s: internal error: %v", method, p)
	}
	if err == nil {
		b.log.DebugContext(ctx, "call", "method", method, "took", took)
		return nil
	}
	err = toStatus(ctx, err)
	b.log.Log(ctx, level(status.Code(err)), "call", "method", method, "took", took, "code", status.Code(err).String(), "err", err)
	return err
}

// level is how loud an error is: what callers cause every day is not worth an administrator's attention.
func level(c codes.Code) slog.Level {
	switch c {
	case codes.NotFound, codes.Canceled, codes.Unimplemented:
		return slog.LevelDebug
	case codes.InvalidArgument, codes.AlreadyExists, codes.FailedPrecondition, codes.DeadlineExceeded:
		return slog.LevelInfo
	default:
		return slog.LevelError
	}
}
