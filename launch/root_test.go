// SPDX-License-Identifier: Apache-2.0

package launch_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"crishim.dev/launch"
)

// busybox gives the path of a static shell with applets.
var busybox = sync.OnceValues(func() (string, error) {
	path, err := exec.Command("../hack/tool", "busybox").Output()
	if err != nil {
		return "", fmt.Errorf("get busybox: %w", err)
	}
	return strings.TrimSpace(string(path)), nil
})

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// rootfs makes a small root file system in a directory.
func rootfs(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"bin", "proc", "dev", "sys", "tmp", "etc", "only-root", "data"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b := must[[]byte](t)(os.ReadFile(must[string](t)(busybox())))
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	for a := range strings.FieldsSeq("sh cat ls id true sleep mount stat head readlink touch hostname kill stty mkdir echo grep pwd") {
		if err := os.Link(filepath.Join(dir, "bin/busybox"), filepath.Join(dir, "bin", a)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "only-root"), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tree is a detached clone of path.
func tree(t testing.TB, path string) *os.File {
	t.Helper()
	fd := must[int](t)(unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE))
	f := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { f.Close() })
	// As the daemon does it: the copy of a shared mount is its peer.
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		t.Fatal(err)
	}
	return f
}

// tmpfs is a detached tmpfs.
func tmpfs(t testing.TB) *os.File {
	t.Helper()
	fs := must[int](t)(unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC))
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "mode", "755"); err != nil {
		t.Fatal(err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		t.Fatal(err)
	}
	m := must[int](t)(unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID))
	f := os.NewFile(uintptr(m), "tmpfs")
	t.Cleanup(func() { f.Close() })
	return f
}

func dev(t testing.TB, tty bool) *os.File {
	t.Helper()
	f := tmpfs(t)
	for _, n := range launch.DevNodes(tty) {
		var err error
		switch n.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			err = unix.Mkdirat(int(f.Fd()), n.Path, n.Mode)
		case unix.S_IFLNK:
			err = unix.Symlinkat(n.Link, int(f.Fd()), n.Path)
		default:
			if err = unix.Mknodat(int(f.Fd()), n.Path, n.Mode, int(n.Dev)); err == nil {
				err = unix.Fchmodat(int(f.Fd()), n.Path, n.Mode&0o777, 0)
			}
		}
		if err != nil {
			t.Fatal(n.Path, err)
		}
	}
	return f
}

// box is a container under test.
type box struct {
	launch.Description
	list  launch.FDList
	facts launch.Facts
	root  string
	// targets: mount points are made beforehand, as the daemon does.
	targets bool
	// mapped: root and /dev belong to a user namespace.
	mapped bool
}

// newBox describes a container that runs the shell command; it has no namespaces of a pod.
func newBox(t testing.TB, command string) *box {
	t.Helper()
	needRoot(t)
	b := &box{root: rootfs(t), facts: hostFacts(t), targets: true}
	b.Description = launch.Description{
		Process: launch.Process{
			Args: []string{"sh", "-c", command}, Env: []string{"PATH=/bin", "SECRET=hunter2"}, Cwd: "/",
			Caps: launch.DefaultCaps, NoNewPrivileges: true, Stdout: true, Stderr: true,
			Rlimits: []launch.Rlimit{{Resource: unix.RLIMIT_NOFILE, Soft: 1234, Hard: 2345}},
		},
		Cgroup: launch.Cgroup{Dir: launch.NoFD},
		NetNS:  launch.NoFD, IPCNS: launch.NoFD, UTSNS: launch.NoFD, UserNS: launch.NoFD, PIDNS: launch.NoFD, Shm: launch.NoFD,
		MaskedPaths:   []string{"/proc/kcore", "/proc/keys", "/proc/acpi", "/proc/scsi", "/sys/firmware", "/proc/timer_list", "/proc/nothing"},
		ReadOnlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/proc/nothing"},
	}
	return b
}

// plan makes the mount points and compiles.
func (b *box) plan(t testing.TB) *launch.Plan {
	t.Helper()
	return b.plan2(t, true)
}

// plan2 leaves out the working directory on request.
func (b *box) plan2(t testing.TB, cwd bool) *launch.Plan {
	t.Helper()
	devFS := dev(t, b.TTY)
	root := tree(t, b.root)
	// Not a peer of the mount that it was cloned from, as an overlay is none: pivot_root refuses one.
	if err := unix.MountSetattr(int(root.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		t.Fatal(err)
	}
	b.Root, b.Dev = b.list.Add(root), b.list.Add(devFS)
	targets := must[[]launch.Target](t)(launch.Targets(&b.Description))
	for _, g := range targets {
		if !b.targets || g.Path == b.Cwd && !cwd {
			continue
		}
		path := filepath.Join(b.root, g.Path)
		if g.File {
			_ = os.MkdirAll(filepath.Dir(path), 0o755)
			f, err := os.OpenFile(path, os.O_CREATE, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
		} else if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if b.mapped {
		chown(t, b.root)
		if err := unix.Fchownat(int(devFS.Fd()), "", idBase, idBase, unix.AT_EMPTY_PATH); err != nil {
			t.Fatal(err)
		}
		for _, n := range launch.DevNodes(b.TTY) {
			if err := unix.Fchownat(int(devFS.Fd()), n.Path, idBase, idBase, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				t.Fatal(err)
			}
		}
	}
	return must[*launch.Plan](t)(launch.Container(&b.Description, b.facts))
}

// output collects what is written to a pipe.
type output struct {
	w    *os.File
	done chan struct{}
	buf  bytes.Buffer
}

func newOutput(t testing.TB) *output {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	o := &output{w: w, done: make(chan struct{})}
	go func() {
		_, _ = io.Copy(&o.buf, r)
		r.Close()
		close(o.done)
	}()
	return o
}

func (o *output) text() string {
	o.w.Close()
	<-o.done
	return o.buf.String()
}

// run runs the container to its end and returns its output.
func (b *box) run(t testing.TB) (string, unix.WaitStatus) {
	t.Helper()
	plan := b.plan(t)
	out := newOutput(t)
	r := start(t, plan, b.list.Files, [3]*os.File{nil, out.w, out.w})
	if r.failed >= 0 {
		t.Fatalf("%s\n%s", r.fail(), out.text())
	}
	ws := r.wait(t)
	return out.text(), ws
}
