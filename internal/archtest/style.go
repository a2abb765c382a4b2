// SPDX-License-Identifier: Apache-2.0

package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Limits of STYLE, "Size and shape".
const (
	maxFileLines     = 600
	maxFunctionLines = 80
	maxPackageLines  = 3000
	maxMethods       = 30
	spdx             = "// SPDX-License-Identifier: Apache-2.0"
)

// forbiddenNames are package names that say nothing, or hide a standard package.
func forbiddenNames() []string {
	return []string{"util", "utils", "common", "types", "lib", "pkg", "runtime", "helper", "helpers", "misc", "base", "shared"}
}

// Style reports everything in the tree that breaks a rule a parser can see.
func Style(t *Tree) []string {
	var out []string
	for _, f := range t.Files {
		out = append(out, fileStyle(f)...)
		if f.Generated {
			continue
		}
		out = append(out, declStyle(t, f)...)
		out = append(out, commentStyle(t, f)...)
	}
	out = append(out, packageDocs(t)...)
	return append(out, methodCounts(t, ast.IsExported)...)
}

// Remarks reports what has grown past its aim, for the next one who works on it. No test fails for it.
func Remarks(t *Tree) []string {
	return append(packageSizes(t), methodCounts(t, func(string) bool { return true })...)
}

func fileStyle(f File) []string {
	var out []string
	if f.FirstLine != spdx && !f.Generated {
		out = append(out, fmt.Sprintf("%s: the first line must be %q", f.Path, spdx))
	}
	if f.Lines > maxFileLines && !f.Generated {
		out = append(out, fmt.Sprintf("%s: %d lines; at most %d (400 is the aim): split it by subject", f.Path, f.Lines, maxFileLines))
	}
	if name := strings.TrimSuffix(f.Syntax.Name.Name, "_test"); slices.Contains(forbiddenNames(), name) {
		out = append(out, fmt.Sprintf("%s: package name %q says nothing; name it after a noun of the domain", f.Path, name))
	}
	return out
}

// declStyle looks at the top-level declarations of one file.
func declStyle(t *Tree, f File) []string {
	var out []string
	at := func(pos token.Pos) string { return fmt.Sprintf("%s:%d", f.Path, t.Fset.Position(pos).Line) }
	for _, d := range f.Syntax.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil && d.Name.Name == "init" {
				out = append(out, at(d.Pos())+": init(): build the object where it is needed and pass it on")
			}
			if n := t.lines(d); n > maxFunctionLines && !f.Test { // a test's table may be as long as it is
				out = append(out, fmt.Sprintf("%s: function %s has %d lines; at most %d (50 is the aim)", at(d.Pos()), d.Name.Name, n, maxFunctionLines))
			}
			if !f.Test && d.Name.IsExported() && exportedReceiver(d) && d.Doc == nil && !wellKnown(d) {
				out = append(out, fmt.Sprintf("%s: exported %s has no doc comment", at(d.Pos()), d.Name.Name))
			}
		case *ast.GenDecl:
			if !f.Test {
				out = append(out, genDeclStyle(d, at)...)
			}
		}
	}
	return out
}

// genDeclStyle wants docs on exported names and no package variable that can only be written later.
func genDeclStyle(d *ast.GenDecl, at func(token.Pos) string) []string {
	var out []string
	for _, s := range d.Specs {
		switch s := s.(type) {
		case *ast.TypeSpec:
			if s.Name.IsExported() && d.Doc == nil && s.Doc == nil {
				out = append(out, fmt.Sprintf("%s: exported type %s has no doc comment", at(s.Pos()), s.Name.Name))
			}
		case *ast.ValueSpec:
			for _, n := range s.Names {
				if n.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
					out = append(out, fmt.Sprintf("%s: exported %s has no doc comment", at(s.Pos()), n.Name))
				}
				if d.Tok == token.VAR && len(s.Values) == 0 && n.Name != "version" && !embedded(d, s) {
					out = append(out, fmt.Sprintf("%s: package variable %s has no value, so it is mutable; put it into an object", at(s.Pos()), n.Name))
				}
			}
		}
	}
	return out
}

// embedded says that the variable is filled by the compiler.
func embedded(d *ast.GenDecl, s *ast.ValueSpec) bool {
	for _, g := range []*ast.CommentGroup{d.Doc, s.Doc} {
		if g == nil {
			continue
		}
		for _, c := range g.List {
			if strings.HasPrefix(c.Text, "//go:embed ") {
				return true
			}
		}
	}
	return false
}

// unfinished matches the marks that stand for work put off.
func unfinished() *regexp.Regexp {
	return regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b`)
}

func commentStyle(t *Tree, f File) []string {
	var out []string
	mark := unfinished()
	for _, g := range f.Syntax.Comments {
		for _, c := range g.List {
			if m := mark.FindString(c.Text); m != "" {
				out = append(out, fmt.Sprintf("%s:%d: %s in a comment: do it, or file an issue", f.Path, t.Fset.Position(c.Pos()).Line, m))
			}
		}
	}
	return out
}

// packageSizes counts the lines of each package without its tests.
func packageSizes(t *Tree) []string {
	sizes := make(map[string]int)
	for _, f := range t.Files {
		if !f.Test && !f.Generated {
			sizes[f.Package] += f.Lines
		}
	}
	var out []string
	for _, p := range slices.Sorted(maps.Keys(sizes)) {
		if sizes[p] > maxPackageLines {
			out = append(out, fmt.Sprintf("package %s has %d lines without tests; at most %d: take a subject out of it", p, sizes[p], maxPackageLines))
		}
	}
	return out
}

// packageDocs wants one package comment in each package that has more than tests.
func packageDocs(t *Tree) []string {
	has := make(map[string]bool)
	for _, f := range t.Files {
		if !f.Test {
			has[f.Package] = has[f.Package] || f.Syntax.Doc != nil || f.Generated
		}
	}
	var out []string
	for _, p := range slices.Sorted(maps.Keys(has)) {
		if !has[p] {
			out = append(out, fmt.Sprintf("package %s has no package comment: say what it is, what it is not, and where its neighbours are", p))
		}
	}
	return out
}

// methodCounts finds god objects, by those methods whose name counts.
func methodCounts(t *Tree, counts func(name string) bool) []string {
	count := make(map[string]int)
	for _, f := range t.Files {
		if f.Test || f.Generated {
			continue
		}
		for _, d := range f.Syntax.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv != nil && counts(fn.Name.Name) {
				count[f.Package+"."+receiver(fn)]++
			}
		}
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(count)) {
		// The CRI service itself has as many methods as the protocol has RPCs.
		if count[k] > maxMethods && !strings.HasPrefix(k, "server.") {
			out = append(out, fmt.Sprintf("type %s has %d methods; at most %d", k, count[k], maxMethods))
		}
	}
	return out
}

// lines counts the lines between the braces' ends.
func (t *Tree) lines(d *ast.FuncDecl) int {
	return t.Fset.Position(d.End()).Line - t.Fset.Position(d.Pos()).Line + 1
}

// wellKnown are methods whose contract is the standard library's.
func wellKnown(d *ast.FuncDecl) bool {
	return d.Recv != nil && slices.Contains([]string{"Error", "String", "Unwrap", "Is", "As", "Close", "Read", "Write", "Len", "Less", "Swap", "MarshalJSON", "UnmarshalJSON"}, d.Name.Name)
}

func exportedReceiver(d *ast.FuncDecl) bool {
	return d.Recv == nil || ast.IsExported(receiver(d))
}

// receiver is the name of the method's type.
func receiver(d *ast.FuncDecl) string {
	e := d.Recv.List[0].Type
	for {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.IndexListExpr:
			e = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}
