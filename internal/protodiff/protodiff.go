// SPDX-License-Identifier: Apache-2.0

// Package protodiff names the first field in which two protobuf messages differ.
package protodiff

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// First gives the path of a field in which a and b differ ("linux.security_context.privileged"), or "" when they are equal.
// Both must be of one type. Values are not named: they may be secret.
func First(a, b proto.Message) string {
	if proto.Equal(a, b) {
		return ""
	}
	return first(a.ProtoReflect(), b.ProtoReflect())
}

func first(a, b protoreflect.Message) string {
	fields := a.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		va, vb := a.Get(f), b.Get(f)
		if a.Has(f) == b.Has(f) && va.Equal(vb) {
			continue
		}
		name := string(f.Name())
		switch {
		case f.IsMap():
			return name + mapKey(va.Map(), vb.Map())
		case f.IsList():
			return name + listIndex(f, va.List(), vb.List())
		case f.Message() != nil && a.Has(f) && b.Has(f):
			if sub := first(va.Message(), vb.Message()); sub != "" {
				return name + "." + sub
			}
		}
		return name
	}
	return "unknown field"
}

func mapKey(a, b protoreflect.Map) (path string) {
	differs := func(x, y protoreflect.Map) {
		x.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			if !y.Has(k) || !v.Equal(y.Get(k)) {
				path = fmt.Sprintf("[%q]", k.String())
			}
			return path == ""
		})
	}
	differs(a, b)
	if path == "" {
		differs(b, a)
	}
	return path
}

func listIndex(f protoreflect.FieldDescriptor, a, b protoreflect.List) string {
	for i := range min(a.Len(), b.Len()) {
		if a.Get(i).Equal(b.Get(i)) {
			continue
		}
		path := fmt.Sprintf("[%d]", i)
		if f.Message() != nil {
			path += "." + first(a.Get(i).Message(), b.Get(i).Message())
		}
		return path
	}
	return fmt.Sprintf("[%d]", min(a.Len(), b.Len()))
}
