// SPDX-License-Identifier: Apache-2.0

// Package crifield knows every field of every CRI request, from the protocol's own descriptors, and what this runtime does with
// each: decisions.txt says so in one line per field, with the test that shows it.
//
// A field that a new version of cri-api brings has no line, and the tests of this package fail until somebody has decided.
// docs/cri.md is made from the same lines. Drop makes mutants: requests without one field, which the named test must notice.
package crifield

import (
	"google.golang.org/protobuf/reflect/protoreflect"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

//go:generate go run ../../hack/cridoc

// Field is one field of a request that has a value of its own: a scalar, an enumeration, a list of those, or a map.
type Field struct {
	// RPC is the method's name; Path the field's from the request on, "" for a request without fields.
	RPC, Path string
	// Kind is the field's type as the protocol calls it.
	Kind string
}

// Name is RPC and path in one.
func (f Field) Name() string {
	if f.Path == "" {
		return f.RPC
	}
	return f.RPC + "." + f.Path
}

// All lists the fields of all requests, in the protocol's order.
func All() []Field {
	var out []Field
	services := cri.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			rpc := string(m.Name())
			if m.Input().Fields().Len() == 0 {
				out = append(out, Field{RPC: rpc, Kind: "no fields"})
			}
			out = leaves(out, rpc, "", m.Input())
		}
	}
	return out
}

// leaves appends the fields of a message. No request's type contains itself.
func leaves(out []Field, rpc, under string, m protoreflect.MessageDescriptor) []Field {
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		path := under + string(f.Name())
		if f.Message() != nil && !f.IsMap() {
			out = leaves(out, rpc, path+".", f.Message())
			continue
		}
		kind := f.Kind().String()
		switch {
		case f.IsMap():
			kind = "map"
		case f.IsList():
			kind = "list of " + kind
		}
		out = append(out, Field{RPC: rpc, Path: path, Kind: kind})
	}
	return out
}
