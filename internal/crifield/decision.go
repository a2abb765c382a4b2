// SPDX-License-Identifier: Apache-2.0

package crifield

import (
	_ "embed"
	"fmt"
	"strings"
)

// Verdict is what happens to a field that is set.
type Verdict string

// The verdicts.
const (
	// Honoured: it has the effect that the protocol describes.
	Honoured Verdict = "honoured"
	// Refused: the request fails with an error that names the field.
	Refused Verdict = "refused"
	// Moot: it is taken, and there is nothing for it to act on; the reason says why.
	Moot Verdict = "moot"
)

// Decision is what was decided about a field, or with a path that ends in .* about all fields below it.
type Decision struct {
	Field   string
	Verdict Verdict
	// Test shows it: package.TestName, with /subtest where a subtest does.
	Test string
	// Reason is needed with Refused and Moot.
	Reason string
}

//go:embed decisions.txt
var decisions string

// Decisions reads the table. Its lines are: field, verdict, test, and the reason after a #.
func Decisions() ([]Decision, error) {
	var out []Decision
	for line := range strings.Lines(decisions) {
		line, reason, _ := strings.Cut(strings.TrimSpace(line), "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) != 3 {
			return nil, fmt.Errorf("read decisions: %q has %d columns, not 3", line, len(f))
		}
		d := Decision{Field: f[0], Verdict: Verdict(f[1]), Test: f[2], Reason: strings.TrimSpace(reason)}
		switch {
		case d.Verdict != Honoured && d.Verdict != Refused && d.Verdict != Moot:
			return nil, fmt.Errorf("read decisions: %s: %q is no verdict", d.Field, d.Verdict)
		case d.Verdict != Honoured && d.Reason == "":
			return nil, fmt.Errorf("read decisions: %s: %s without a reason", d.Field, d.Verdict)
		}
		out = append(out, d)
	}
	return out, nil
}

// covers says whether a decision is about a field.
func (d Decision) covers(f Field) bool {
	below, whole := strings.CutSuffix(d.Field, ".*")
	return d.Field == f.Name() || whole && strings.HasPrefix(f.Name(), below+".")
}

// Decided finds the decision about each field; of several the one with the longest path counts. Missing are the fields without
// one, unused the decisions about nothing.
func Decided() (of map[Field]Decision, missing []Field, unused []Decision, err error) {
	all, err := Decisions()
	if err != nil {
		return nil, nil, nil, err
	}
	of = map[Field]Decision{}
	used := map[string]bool{}
	for _, f := range All() {
		var best *Decision
		for i, d := range all {
			if d.covers(f) && (best == nil || len(d.Field) > len(best.Field)) {
				best = &all[i]
			}
		}
		if best == nil {
			missing = append(missing, f)
			continue
		}
		of[f] = *best
		used[best.Field] = true
	}
	for _, d := range all {
		if !used[d.Field] {
			unused = append(unused, d)
		}
	}
	return of, missing, unused, nil
}
