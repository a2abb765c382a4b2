// SPDX-License-Identifier: Apache-2.0

package crifield

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const module = "../.."

// A field that a new cri-api brings fails here until decisions.txt says what becomes of it.
func TestEveryFieldIsDecided(t *testing.T) {
	of, missing, unused, err := Decided()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range missing {
		t.Errorf("%s (%s) is not decided", f.Name(), f.Kind)
	}
	for _, d := range unused {
		t.Errorf("%s is decided, but no request has it", d.Field)
	}
	if len(of) < 500 {
		t.Errorf("only %d fields", len(of))
	}
}

func TestNamedTestsExist(t *testing.T) {
	all, err := Decisions()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]map[string]string{}
	for _, d := range all {
		pkg, test, _ := strings.Cut(d.Test, ".")
		name, sub, _ := strings.Cut(test, "/")
		if known[pkg] == nil {
			known[pkg] = tests(t, filepath.Join(module, pkg))
		}
		body, ok := known[pkg][name]
		if !ok {
			t.Errorf("%s: there is no test %s", d.Field, d.Test)
		}
		for part := range strings.SplitSeq(sub, "/") {
			if sub != "" && !strings.Contains(body, `"`+part+`"`) && !strings.Contains(known[pkg][""], `"`+part+`"`) {
				t.Errorf("%s: %s has no subtest %q", d.Field, name, part)
			}
		}
	}
}

// tests gives the source of each test of a package by its name, and under "" that of everything else.
func tests(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, name, src, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			text := string(src[set.Position(d.Pos()).Offset:set.Position(d.End()).Offset])
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				out[fn.Name.Name] = text
			} else {
				out[""] += text
			}
		}
	}
	return out
}

func TestDocsAreAsGenerated(t *testing.T) {
	want, err := Markdown()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(module, "docs/cri.md"))
	if err != nil || string(got) != want {
		t.Errorf("docs/cri.md is not what make generate writes (%v)", err)
	}
}

func TestDrop(t *testing.T) {
	full := &cri.CreateContainerRequest{Config: &cri.ContainerConfig{
		Mounts: []*cri.Mount{{HostPath: "/a", Readonly: true}, {HostPath: "/b", Readonly: true}}, Labels: map[string]string{"a": "b"},
	}}
	before := proto.Clone(full)
	for path, want := range map[string]*cri.CreateContainerRequest{
		"config.mounts.readonly":            {Config: &cri.ContainerConfig{Mounts: []*cri.Mount{{HostPath: "/a"}, {HostPath: "/b"}}, Labels: map[string]string{"a": "b"}}},
		"config.labels":                     {Config: &cri.ContainerConfig{Mounts: full.Config.Mounts}},
		"config.linux.resources.cpu_shares": full,
	} {
		if got := Drop(full, path); !proto.Equal(got, want) {
			t.Errorf("without %s: %v", path, got)
		}
	}
	if !proto.Equal(full, before) {
		t.Error("the original was changed")
	}
}
