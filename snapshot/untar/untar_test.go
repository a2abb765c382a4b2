// SPDX-License-Identifier: Apache-2.0

package untar

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

// e is one entry of a test archive.
type e struct {
	tar.Header
	body string
}

func file(name, body string) e {
	return e{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body)), ModTime: time.Unix(1e9, 5)}, body}
}
func dir(name string, mode int64) e {
	return e{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, ModTime: time.Unix(1e9, 6)}}
}
func symlink(name, target string) e {
	return e{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}
func link(name, target string) e {
	return e{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
}

func archive(t testing.TB, entries ...e) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Format = tar.FormatPAX
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("chown, mknod and trusted attributes need root")
	}
}

func openDir(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// unpack unpacks entries into a new directory on top of the directory lower ("": none).
func unpack(t testing.TB, lower string, entries ...e) (dir string, res Result, err error) {
	t.Helper()
	return unpackBytes(t, lower, archive(t, entries...), Options{})
}

func unpackBytes(t testing.TB, lower string, b []byte, o Options) (dir string, res Result, err error) {
	t.Helper()
	needRoot(t)
	dir = filepath.Join(t.TempDir(), "fs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if lower != "" {
		o.Lower = func(context.Context) (*os.File, error) { return os.Open(lower) }
	}
	res, err = Unpack(t.Context(), openDir(t, dir), bytes.NewReader(b), o)
	return dir, res, err
}

func stat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st
}

func wantContent(t *testing.T, path, want string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != want {
		t.Errorf("%s: %q, %v; want %q", path, b, err, want)
	}
}

func wantGone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v, want it not to exist", path, err)
	}
}

func TestMetadata(t *testing.T) {
	f := file("bin/su", "x")
	f.Mode, f.Uid, f.Gid = 0o4755, 1000, 4294967294
	caps := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	f.PAXRecords = map[string]string{
		"SCHILY.xattr.security.capability":    caps,
		"SCHILY.xattr.user.note":              "zero\x00byte",
		"SCHILY.xattr.trusted.overlay.opaque": "y",
		"SCHILY.xattr.security.selinux":       "label",
	}
	old := file("old", "")
	old.ModTime = time.Unix(-86400, 7)
	far := file("far", "")
	far.ModTime = time.Unix(1<<33, 0)
	fifo := e{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o620}}
	null := e{Header: tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 300}}
	root := dir("./", 0o1755)
	root.Uid = 3
	d, res, err := unpack(t, "", root, dir("bin", 0o2750), f, old, far, fifo, null, symlink("sym", "/etc/none"),
		file("Ünï\xff\xfe", "name"), link("hard", "bin/su"))
	if err != nil {
		t.Fatal(err)
	}
	if !res.RootSet || !res.SelfContained || res.Entries != 10 {
		t.Errorf("result %+v", res)
	}
	su := stat(t, d+"/bin/su")
	if su.Mode != unix.S_IFREG|0o4755 || su.Uid != 1000 || su.Gid != 4294967294 || su.Mtim != (unix.Timespec{Sec: 1e9, Nsec: 5}) || su.Nlink != 2 {
		t.Errorf("bin/su: %+v", su)
	}
	buf := make([]byte, 100)
	for name, want := range map[string]string{"security.capability": caps, "user.note": "zero\x00byte"} {
		if n, err := unix.Getxattr(d+"/bin/su", name, buf); err != nil || string(buf[:n]) != want {
			t.Errorf("%s: %q, %v", name, buf[:max(n, 0)], err)
		}
	}
	if n, err := unix.Getxattr(d+"/bin/su", opaqueName, buf); err == nil {
		t.Errorf("an image set %s to %q", opaqueName, buf[:n])
	}
	if st := stat(t, d+"/bin"); st.Mode != unix.S_IFDIR|0o2750 || st.Mtim != (unix.Timespec{Sec: 1e9, Nsec: 6}) {
		t.Errorf("bin: %+v", st)
	}
	if st := stat(t, d); st.Mode != unix.S_IFDIR|0o1755 || st.Uid != 3 || st.Mtim.Sec != 1e9 {
		t.Errorf("root: %+v", st)
	}
	if st := stat(t, d+"/old"); st.Mtim != (unix.Timespec{Sec: -86400, Nsec: 7}) {
		t.Errorf("old: %+v", st.Mtim)
	}
	if st := stat(t, d+"/far"); st.Mtim.Sec != 1<<33 {
		t.Errorf("far: %+v", st.Mtim)
	}
	if st := stat(t, d+"/fifo"); st.Mode != unix.S_IFIFO|0o620 {
		t.Errorf("fifo: %+v", st)
	}
	if st := stat(t, d+"/null"); st.Mode != unix.S_IFCHR|0o666 || st.Rdev != unix.Mkdev(1, 300) {
		t.Errorf("null: %+v", st)
	}
	if l, err := os.Readlink(d + "/sym"); err != nil || l != "/etc/none" {
		t.Errorf("sym: %q, %v", l, err)
	}
	wantContent(t, d+"/Ünï\xff\xfe", "name")
}

func TestLaterEntriesReplaceEarlier(t *testing.T) {
	d, _, err := unpack(t, "", dir("d", 0o755), file("d/keep", "1"), dir("d", 0o700), file("f", "1"), file("f", "22"),
		dir("f2", 0o755), file("f2/x", ""), file("f2", "now a file"), file("g", ""), dir("g", 0o711), symlink("s", "d"), file("s", "no link"),
		symlink("g2", "nowhere"), link("g2", "f"), link("f", "f"))
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, d+"/d/keep", "1")
	wantContent(t, d+"/f", "22")
	wantContent(t, d+"/f2", "now a file")
	wantContent(t, d+"/s", "no link")
	wantContent(t, d+"/g2", "22")
	if st := stat(t, d+"/g"); st.Mode != unix.S_IFDIR|0o711 {
		t.Errorf("g: %o", st.Mode)
	}
	if !isOpaque(int(openDir(t, d).Fd()), "g") {
		t.Error("a directory that replaced a file shows what is below it")
	}
	if st := stat(t, d+"/d"); st.Mode != unix.S_IFDIR|0o700 {
		t.Errorf("d: %o", st.Mode)
	}
}

func TestWhiteouts(t *testing.T) {
	d, res, err := unpack(t, t.TempDir(), dir("a", 0o755), file("a/.wh.gone", ""), dir("b", 0o755), file("b/.wh..wh..opq", ""), file("b/new", "1"),
		dir("c", 0o755), file("c/in", ""), file(".wh.c", ""), file("k", "stays"), file(".wh.k", ""), file(".wh.l", ""), file("l", "back"),
		file(".wh.m", ""), dir("m", 0o755), file(".wh..wh.plnk", ""), dir("x", 0o755), file("x/.wh.deep", ""), file("x/deep/y", "1"))
	if err != nil {
		t.Fatal(err)
	}
	root := int(openDir(t, d).Fd())
	for _, n := range []string{"a/gone"} {
		if st := stat(t, d+"/"+n); !isWhiteout(&st) {
			t.Errorf("%s: %o, want a whiteout", n, st.Mode)
		}
	}
	for _, n := range []string{"b", "c", "m", "x/deep"} {
		if !isOpaque(root, n) {
			t.Errorf("%s is not opaque", n)
		}
	}
	for n, want := range map[string]string{"b/new": "1", "c/in": "", "k": "stays", "l": "back", "x/deep/y": "1"} {
		wantContent(t, d+"/"+n, want)
	}
	for _, n := range []string{"a/.wh.gone", "b/.wh..wh..opq", ".wh..wh.plnk"} {
		wantGone(t, d+"/"+n)
	}
	if !res.SelfContained {
		t.Error("nothing had to be looked up below")
	}
}

func TestWhatComesFromBelow(t *testing.T) {
	low, _, err := unpack(t, "", e{Header: tar.Header{Typeflag: tar.TypeDir, Name: "etc", Mode: 0o2711, Uid: 9, Gid: 8, ModTime: time.Unix(5e8, 0),
		PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y"}}}, file("etc/passwd", "low"), dir("usr", 0o755), dir("usr/lib", 0o750), symlink("lib", "usr/lib"),
		symlink("etc/sym", "passwd"), file("plain", ""), dir("opq", 0o700))
	if err != nil {
		t.Fatal(err)
	}
	d, res, err := unpack(t, low, file("etc/new", "1"), file("lib/so", "2"), link("etc/shadow", "etc/passwd"), link("sym2", "etc/sym"), file("nowhere/f", "3"),
		file(".wh.opq", ""), file("opq/in", "4"))
	if err != nil {
		t.Fatal(err)
	}
	if res.SelfContained {
		t.Error("it took from below and says it did not")
	}
	etc := stat(t, d+"/etc")
	if etc.Mode != unix.S_IFDIR|0o2711 || etc.Uid != 9 || etc.Gid != 8 || etc.Mtim.Sec != 5e8 {
		t.Errorf("etc: %+v", etc)
	}
	buf := make([]byte, 10)
	if n, err := unix.Getxattr(d+"/etc", "user.x", buf); err != nil || string(buf[:n]) != "y" {
		t.Errorf("attribute: %q %v", buf[:max(n, 0)], err)
	}
	wantContent(t, d+"/usr/lib/so", "2")
	wantGone(t, d+"/lib")
	wantContent(t, d+"/etc/passwd", "low")
	if a, b := stat(t, d+"/etc/passwd"), stat(t, d+"/etc/shadow"); a.Ino != b.Ino || a.Mtim.Sec != 1e9 {
		t.Errorf("the link is none: %+v %+v", a, b)
	}
	if l, err := os.Readlink(d + "/sym2"); err != nil || l != "passwd" {
		t.Errorf("a link to a symbolic link: %q, %v", l, err)
	}
	if st := stat(t, d+"/nowhere"); st.Mode != unix.S_IFDIR|0o755 {
		t.Errorf("nowhere: %o", st.Mode)
	}
	if st := stat(t, d+"/opq"); st.Mode != unix.S_IFDIR|0o755 {
		t.Errorf("a removed directory lends its mode: %o", st.Mode)
	}
	if _, _, err := unpack(t, low, file("plain/.wh.x", ""), file("file", ""), file("file/.wh.x", "")); err != nil {
		t.Errorf("whiteouts in what is no directory, which hide nothing: %v", err)
	}
	if _, _, err := unpack(t, low, file("plain/x", "")); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file below as parent: %v", err)
	}
}

func TestOpaqueRoot(t *testing.T) {
	low, _, err := unpack(t, "", file("a", ""), dir("d", 0o755), file("d/x", ""))
	if err != nil {
		t.Fatal(err)
	}
	d, _, err := unpack(t, low, file(".wh..wh..opq", ""), dir("d", 0o755), file("new", ""))
	if err != nil {
		t.Fatal(err)
	}
	if st := stat(t, d+"/a"); !isWhiteout(&st) || !isOpaque(int(openDir(t, d).Fd()), "d") {
		t.Error("what is below still shows")
	}
}

// Each hostile archive is refused by name, or what it does stays inside.
func TestHostile(t *testing.T) {
	outside := t.TempDir()
	if err := os.WriteFile(outside+"/victim", []byte("safe"), 0o600); err != nil {
		t.Fatal(err)
	}
	sparse := file("s", "")
	many := make([]e, 0, 101)
	for i := range 101 {
		many = append(many, file(fmt.Sprint("f", i), ""))
	}
	owner := file("o", "")
	owner.Uid = math.MaxUint32
	for name, tt := range map[string]struct {
		entries []e
		want    string // in the error; "": contained
		kind    error
	}{
		"dotdot":             {[]e{file("../../victim", "x")}, `"../../victim"`, errs.Invalid},
		"dotdot inside":      {[]e{file("a/../../victim", "x")}, "climbs out", errs.Invalid},
		"absolute":           {[]e{file(outside+"/victim", "x")}, "", nil},
		"link out":           {[]e{symlink("l", outside), file("l/victim", "x")}, "", nil},
		"relative link out":  {[]e{symlink("l", "../../../../../../../.."+outside), file("l/victim", "x")}, "", nil},
		"link is the file":   {[]e{symlink("l", outside+"/victim"), file("l", "x")}, "", nil},
		"chain of links":     {[]e{symlink("a", "b"), symlink("b", outside), file("a/victim", "x")}, "", nil},
		"loop of links":      {[]e{symlink("a", "b"), symlink("b", "a"), file("a/x", "x")}, "too many levels", unix.ELOOP},
		"hard link out":      {[]e{link("l", "../../"+outside+"/victim")}, "climbs out", errs.Invalid},
		"hard link absolute": {[]e{link("l", outside+"/victim"), file("l", "x")}, "no such file", unix.ENOENT},
		"hard link by link":  {[]e{symlink("d", outside), link("l", "d/victim")}, "no such file", unix.ENOENT},
		"hard link to dir":   {[]e{dir("d", 0o755), link("l", "d")}, "directory", errs.Invalid},
		"hard link removed":  {[]e{file(".wh.a", ""), link("l", "a")}, "removes", errs.Invalid},
		"whiteout dotdot":    {[]e{file(".wh...", "")}, "without a name", errs.Invalid},
		"whiteout dot":       {[]e{file("a/.wh..", "")}, "without a name", errs.Invalid},
		"whiteout by link":   {[]e{symlink("d", outside), file("d/.wh.victim", "")}, "", nil},
		"mode through link":  {[]e{symlink("l", outside+"/victim"), dir("l", 0o777)}, "", nil},
		"proc":               {[]e{symlink("p", "/proc/self/root"), file("p"+outside+"/victim", "x")}, "", nil},
		"owner -1":           {[]e{owner}, "owner", errs.Invalid},
		"device number":      {[]e{{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "b", Devmajor: 1 << 20}}}, "device number", errs.Invalid},
		"long component":     {[]e{file(strings.Repeat("x", 300), "")}, "too long", unix.ENAMETOOLONG},
		"unknown type":       {[]e{{Header: tar.Header{Typeflag: 'Z', Name: "z"}}}, "unknown entry type", errs.Invalid},
		"too many":           {many, "more than 100 entries", errs.Exhausted},
		"too large":          {[]e{file("big", strings.Repeat("x", 2<<20))}, "larger than", errs.Exhausted},
		"file as parent":     {[]e{file("f", ""), file("f/x", "")}, "not a directory", unix.ENOTDIR},
		"fine":               {[]e{sparse}, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := unpackBytes(t, "", archive(t, tt.entries...), Options{MaxEntries: 100, MaxBytes: 1 << 20})
			if tt.want == "" && err != nil {
				t.Errorf("refused: %v", err)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, tt.kind)) {
				t.Errorf("got %v, want %q of kind %v", err, tt.want, tt.kind)
			}
			wantContent(t, outside+"/victim", "safe")
			if st := stat(t, outside+"/victim"); st.Mode != unix.S_IFREG|0o600 || st.Nlink != 1 {
				t.Errorf("touched outside: %+v", st)
			}
			if left, _ := os.ReadDir(outside); len(left) != 1 {
				t.Errorf("made outside: %v", left)
			}
		})
	}
}

func TestBrokenStreams(t *testing.T) {
	b := archive(t, file("a", strings.Repeat("x", 5000)), file("b", "1"))
	for _, n := range []int{1, 511, 3000, 5632, 6200, 7000} {
		if _, _, err := unpackBytes(t, "", b[:n], Options{}); err == nil {
			t.Errorf("%d bytes of %d were enough", n, len(b))
		}
	}
	bad := bytes.Clone(b)
	bad[148] ^= 1
	if _, _, err := unpackBytes(t, "", bad, Options{}); !errors.Is(err, errs.Invalid) {
		t.Errorf("bad checksum: %v", err)
	}
	if _, _, err := unpackBytes(t, "", append(bytes.Clone(b), "trailing"...), Options{}); err != nil {
		t.Errorf("trailing bytes: %v", err)
	}
	full := errors.New("disk full")
	if _, _, err := unpackBytes(t, "", append(b, make([]byte, 64<<20)...), Options{Room: func() error { return full }}); !errors.Is(err, full) {
		t.Errorf("Room's error: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ctx, openDir(t, t.TempDir()), bytes.NewReader(b), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A sparse file of nothing but holes takes nothing from the stream and minutes to pass; a cancel ends it all the same.
func TestCancelInHoles(t *testing.T) {
	needRoot(t)
	tar := exec.CommandContext(t.Context(), "sh", "-c", "truncate -s 200G hole && tar -c -S --format=gnu hole")
	tar.Dir = t.TempDir()
	b, err := tar.Output()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	room := func() error { cancel(); return nil }
	if _, err := Unpack(ctx, openDir(t, t.TempDir()), bytes.NewReader(b), Options{Room: room}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	_, err = Unpack(t.Context(), openDir(t, t.TempDir()), bytes.NewReader(b), Options{MaxBytes: 100 << 30})
	if !errors.Is(err, errs.Exhausted) {
		t.Errorf("larger than allowed: %v", err)
	}
}

func TestRebuild(t *testing.T) {
	low, _, err := unpack(t, "", symlink("lib", "usr/lib"), dir("usr", 0o755), dir("usr/lib", 0o755))
	if err != nil {
		t.Fatal(err)
	}
	b := append(archive(t, dir("d", 0o755), file("d/a", strings.Repeat("abc", 100000)), file("empty", ""), symlink("s", "d"), link("h", "d/a"),
		file("s/b", "through a link"), file("lib/c", "through a link below"), file(".wh.x", "odd content")), "trailing"...)
	var recipe bytes.Buffer
	d, res, err := unpackBytes(t, low, b, Options{Recipe: &recipe})
	if err != nil || !res.Rebuildable {
		t.Fatalf("%+v %v", res, err)
	}
	var out bytes.Buffer
	if err := Rebuild(t.Context(), openDir(t, d), bytes.NewReader(recipe.Bytes()), &out); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), b) {
		t.Fatalf("%d bytes are not the %d of before", out.Len(), len(b))
	}
	if err := os.WriteFile(d+"/d/b", []byte("through a LINK"), 0o644); err != nil {
		t.Fatal(err)
	}
	err = Rebuild(t.Context(), openDir(t, d), bytes.NewReader(recipe.Bytes()), io.Discard)
	if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), `"d/b"`) {
		t.Errorf("changed content: %v", err)
	}
	_, res, err = unpackBytes(t, "", archive(t, file("a", "1"), file("a", "2")), Options{Recipe: &recipe})
	if err != nil || res.Rebuildable {
		t.Errorf("a replaced entry: %+v, %v", res, err)
	}
}
