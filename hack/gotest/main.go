// SPDX-License-Identifier: Apache-2.0

// Command gotest runs `go test` and reports like it, with an ending that says how many tests passed, failed and were
// skipped, and why they were skipped. The output of a test that passes is not shown.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// event is one line of `go test -json` (cmd/test2json).
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Output      string
	Elapsed     float64
	FailedBuild string
}

// report gathers what the events say.
type report struct {
	out     io.Writer
	output  map[string][]string // package + test → lines, until its end
	passed  int
	failed  []string
	skipped map[string]int // reason → tests
}

func main() {
	began := time.Now()
	r := &report{out: os.Stdout, output: make(map[string][]string), skipped: make(map[string]int)}
	err := r.run(append([]string{"test", "-json", "-timeout=25m"}, os.Args[1:]...))
	r.close(err, time.Since(began))
	if err != nil || len(r.failed) > 0 {
		os.Exit(1)
	}
}

// run executes go with args and feeds every event to the report.
func (r *report) run(args []string) error {
	cmd := exec.Command("go", args...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewReader(pipe)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			r.line(line)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return errors.Join(err, cmd.Wait())
		}
	}
	return cmd.Wait()
}

func (r *report) line(line []byte) {
	var e event
	if json.Unmarshal(line, &e) != nil {
		fmt.Fprintf(r.out, "%s", line)
		return
	}
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output":
		r.output[key] = append(r.output[key], e.Output)
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.endPackage(e, r.output[key])
		} else {
			r.endTest(e, r.output[key])
		}
		delete(r.output, key)
	}
}

func (r *report) endTest(e event, output []string) {
	switch e.Action {
	case "pass":
		r.passed++
	case "skip":
		r.skipped[reason(output)]++
	case "fail":
		r.failed = append(r.failed, strings.TrimSpace(e.Package+" "+e.Test))
		fmt.Fprint(r.out, strings.Join(output, ""))
	}
}

// endPackage prints the one line that go test itself prints, and everything when the package failed outside a test.
func (r *report) endPackage(e event, output []string) {
	if e.Action == "fail" {
		if !slices.ContainsFunc(r.failed, func(f string) bool { return strings.HasPrefix(f, e.Package+" ") }) {
			r.failed = append(r.failed, e.Package)
		}
		for key, lines := range r.output { // tests that a crash or a time limit cut short
			if strings.HasPrefix(key, e.Package+" ") && key != e.Package+" " {
				fmt.Fprint(r.out, strings.Join(lines, ""))
				delete(r.output, key)
			}
		}
		fmt.Fprint(r.out, strings.Join(output, ""))
		return
	}
	for _, l := range output {
		if strings.HasPrefix(l, "ok") || strings.HasPrefix(l, "?") && !strings.Contains(l, "no test files") {
			fmt.Fprint(r.out, l)
		}
	}
}

// reason is what the test said before it skipped.
func reason(output []string) string {
	for _, l := range slices.Backward(output) {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "---") || strings.HasPrefix(l, "===") {
			continue
		}
		if _, text, ok := strings.Cut(l, ": "); ok {
			return text
		}
		return l
	}
	return "no reason given"
}

func (r *report) close(err error, took time.Duration) {
	skipped := 0
	for _, why := range slices.Sorted(maps.Keys(r.skipped)) {
		skipped += r.skipped[why]
		fmt.Fprintf(r.out, "skipped %d: %s\n", r.skipped[why], why)
	}
	for _, f := range r.failed {
		fmt.Fprintf(r.out, "failed: %s\n", f)
	}
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.passed, len(r.failed), skipped)
	if err != nil || len(r.failed) > 0 {
		fmt.Fprintf(r.out, "FAIL\tcrishim.dev\t%.3fs\n", took.Seconds())
		return
	}
	fmt.Fprintf(r.out, "ok  \tcrishim.dev\t%.3fs\n", took.Seconds())
}
