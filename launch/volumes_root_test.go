// SPDX-License-Identifier: Apache-2.0

package launch_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crishim.dev/launch"
)

// dirWith is a directory with one file in it.
func dirWith(t testing.TB, name, content string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (b *box) volume(t testing.TB, target, source string) {
	t.Helper()
	st, err := os.Stat(source)
	if err != nil {
		t.Fatal(err)
	}
	b.Mounts = append(b.Mounts, launch.Mount{Target: target, FD: b.list.Add(tree(t, source)), File: !st.IsDir()})
}

func TestVolumes(t *testing.T) {
	b := newBox(t, "cat /data/outer /data/sub/deep/inner /etc/one /dev/two /run/here /var/run/secrets/token; ls /data; pwd; cat /proc/cpuinfo")
	if err := os.MkdirAll(filepath.Join(b.root, "var"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/run", filepath.Join(b.root, "var/run")); err != nil {
		t.Fatal(err)
	}
	outer := dirWith(t, "outer", "outer\n")
	// Children first in the request; a link into another volume; files below /dev, /proc and in a volume's missing directory.
	b.volume(t, "/data/sub/deep", dirWith(t, "inner", "inner\n"))
	b.volume(t, "/data/", outer)
	b.volume(t, "/etc/one", filepath.Join(dirWith(t, "x", "one\n"), "x"))
	b.volume(t, "/dev/two", filepath.Join(dirWith(t, "x", "two\n"), "x"))
	b.volume(t, "/run", dirWith(t, "here", "here\n"))
	b.volume(t, "/var/run/secrets", dirWith(t, "token", "token\n"))
	b.volume(t, "/proc/cpuinfo", filepath.Join(dirWith(t, "x", "no cpu\n"), "x"))
	b.Cwd = "/data/work/dir"
	out, _ := b.run(t)
	if want := "outer\ninner\none\ntwo\nhere\ntoken\nouter\nsub\nwork\n/data/work/dir\nno cpu\n"; out != want {
		t.Errorf("%q, want %q", out, want)
	}
	if _, err := os.Stat(filepath.Join(outer, "sub/deep/inner")); err == nil {
		t.Error("the inner volume shows on the host")
	}
}

func TestVolumeInsteadOfStandardMount(t *testing.T) {
	b := newBox(t, "cat /sys/x; ls /sys; cat /dev/shm/y; ls /sys/fs 2>/dev/null")
	sys := dirWith(t, "x", "x\n")
	if err := os.MkdirAll(filepath.Join(sys, "fs/cgroup"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.volume(t, "/sys", sys)
	b.volume(t, "/dev/shm", dirWith(t, "y", "y\n"))
	if out, _ := b.run(t); out != "x\nfs\nx\ny\ncgroup\n" {
		t.Errorf("%q", out)
	}
}

func TestReadOnlyVolumeLacksMountPoint(t *testing.T) {
	b := newBox(t, "true")
	outer := dirWith(t, "outer", "")
	b.volume(t, "/data", outer)
	b.volume(t, "/data/sub", t.TempDir())
	if err := unix.MountSetattr(int(b.list.Files[0].Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		t.Fatal(err)
	}
	r := start(t, b.plan(t), b.list.Files, [3]*os.File{nil, os.Stderr, os.Stderr})
	if want := "make mount point /data/sub: read-only file system"; r.fail() != want {
		t.Errorf("%q, want %q", r.fail(), want)
	}
}

// TestEscape attacks with an image whose links point out of the root file system (the class of CVE-2019-19921, CVE-2021-30465).
func TestEscape(t *testing.T) {
	outside := dirWith(t, "marker", "")
	escape := "../../../../../../../../../../../../../.." + outside
	t.Run("volume", func(t *testing.T) {
		b := newBox(t, "cat /link/vol; ls "+outside)
		for name, to := range map[string]string{"link": escape, "abs": outside, "magic": "/proc/self/root" + outside} {
			if err := os.Symlink(to, filepath.Join(b.root, name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.MkdirAll(filepath.Join(b.root, outside), 0o755); err != nil {
			t.Fatal(err)
		}
		b.volume(t, "/link", dirWith(t, "vol", "inside\n"))
		if out, _ := b.run(t); out != "inside\nvol\n" {
			t.Errorf("%q", out)
		}
	})
	t.Run("magic link", func(t *testing.T) {
		b := newBox(t, "true")
		if err := os.Symlink("/proc/1/root", filepath.Join(b.root, "magic")); err != nil {
			t.Fatal(err)
		}
		b.Cgroup = launch.Cgroup{Dir: launch.NoFD}
		b.volume(t, "/data", t.TempDir())
		b.volume(t, "/magic/data", t.TempDir())
		b.targets = false
		r := start(t, b.plan(t), b.list.Files, [3]*os.File{nil, os.Stderr, os.Stderr})
		if !strings.HasSuffix(r.fail(), "too many levels of symbolic links") {
			t.Errorf("%q", r.fail())
		}
	})
	for _, std := range []string{"proc", "sys"} {
		t.Run(std+" is a link", func(t *testing.T) {
			b := newBox(t, "true")
			if err := os.Remove(filepath.Join(b.root, std)); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("/etc", filepath.Join(b.root, std)); err != nil {
				t.Fatal(err)
			}
			r := start(t, b.plan(t), b.list.Files, [3]*os.File{nil, os.Stderr, os.Stderr})
			if want := "mount /" + std + ": not a directory"; r.fail() != want {
				t.Errorf("%q, want %q", r.fail(), want)
			}
		})
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
		t.Errorf("outside: %v, %v", entries, err)
	}
}

func TestTargets(t *testing.T) {
	d := minimal()
	d.Cwd = "/srv/app"
	d.Mounts = []launch.Mount{{Target: "/data/a", FD: 8}, {Target: "/data", FD: 7}, {Target: "/etc/hosts", FD: 9, File: true}, {Target: "/dev/x", FD: 10}}
	targets, err := launch.Targets(&d)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, g := range targets {
		s := g.Path
		if g.File {
			s += " file"
		}
		got = append(got, s)
	}
	if want := "/proc,/dev,/sys,/data,/etc/hosts file,/srv/app"; strings.Join(got, ",") != want {
		t.Errorf("%s, want %s", strings.Join(got, ","), want)
	}
	for _, bad := range []string{"data", "/", "", "/proc/self/attr", "/proc/sys/kernel", "/a\x00b", "/../.."} {
		d.Mounts = []launch.Mount{{Target: bad}}
		if _, err := launch.Targets(&d); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
