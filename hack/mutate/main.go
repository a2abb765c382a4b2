// SPDX-License-Identifier: Apache-2.0

// Command mutate checks the tests that docs/cri.md names: for each field that is honoured or refused it runs the field's test with
// that field dropped from every request, and the test must fail. It prints what survives, and writes a report:
//
//	mutate [-only PREFIX] [-every N] [-o docs/mutations.md]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"crishim.dev/internal/crifield"
)

// mutant is one field, dropped, and the test that must notice.
type mutant struct{ field, pkg, test string }

// result is what became of a mutant.
type result struct {
	mutant
	// survived says why the test did not notice; empty when it did.
	survived string
}

func main() {
	only := flag.String("only", "", "only fields that begin so")
	every := flag.Int("every", 1, "only each n-th field")
	report := flag.String("o", "", "write a report to this file")
	flag.Parse()
	if err := run(context.Background(), *only, *every, *report); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only string, every int, report string) error {
	all, err := mutants(only, every)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mutate")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	began := time.Now()
	var survivors []result
	for rest := all; len(rest) > 0; {
		n := slices.IndexFunc(rest, func(m mutant) bool { return m.pkg != rest[0].pkg })
		if n < 0 {
			n = len(rest)
		}
		found, err := runPackage(ctx, dir, rest[:n])
		if err != nil {
			return err
		}
		for _, r := range found {
			if r.survived != "" {
				survivors = append(survivors, r)
				fmt.Printf("%s survives %s.%s: %s\n", r.field, r.pkg, r.test, r.survived)
			}
		}
		rest = rest[n:]
	}

	took := time.Since(began).Round(time.Second)
	fmt.Printf("%d mutants, %d survive, %v\n", len(all), len(survivors), took)
	if report != "" {
		if err := os.WriteFile(report, []byte(text(len(all), survivors, began, took)), 0o644); err != nil {
			return err
		}
	}
	if len(survivors) > 0 {
		return errors.New("some tests don't notice that their field is dropped")
	}
	return nil
}

// mutants are the fields whose absence must be noticed, sorted by test, so that each binary is built once.
func mutants(only string, every int) ([]mutant, error) {
	of, _, _, err := crifield.Decided()
	if err != nil {
		return nil, err
	}
	var out []mutant
	for f, d := range of {
		// A decision about a whole message is shown by its presence, not by each of its fields.
		if d.Verdict == crifield.Moot || f.Path == "" || strings.HasSuffix(d.Field, ".*") || !strings.HasPrefix(f.Name(), only) {
			continue
		}
		pkg, test, _ := strings.Cut(d.Test, ".")
		out = append(out, mutant{f.Name(), pkg, test})
	}
	slices.SortFunc(out, func(a, b mutant) int { return strings.Compare(a.pkg+a.test+a.field, b.pkg+b.test+b.field) })
	var chosen []mutant
	for i := 0; i < len(out); i += every {
		chosen = append(chosen, out[i])
	}
	return chosen, nil
}

func build(ctx context.Context, dir, pkg string) (string, error) {
	binary := filepath.Join(dir, strings.ReplaceAll(pkg, "/", "-")+".test")
	out, err := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, "./"+pkg).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build tests of %s: %w\n%s", pkg, err, out)
	}
	return binary, nil
}

// runPackage runs the mutants of one package, each after its test as it is: a test that fails anyway says nothing.
func runPackage(ctx context.Context, dir string, all []mutant) ([]result, error) {
	binary, err := build(ctx, dir, all[0].pkg)
	if err != nil {
		return nil, err
	}
	var lines []string
	for i, m := range all {
		if i == 0 || m.test != all[i-1].test {
			lines = append(lines, whole+" "+m.test)
		}
		lines = append(lines, m.field+" "+m.test)
	}
	codes := map[string]string{}
	for len(lines) > 0 {
		n, err := runLines(ctx, dir, binary, all[0].pkg, lines, codes)
		if err != nil {
			return nil, err
		}
		lines = lines[n:]
	}
	var out []result
	for _, m := range all {
		r := result{mutant: m}
		switch {
		case codes[whole+" "+m.test] != "0":
			r.survived = "the test fails without a mutation"
		case codes[m.field+" "+m.test] == "0":
			r.survived = "the test passes without the field"
		}
		out = append(out, r)
	}
	return out, nil
}

// whole stands for no field in a list of mutants.
const whole = "-"

// runLines runs mutants until all are done, or one takes the process with it, which is being noticed too. It gives how many are done.
func runLines(ctx context.Context, dir, binary, pkg string, lines []string, codes map[string]string) (int, error) {
	list, results := filepath.Join(dir, "mutants"), filepath.Join(dir, "results")
	if err := errors.Join(os.WriteFile(list, []byte(strings.Join(lines, "\n")+"\n"), 0o600), os.WriteFile(results, nil, 0o600)); err != nil {
		return 0, err
	}
	// The limit is that of each mutant: one may make its test wait for what never comes.
	cmd := exec.CommandContext(ctx, binary, "-test.timeout=2m")
	cmd.Dir = pkg
	cmd.Env = append(os.Environ(), crifield.MutantsVar+"="+list, crifield.ResultsVar+"="+results)
	out, errRun := cmd.CombinedOutput()
	text, err := os.ReadFile(results)
	if err != nil {
		return 0, err
	}
	done, last := 0, ""
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if f[0] == "begin" {
			done, last = done+1, f[1]+" "+f[2]
			codes[last] = "died"
		} else {
			codes[f[1]+" "+f[2]] = f[3]
		}
	}
	if done == 0 || done < len(lines) && codes[last] != "died" {
		return 0, fmt.Errorf("run mutants of %s: %w\n%s", pkg, errRun, out)
	}
	return done, nil
}

func text(all int, survivors []result, began time.Time, took time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Mutations

The last run of `+"`make mutate`"+`: each field that docs/cri.md calls honoured or refused was dropped from the requests of its test, one after
another, and the test had to fail.

| | |
|---|---|
| run on | %s |
| fields dropped | %d |
| noticed | %d |
| took | %v |
`, began.UTC().Format("2006-01-02 15:04 MST"), all, all-len(survivors), took)
	if len(survivors) > 0 {
		b.WriteString("\n| not noticed | test | |\n|---|---|---|\n")
		for _, s := range survivors {
			fmt.Fprintf(&b, "| `%s` | %s.%s | %s |\n", s.field, s.pkg, s.test, s.survived)
		}
	}
	return b.String()
}
