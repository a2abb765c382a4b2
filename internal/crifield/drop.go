// SPDX-License-Identifier: Apache-2.0

package crifield

import (
	"context"
	"os"
	"path"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// dropVar is the environment variable that names the field which is dropped from a test's requests.
const dropVar = "SHIM_DROP_FIELD"

// DialOptions make a connection whose requests lack the field of the mutant that Run is at; nothing changes without Run.
func DialOptions() []grpc.DialOption {
	mutant := func(method string, req any) any {
		rpc, at, ok := strings.Cut(os.Getenv(dropVar), ".")
		if m, isMessage := req.(proto.Message); ok && isMessage && path.Base(method) == rpc {
			return Drop(m, at)
		}
		return req
	}
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return next(ctx, method, mutant(method, req), reply, cc, opts...)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := next(ctx, d, cc, method, opts...)
			return &droppingStream{s, func(req any) any { return mutant(method, req) }}, err
		}),
	}
}

type droppingStream struct {
	grpc.ClientStream
	mutant func(any) any
}

func (s *droppingStream) SendMsg(m any) error { return s.ClientStream.SendMsg(s.mutant(m)) }

// Drop gives a copy of m without the field at a path, in every element of the lists on the way.
func Drop(m proto.Message, at string) proto.Message {
	out := proto.Clone(m)
	drop(out.ProtoReflect(), strings.Split(at, "."))
	return out
}

func drop(m protoreflect.Message, at []string) {
	f := m.Descriptor().Fields().ByName(protoreflect.Name(at[0]))
	switch {
	case f == nil || !m.Has(f):
	case len(at) == 1:
		m.Clear(f)
	case f.IsList():
		for i := range m.Get(f).List().Len() {
			drop(m.Get(f).List().Get(i).Message(), at[1:])
		}
	default:
		drop(m.Mutable(f).Message(), at[1:])
	}
}
