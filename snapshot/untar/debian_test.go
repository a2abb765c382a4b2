// SPDX-License-Identifier: Apache-2.0

package untar_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"crishim.dev/snapshot"
)

// What is done to the tree, each a layer that umoci makes of the difference.
var debianChanges = []string{
	// Packages go, directories and files change places, files get other owners, modes, attributes, times and names.
	`chroot . dpkg --purge --force-depends --force-remove-essential sysvinit-utils tzdata e2fsprogs
	rm -r usr/share/doc/bash var/log
	echo now a file > var/log
	rm etc/passwd- && mkdir etc/passwd-
	mv usr/share/perl5 usr/share/perl6
	ln usr/bin/perl usr/bin/perl-again
	chmod u-s usr/bin/su
	chown 12:34 etc/issue
	ln -sf ../nowhere etc/issue.net
	: > etc/fstab
	touch -h -d 1969-05-05 etc/fstab lib64
	mknod dev/odd c 1 300
	mkfifo run/fifo
	truncate -s 10M var/sparse`,
	// Some of it comes back, and what came is changed.
	`rm var/log && mkdir -p var/log/apt && echo again > var/log/apt/history.log
	rmdir etc/passwd- && cp -p etc/passwd etc/passwd-
	rm -r usr/share/perl6/Debconf
	mkdir usr/share/doc/bash && echo new > usr/share/doc/bash/README
	rm usr/bin/perl-again run/fifo
	chmod 4755 usr/bin/su
	rm -r usr/lib/locale && ln -s /usr/share usr/lib/locale`,
}

// A Debian system, and what becomes of it in two more layers, looks through the overlay as the tree does that the layers were made of:
// every name, owner, mode, time, attribute, device, hard link and content.
func TestDebian(t *testing.T) {
	if testing.Short() {
		t.Skip("a whole Debian system takes half a minute")
	}
	s := newStore(t)
	tree, err := exec.CommandContext(t.Context(), "../../hack/tool", "debian").Output()
	if err != nil {
		t.Skipf("no Debian tree (hack/tool debian needs debootstrap and a Debian mirror): %v", err)
	}
	if _, err := exec.LookPath("umoci"); err != nil {
		t.Skip("umoci is not installed (hack/deps)")
	}
	image, rootfs := debianImage(t, strings.TrimSpace(string(tree)))
	var keys []snapshot.Key
	for _, layer := range layersOf(t, image) {
		keys = s.add(t, keys, layer)
	}
	if len(keys) != 1+len(debianChanges) {
		t.Fatalf("%d layers", len(keys))
	}
	if err := s.Create(t.Context(), "c", keys); err != nil {
		t.Fatal(err)
	}
	f, err := s.Mount(t.Context(), "c", snapshot.Mount{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, want := describe(t, fmt.Sprintf("/proc/self/fd/%d/", f.Fd())), describe(t, rootfs)
	delete(want, "") // whose time is that of the writable layer; TestRandomImages has its owner and mode
	delete(got, "")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-tree +overlay)\n%s", diff)
	}
	if len(want) < 5000 {
		t.Errorf("%d names: that is no Debian", len(want))
	}
	t.Logf("%d names", len(want))
}

// debianImage makes an OCI layout of an archive and the changes to it, by umoci, and the tree that it is an image of.
func debianImage(t *testing.T, tree string) (layout, rootfs string) {
	t.Helper()
	image, bundle := filepath.Join(t.TempDir(), "oci"), filepath.Join(t.TempDir(), "bundle")
	umoci := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "umoci", args...).CombinedOutput(); err != nil {
			t.Fatalf("umoci %s: %v: %s", args, err, out)
		}
	}
	umoci("init", "--layout", image)
	umoci("new", "--image", image+":v")
	umoci("raw", "add-layer", "--image", image+":v", tree)
	umoci("unpack", "--image", image+":v", bundle)
	capable := []byte{1, 0, 0, 2, 0, 0x20, 19: 0} // cap_net_raw
	for i, script := range debianChanges {
		// umoci writes times in whole seconds.
		script = "touch -d '1 minute ago' ../mark\n" + script + "\nfind . -newer ../mark -exec touch --no-dereference --date=2030-01-01 {} +"
		change := exec.CommandContext(t.Context(), "sh", "-e", "-c", script)
		change.Dir = filepath.Join(bundle, "rootfs")
		if out, err := change.CombinedOutput(); err != nil {
			t.Fatalf("change the tree: %v: %s", err, out)
		}
		if err := unix.Setxattr(filepath.Join(change.Dir, []string{"usr/bin/tar", "usr/bin/cat"}[i]), "security.capability", capable, 0); err != nil {
			t.Fatal(err)
		}
		umoci("repack", "--refresh-bundle", "--image", image+":v", bundle)
	}
	return image, filepath.Join(bundle, "rootfs")
}

// layersOf reads the layers of the only image of an OCI layout, unpacked.
func layersOf(t *testing.T, layout string) (out [][]byte) {
	t.Helper()
	read := func(name string, v any) {
		b, err := os.ReadFile(filepath.Join(layout, name))
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var index v1.Index
	var m v1.Manifest
	read("index.json", &index)
	read("blobs/sha256/"+index.Manifests[0].Digest.Encoded(), &m)
	for _, l := range m.Layers {
		f, err := os.Open(filepath.Join(layout, "blobs/sha256", l.Digest.Encoded()))
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		out = append(out, b)
	}
	return out
}

// describe lists all that can be seen of a tree, by name.
func describe(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	first := map[uint64]string{} // the first name of each file with several
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name := strings.Trim(strings.TrimPrefix(path, strings.TrimSuffix(root, "/")), "/")
		line := fmt.Sprintf("%o %d:%d %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		if !d.IsDir() && st.Nlink > 1 {
			if first[st.Ino] == "" {
				first[st.Ino] = name
			}
			line += fmt.Sprintf(" %d names, first %s", st.Nlink, first[st.Ino])
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" device %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d bytes %x", len(b), sha256.Sum256(b))
		}
		out[name] = line + attributes(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// attributes lists the extended attributes of a file, but for labels, which are the host's.
func attributes(t *testing.T, path string) string {
	t.Helper()
	list, value := make([]byte, 64<<10), make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00")
	slices.Sort(names)
	var out strings.Builder
	for _, name := range names {
		if name == "" || name == "security.selinux" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, " %s=%q", name, value[:n])
	}
	return out.String()
}
