// SPDX-License-Identifier: Apache-2.0

// Package archtest holds the project's shape: who may import whom, and the few rules of style that a parser can check.
//
// It reads the sources itself, in the test's own process. A test that asks `go list` gets a cached pass when only
// another package has changed. The rules stand in floors.go (imports) and style.go (everything else); both work on
// the Tree that Load returns and give back one readable sentence per finding.
package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// File is one parsed source file.
type File struct {
	// Path is relative to the module's root, with slashes.
	Path string
	// Package is the directory of Path; "." for the root.
	Package string
	// Test says that the name ends in _test.go.
	Test bool
	// Generated says that the file carries the standard "Code generated … DO NOT EDIT." line.
	Generated bool
	// Lines is the number of lines.
	Lines int
	// FirstLine is the text of the first line.
	FirstLine string
	// Imports are the import paths as written.
	Imports []string
	// Syntax is the parsed file, comments included.
	Syntax *ast.File
}

// Tree is all sources of one module, without nested modules and testdata.
type Tree struct {
	Module string
	Files  []File
	Fset   *token.FileSet
}

// Load parses every Go file below root, the directory of the module's go.mod.
func Load(root string) (*Tree, error) {
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return nil, fmt.Errorf("read module file: %w", err)
	}
	first, _, _ := bytes.Cut(mod, []byte("\n"))
	t := &Tree{Module: strings.TrimSpace(strings.TrimPrefix(string(first), "module")), Fset: token.NewFileSet()}
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skipDir(root, p, d.Name())
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return t.Add(filepath.ToSlash(rel), src)
	})
	if err != nil {
		return nil, fmt.Errorf("parse sources: %w", err)
	}
	return t, nil
}

// skipDir leaves out what is no part of the module.
func skipDir(root, p, name string) error {
	if p == root {
		return nil
	}
	if name == "testdata" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") {
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

// Add parses one file into the tree.
func (t *Tree) Add(rel string, src []byte) error {
	syntax, err := parser.ParseFile(t.Fset, rel, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	f := File{
		Path:      rel,
		Package:   path.Dir(rel),
		Test:      strings.HasSuffix(rel, "_test.go"),
		Generated: ast.IsGenerated(syntax),
		Lines:     bytes.Count(src, []byte("\n")),
		Syntax:    syntax,
	}
	first, _, _ := bytes.Cut(src, []byte("\n"))
	f.FirstLine = string(first)
	for _, i := range syntax.Imports {
		name, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			return err
		}
		f.Imports = append(f.Imports, name)
	}
	t.Files = append(t.Files, f)
	return nil
}

// local gives the directory of an import path inside the module.
func (t *Tree) local(importPath string) (string, bool) {
	if importPath == t.Module {
		return ".", true
	}
	return strings.CutPrefix(importPath, t.Module+"/")
}
