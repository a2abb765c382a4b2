// SPDX-License-Identifier: Apache-2.0

package restart

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"testing"
)

// checkLong reads a log of numbered lines without keeping it in memory.
func checkLong(t *testing.T, path string, lines int) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	want := []byte(" stdout F 0")
	n := 0
	for in.Scan() {
		want = strconv.AppendInt(append(want[:0], " stdout F "...), int64(n), 10)
		if !bytes.HasSuffix(in.Bytes(), want) || bytes.IndexByte(in.Bytes(), ' ')+len(want) != len(in.Bytes()) {
			t.Fatalf("line %d is %q", n, in.Bytes())
		}
		n++
	}
	if err := in.Err(); err != nil || n != lines {
		t.Errorf("%d lines, %v; want %d", n, err, lines)
	}
}
