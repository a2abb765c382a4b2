// SPDX-License-Identifier: Apache-2.0

package archtest

import (
	"go/token"
	"strings"
	"testing"
)

func load(t *testing.T) *Tree {
	t.Helper()
	tree, err := Load("../..")
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.Files) < 10 || tree.Module != "crishim.dev" {
		t.Fatalf("read %d files of module %q; is this the project?", len(tree.Files), tree.Module)
	}
	return tree
}

func TestFloors(t *testing.T) {
	for _, finding := range Floors(load(t)) {
		t.Error(finding)
	}
}

func TestKeeperStaysTiny(t *testing.T) {
	for _, finding := range Keeper(load(t)) {
		t.Error(finding)
	}
}

func TestStyle(t *testing.T) {
	for _, finding := range Style(load(t)) {
		t.Error(finding)
	}
	for _, remark := range Remarks(load(t)) {
		t.Log(remark)
	}
}

// TestRulesBite gives each rule one small file that breaks it and one that doesn't.
func TestRulesBite(t *testing.T) {
	const head = spdx + "\n\n// Package p is p.\npackage p\n"
	tests := []struct {
		name, path, src string
		want            string // part of the one finding; "" for none
	}{
		{"up", "sandbox/a.go", head + `import _ "crishim.dev/container"`, "floor 3 may not reach up to floor 4"},
		{"down", "container/a.go", head + `import _ "crishim.dev/sandbox"`, ""},
		{"sideways", "cni/a.go", head + `import _ "crishim.dev/cgroup"`, "both stand on floor 1"},
		{"own folder", "launch/a.go", head + `import _ "crishim.dev/launch/seccomp"`, ""},
		{"own parent", "keeper/client/a.go", head + `import _ "crishim.dev/keeper"`, "both stand on floor 1"},
		{"conformance", "cni/cnitest/a.go", head + `import _ "crishim.dev/cni"`, ""},
		{"homeless", "attic/a.go", head + `import _ "crishim.dev/proto"`, "attic stands on no floor"},
		{"kit in code", "server/a.go", head + `import _ "crishim.dev/internal/census"`, "for tests only"},
		{"kit in test", "server/a_test.go", head + `import _ "crishim.dev/internal/census"`, ""},
		{"kit uses runtime", "internal/census/a.go", head + `import _ "crishim.dev/cgroup"`, "shares no code"},
		{"codes below", "image/a.go", head + `import _ "google.golang.org/grpc/codes"`, "only server"},
		{"codes in server", "server/a.go", head + `import _ "google.golang.org/grpc/codes"`, ""},
		{"slog", "cni/a.go", head + `import _ "log/slog"`, ""},
		{"log", "cni/a.go", head + `import _ "log"`, "only internal/testnode"},
		{"init", "cni/a.go", head + "func init() {}", "init()"},
		{"init method", "cni/a.go", head + "type t struct{}\nfunc (t) init() {}", ""},
		{"licence", "cni/a.go", "// Package p is p.\npackage p\n", "first line"},
		{"name", "cni/a.go", strings.Replace(head, "package p", "package util", 1), "says nothing"},
		{"long file", "cni/a.go", head + strings.Repeat("\n", 600), "at most 600"},
		{"long function", "cni/a.go", head + "func f() {" + strings.Repeat("\n", 81) + "}", "at most 80"},
		{"put off", "cni/a.go", head + "// TO" + "DO later\n", "in a comment"},
		{"undocumented", "cni/a.go", head + "func F() {}", "no doc comment"},
		{"mutable", "cni/a.go", head + "var count int", "mutable"},
		{"no package comment", "cni/a.go", spdx + "\n\npackage p\n", "no package comment"},
		{"keeper's parts", "keeper/pump/a.go", head + `import _ "crishim.dev/keeper/executor"`, "both stand on floor 1"},
		{"keeper of ours", "cmd/shim-keeper/a.go", head + `import _ "crishim.dev/internal/errs"`, "must stay tiny"},
		{"large keeper", "cmd/shim-keeper/a.go", head + `import _ "net/http"`, "must stay tiny"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tree := &Tree{Module: "crishim.dev", Fset: token.NewFileSet()}
			if err := tree.Add(tt.path, []byte(tt.src)); err != nil {
				t.Fatal(err)
			}
			got := append(append(Floors(tree), Keeper(tree)...), Style(tree)...)
			switch {
			case tt.want == "" && len(got) > 0:
				t.Errorf("found %q; want nothing", got)
			case tt.want != "" && (len(got) != 1 || !strings.Contains(got[0], tt.want)):
				t.Errorf("found %q; want one finding with %q", got, tt.want)
			}
		})
	}
}
