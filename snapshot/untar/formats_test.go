// SPDX-License-Identifier: Apache-2.0

package untar

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// archiveBy has tar pack what is in a directory.
func archiveBy(t *testing.T, dir string, options ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "tar", append([]string{"-c", "-C", dir, "."}, options...)...)
	b, err := cmd.Output()
	if err != nil {
		t.Fatalf("tar %v: %v", options, err)
	}
	return b
}

// Each way that GNU tar has to write sparse files gives the content, and the holes.
func TestSparse(t *testing.T) {
	needRoot(t)
	src := t.TempDir()
	const size = 8 << 20
	want := make([]byte, size)
	var err error
	write := func(name string) *os.File {
		f, e := os.Create(filepath.Join(src, name))
		err = errors.Join(err, e)
		if e == nil {
			err = errors.Join(err, f.Truncate(size))
		}
		return f
	}
	f := write("sparse")
	for i := range 12 { // more pieces than a header has room for
		at := 4096 + i*600<<10
		n := copy(want[at:], strings.Repeat("content ", 700+i))
		_, e := f.WriteAt(want[at:at+n], int64(at))
		err = errors.Join(err, e)
	}
	if err := errors.Join(err, f.Close(), write("hole").Close()); err != nil {
		t.Fatal(err)
	}
	for name, options := range map[string][]string{
		"gnu": {"-S", "--format=gnu"}, "oldgnu": {"-S", "--format=oldgnu"}, "pax 0.0": {"-S", "--format=posix", "--sparse-version=0.0"},
		"pax 0.1": {"-S", "--format=posix", "--sparse-version=0.1"}, "pax 1.0": {"-S", "--format=posix", "--sparse-version=1.0"},
	} {
		b := archiveBy(t, src, options...)
		if len(b) > size {
			t.Fatalf("%s: tar wrote %d bytes: nothing is sparse", name, len(b))
		}
		d, _, err := unpackBytes(t, "", b, Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		wantContent(t, d+"/hole", string(make([]byte, size)))
		wantContent(t, d+"/sparse", string(want))
		for file, most := range map[string]int64{"hole": 0, "sparse": 1 << 20} {
			if st := stat(t, d+"/"+file); st.Size != size || st.Blocks*512 > most {
				t.Errorf("%s: %s has %d bytes in %d of disk", name, file, st.Size, st.Blocks*512)
			}
		}
	}
}

// Names and targets of links as long as Linux takes them come as they are, in each format that can hold them.
func TestLongNames(t *testing.T) {
	needRoot(t)
	src := t.TempDir()
	long := strings.Repeat(strings.Repeat("n", 200)+"/", 15)
	component := strings.Repeat("ü", 127)
	target := strings.Repeat("t", 3000)
	// Below descriptors: with the test's directory before it, the name is too long for a path.
	root, err := os.OpenRoot(src)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := root.MkdirAll(long, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{long + component, component} {
		if err := root.WriteFile(name, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := root.Symlink(target, "link"); err != nil {
		t.Fatal(err)
	}
	if err := root.Link(long+component, "again"); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "oldgnu", "posix"} {
		d, _, err := unpackBytes(t, "", archiveBy(t, src, "--format="+format), Options{})
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		wantContent(t, d+"/"+long+component, long+component)
		wantContent(t, d+"/"+component, component)
		if l, err := os.Readlink(d + "/link"); err != nil || l != target {
			t.Errorf("%s: the link leads to %d bytes, %v", format, len(l), err)
		}
		if stat(t, d+"/again").Ino != stat(t, d+"/"+long+component).Ino {
			t.Errorf("%s: a hard link of a long name is a file of its own", format)
		}
	}
}
