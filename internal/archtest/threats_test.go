// SPDX-License-Identifier: Apache-2.0

package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// declared says whether a package's sources declare a function, method or type of that name.
func declared(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../..", dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		tree, err := parser.ParseFile(token.NewFileSet(), f, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range tree.Decls {
			if declares(d, name) {
				return true
			}
		}
	}
	return false
}

// Each row of the table of threats in ARCHITECTURE.md names guards and at least one attacking test, as `package:Name`; all exist.
func TestThreatsAreGuarded(t *testing.T) {
	text, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "| class | guard | attacked by |\n|---|---|---|\n")
	if !ok {
		t.Fatal("ARCHITECTURE.md has no table of threats")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	reference := regexp.MustCompile("`([a-z0-9/]+):([A-Za-z0-9_]+)`")
	rows := strings.Split(table, "\n")
	if len(rows) < 10 {
		t.Errorf("%d rows", len(rows))
	}
	for _, row := range rows {
		tests := 0
		for _, r := range reference.FindAllStringSubmatch(row, -1) {
			if !declared(t, r[1], r[2]) {
				t.Errorf("%s has no %s: %.60s", r[1], r[2], row)
			}
			if strings.HasPrefix(r[2], "Test") {
				tests++
			}
		}
		if tests == 0 {
			t.Errorf("no test attacks: %.60s", row)
		}
	}
}

func declares(d ast.Decl, name string) bool {
	switch d := d.(type) {
	case *ast.FuncDecl:
		return d.Name.Name == name
	case *ast.GenDecl:
		for _, s := range d.Specs {
			if ts, ok := s.(*ast.TypeSpec); ok && ts.Name.Name == name {
				return true
			}
		}
	}
	return false
}
