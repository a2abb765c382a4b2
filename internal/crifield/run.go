// SPDX-License-Identifier: Apache-2.0

package crifield

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"strings"
)

// MutantsVar is the environment variable with the name of a file of mutants, one "FIELD TEST" a line. ResultsVar is that of the
// file which gets "begin FIELD" and "end FIELD CODE" for each, the code being what the test's run has ended with.
const (
	MutantsVar = "SHIM_MUTANTS"
	ResultsVar = "SHIM_MUTANT_RESULTS"
)

// Run is m.Run for packages whose tests show fields. With MutantsVar it runs the test of each mutant, one after another in this
// process: what their node takes to come up is spent once.
func Run(m interface{ Run() int }) int {
	list := os.Getenv(MutantsVar)
	if list == "" {
		return m.Run()
	}
	if err := run(m, list, os.Getenv(ResultsVar)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func run(m interface{ Run() int }, list, results string) error {
	in, err := os.Open(list)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(results, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	for s := bufio.NewScanner(in); s.Scan(); {
		field, test, _ := strings.Cut(s.Text(), " ")
		if err := flag.Set("test.run", pattern(test)); err != nil {
			return fmt.Errorf("choose test %s: %w", test, err)
		}
		if err := os.Setenv(dropVar, field); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "begin %s\n", s.Text()); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "end %s %d\n", s.Text(), m.Run()); err != nil {
			return err
		}
	}
	return os.Unsetenv(dropVar)
}

// pattern is the -run of one test or subtest.
func pattern(test string) string {
	parts := strings.Split(test, "/")
	for i, p := range parts {
		parts[i] = "^" + p + "$"
	}
	return strings.Join(parts, "/")
}
