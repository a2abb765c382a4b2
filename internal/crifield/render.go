// SPDX-License-Identifier: Apache-2.0

package crifield

import (
	"fmt"
	"strings"
)

const intro = `# Every field of CRI

What this runtime does with each field of each request of cri-api v1, and the test that shows it. Generated from the protocol's
descriptors and ` + "`internal/crifield/decisions.txt`" + ` by ` + "`make generate`" + `; a field that is not decided fails the build.

- **honoured**: it has the effect that the protocol describes. ` + "`make mutate`" + ` drops each such field from the requests of its test, which must
  fail then; docs/mutations.md has the last run.
- **refused**: a request with it fails, and the error names the field.
- **moot**: it is taken, and there is nothing here for it to act on.
`

// Markdown is docs/cri.md.
func Markdown() (string, error) {
	of, missing, _, err := Decided()
	if err != nil {
		return "", err
	}
	if len(missing) > 0 {
		return "", fmt.Errorf("write cri.md: %s is not decided: add it to internal/crifield/decisions.txt", missing[0].Name())
	}
	var b strings.Builder
	b.WriteString(intro)
	rpc, whole := "", ""
	for _, f := range All() {
		d := of[f]
		if f.RPC != rpc {
			rpc, whole = f.RPC, ""
			fmt.Fprintf(&b, "\n## %s\n\n| field | type | | shown by |\n|---|---|---|---|\n", rpc)
		}
		path, kind := f.Path, f.Kind
		if strings.HasSuffix(d.Field, ".*") { // one line for all of them
			if d.Field == whole {
				continue
			}
			whole = d.Field
			path, kind = strings.TrimPrefix(d.Field, rpc+"."), "and all below"
			if others(of, d) {
				path += " (the others)"
			}
		}
		verdict := "**" + string(d.Verdict) + "**"
		if d.Reason != "" {
			verdict += ": " + d.Reason
		}
		if path == "" {
			path, kind = "–", "the request has no fields"
		} else {
			path = "`" + strings.TrimSuffix(path, " (the others)") + "`" + strings.TrimPrefix(path, strings.TrimSuffix(path, " (the others)"))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", path, kind, verdict, d.Test)
	}
	return b.String(), nil
}

// others says whether some of the fields below a decision's are decided by themselves.
func others(of map[Field]Decision, d Decision) bool {
	for f, own := range of {
		if own.Field != d.Field && d.covers(f) {
			return true
		}
	}
	return false
}
