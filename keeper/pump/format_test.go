// SPDX-License-Identifier: Apache-2.0

package pump

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func formatted(t *testing.T, in string, stream int, capacity int) string {
	t.Helper()
	var got bytes.Buffer
	at := time.Date(2026, 3, 4, 5, 6, 7, 80_000_009, time.UTC)
	err := format(make([]byte, 0, capacity), []byte(in), at.UnixNano(), stream, func(b []byte) error {
		got.Write(b)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got.String()
}

func TestFormat(t *testing.T) {
	const o, e = "2026-03-04T05:06:07.080000009Z stdout ", "2026-03-04T05:06:07.080000009Z stderr "
	x := strings.Repeat("x", maxLine)
	for name, c := range map[string]struct {
		in     string
		stream int
		want   string
	}{
		"one":             {"hello\n", 0, o + "F hello\n"},
		"several":         {"a\n\nb\n", 1, e + "F a\n" + e + "F \n" + e + "F b\n"},
		"no newline":      {"a\nb", 0, o + "F a\n" + o + "P b\n"},
		"exactly full":    {x + "\n", 0, o + "F " + x + "\n"},
		"one more":        {x + "y\n", 0, o + "P " + x + "\n" + o + "F y\n"},
		"two parts":       {x + x + "\n", 0, o + "P " + x + "\n" + o + "F " + x + "\n"},
		"parts only":      {x + x, 0, o + "P " + x + "\n" + o + "P " + x + "\n"},
		"long at the end": {x + "y", 0, o + "P " + x + "\n" + o + "P y\n"},
	} {
		for _, capacity := range []int{maxLine + 64, 1 << 20} {
			if got := formatted(t, c.in, c.stream, capacity); got != c.want {
				t.Errorf("%s: %d bytes %.80q, want %d bytes %.80q", name, len(got), got, len(c.want), c.want)
			}
		}
	}
}

func TestWhole(t *testing.T) {
	x := strings.Repeat("x", maxLine)
	for in, want := range map[string]int{
		"": 0, "a": 0, "a\n": 2, "a\nb": 2, x: 0, x + "\n": maxLine + 1, x + "y": maxLine, "\n" + x + x: 1 + maxLine, "\n" + x + x + "y": 1 + 2*maxLine,
	} {
		if got := whole([]byte(in)); got != want {
			t.Errorf("%d bytes: %d, want %d", len(in), got, want)
		}
	}
}

// However the input is cut into batches, the lines come out the same.
func TestFormatBatches(t *testing.T) {
	in := []byte("a\n" + strings.Repeat("b", 3*maxLine) + "\n\nccc\n" + strings.Repeat("d", maxLine) + "\ne")
	want := formatted(t, string(in), 0, 1<<20)
	for _, step := range []int{11, 1000, maxLine, maxLine + 1, 50000} {
		var got strings.Builder
		var have []byte
		for left := in; len(left) > 0 || len(have) > 0; {
			n := min(step, len(left))
			have, left = append(have, left[:n]...), left[n:]
			use := whole(have)
			if len(left) == 0 {
				use = len(have)
			}
			got.WriteString(formatted(t, string(have[:use]), 0, maxLine+64))
			have = have[use:]
		}
		if got.String() != want {
			t.Errorf("steps of %d: %d bytes, want %d", step, got.Len(), len(want))
		}
	}
}
