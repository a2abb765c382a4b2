// SPDX-License-Identifier: Apache-2.0

package ids

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"crishim.dev/internal/errs"
)

func TestNew(t *testing.T) {
	if a, b := New(), New(); a == b || !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(a) {
		t.Errorf("%s, %s", a, b)
	}
}

func TestFind(t *testing.T) {
	type id string
	all := map[id]int{"aa": 1, "aab": 2, "abc": 3, "hidden": 0}
	listed := func(v int) bool { return v != 0 }
	for name, want := range map[string]int{"aa": 1, "aab": 2, "ab": 3, "abc": 3} {
		if got, err := Find(all, name, "thing", listed); got != want || err != nil {
			t.Errorf("%s: %d, %v; want %d", name, got, err, want)
		}
	}
	for name, kind := range map[string]error{"": errs.NotFound, "x": errs.NotFound, "hidden": errs.NotFound, "hid": errs.NotFound, "abcd": errs.NotFound, "a": errs.Invalid} {
		if got, err := Find(all, name, "thing", listed); got != 0 || !errors.Is(err, kind) || !strings.Contains(err.Error(), "thing") {
			t.Errorf("%q: %d, %v; want %v", name, got, err, kind)
		}
	}
}
