// SPDX-License-Identifier: Apache-2.0

package untar

import (
	"bytes"
	"io"
	"os"
	"testing"
)

// FuzzUnpack feeds arbitrary archives: nothing outside the directory may change, and a layer that says it can be rebuilt is.
func FuzzUnpack(f *testing.F) {
	needRoot(f)
	f.Add(archive(f, dir("d", 0o755), file("d/a", "abc"), symlink("s", "d"), link("h", "d/a"), file("s/b", "1"), file(".wh.x", "")))
	f.Add(archive(f, symlink("l", "/"), file("l/x", "1"), file("l/.wh.y", ""), file("d/.wh..wh..opq", "")))
	f.Add(archive(f, symlink("a", "../../.."), file("a/x", "1"), link("y", "a/x"), dir("a", 0o700), file("a", "2")))
	f.Fuzz(func(t *testing.T, b []byte) {
		top := t.TempDir()
		for _, d := range []string{"low", "fs"} {
			if err := os.Mkdir(top+"/"+d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		var recipe bytes.Buffer
		root := openDir(t, top+"/fs")
		res, err := Unpack(t.Context(), root, bytes.NewReader(b), Options{Recipe: &recipe, MaxBytes: 1 << 20, MaxEntries: 200})
		if left, _ := os.ReadDir(top); len(left) != 2 {
			t.Fatalf("made outside: %v", left)
		}
		if err != nil || !res.Rebuildable {
			return
		}
		var out bytes.Buffer
		if err := Rebuild(t.Context(), root, io.Reader(&recipe), &out); err != nil {
			t.Skip("a file was written to after it was noted")
		}
		if !bytes.Equal(out.Bytes(), b) {
			t.Fatalf("rebuilt %d bytes, had %d", out.Len(), len(b))
		}
	})
}
