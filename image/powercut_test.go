// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"crishim.dev/image"
	"crishim.dev/image/registry/registrytest"
	"crishim.dev/internal/powercut"
	"crishim.dev/snapshot"
)

// The power goes after each write to the disk that two pulls and a removal make, on ext4 on a real block device. After every cut the
// store opens, no layer in it differs from what was unpacked, no image is listed that is not whole, and a pull completes that fetches
// only layers which were not there.
//
// By default a sample of the cuts is tried; CRISHIM_POWERCUT=all tries every one.
func TestPowerCut(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	if step := os.Getenv("CRISHIM_POWERCUT_STEP"); step != "" {
		powerCutStep(t, step)
		return
	}
	runtime.LockOSThread() // for good: the mount namespace ends with the thread
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")); err != nil {
		t.Fatal(err)
	}
	c := &cuts{reg: registrytest.New(t), dir: t.TempDir(), fetched: map[int]int{}}
	if err := os.Mkdir(filepath.Join(c.dir, "mount"), 0o700); err != nil {
		t.Fatal(err)
	}
	c.push(t)
	disk := powercut.New(emptyExt4(t))
	c.step(t, "record", "while recording", disk)
	writes := disk.Writes()
	every := max(1, writes/40)
	if os.Getenv("CRISHIM_POWERCUT") == "all" {
		every = 1
	}
	tried, chance := 0, rand.New(rand.NewPCG(1, 2))
	for n := chance.IntN(every); n <= writes && !t.Failed(); n += every {
		c.step(t, "replay", fmt.Sprintf("after %d of %d writes", n, writes), disk.Cut(n, nil))
		c.step(t, "replay", fmt.Sprintf("after %d of %d writes, those not flushed lost or torn", n, writes), disk.Cut(n, chance))
		tried += 2
	}
	t.Logf("%d writes and flushes, %d power cuts; cuts by layers fetched after: %v", writes, tried, c.fetched)
	if writes < 100 || c.fetched[0] == 0 || len(c.fetched) < 3 {
		t.Error("the recording does not show what it should")
	}
}

// cuts is one recording and its replays.
type cuts struct {
	reg     *registrytest.Server
	dir     string
	configs []string // digests of the images' configurations
	// fetched counts the cuts by how many layers had to be fetched again.
	fetched map[int]int
}

func (c *cuts) push(t *testing.T) {
	base := []registrytest.Entry{registrytest.Dir("etc")}
	for i := range 60 {
		base = append(base, registrytest.File(fmt.Sprint("etc/", i), noise(i*200)))
	}
	low := registrytest.Tar(t, base...)
	middle := registrytest.Tar(t, registrytest.Dir("usr"), registrytest.File("usr/large", noise(900_000)))
	high := registrytest.Tar(t, registrytest.File("etc/.wh.1", ""), registrytest.File("usr/small", "x"))
	a := registrytest.NewImage(t, [][]byte{low, middle, high}, registrytest.Gzip, nil)
	b := registrytest.NewImage(t, [][]byte{low, registrytest.Tar(t, registrytest.File("b", noise(300_000)))}, registrytest.Zstd, nil)
	c.reg.Push(t, "a", "v", a)
	c.reg.Push(t, "b", "v", b)
	c.configs = []string{a.ID(), b.ID()}
}

// step has another process work on a disk: the one that serves it must not. The process has a boot of its own, as the next start of
// the machine has.
func (c *cuts) step(t *testing.T, name, when string, disk *powercut.Disk) {
	t.Helper()
	boot := filepath.Join(c.dir, "boot_id")
	if err := os.WriteFile(boot, fmt.Appendf(nil, "boot-%d\n", rand.Uint64()), 0o600); err != nil {
		t.Fatal(err)
	}
	unmount, err := disk.Mount("ext4", filepath.Join(c.dir, "mount"))
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	defer func() {
		if err := unmount(); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}()
	if name == "record" {
		disk.Record()
	}
	before := len(c.reg.Requests("/blobs/"))
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPowerCut$")
	cmd.Env = append(os.Environ(), "CRISHIM_POWERCUT_STEP="+name, "CRISHIM_POWERCUT_DIR="+c.dir, "CRISHIM_POWERCUT_REGISTRY="+c.reg.Host)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", when, err, out)
	}
	if name == "record" {
		return
	}
	layers := 0
	for _, r := range c.reg.Requests("/blobs/")[before:] {
		if !slices.ContainsFunc(c.configs, func(id string) bool { return strings.HasSuffix(r, id) }) {
			layers++
		}
	}
	c.fetched[layers]++
}

// powerCutStep is what the other process does.
func powerCutStep(t *testing.T, name string) {
	dir, registry := os.Getenv("CRISHIM_POWERCUT_DIR"), os.Getenv("CRISHIM_POWERCUT_REGISTRY")
	if err := unix.Mount(filepath.Join(dir, "boot_id"), "/proc/sys/kernel/random/boot_id", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	n := open(t, filepath.Join(dir, "mount"), func(o *image.Options) { o.MinFree = 1 })
	if name == "record" {
		recordPulls(t, n, dir, registry)
		return
	}
	was := map[snapshot.Key]string{}
	b, err := os.ReadFile(filepath.Join(dir, "layers"))
	if err == nil {
		err = json.Unmarshal(b, &was)
	}
	if err != nil {
		t.Fatal(err)
	}
	compareLayers(t, n, was)
	have := n.snap.Layers()
	for _, name := range []string{"a", "b"} {
		n.pull(t, registry+"/"+name+":v", nil)
	}
	for _, l := range have {
		if now, _ := n.snap.Layer(l.Key); now.Boot != l.Boot {
			t.Errorf("layer %s was there and was made again", l.Key)
		}
	}
	compareLayers(t, n, was)
	if got := len(n.List()); got != 2 {
		t.Errorf("%d images after the pulls", got)
	}
}

// recordPulls pulls and removes, while the kernel writes back as it likes, and notes what the layers look like.
func recordPulls(t *testing.T, n *node, dir, registry string) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				syncAll(n.dir)
			}
		}
	}()
	for _, name := range []string{"a", "b"} {
		n.pull(t, registry+"/"+name+":v", nil)
		if err := n.snap.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	layers := map[snapshot.Key]string{}
	for _, l := range n.snap.Layers() {
		layers[l.Key] = fingerprint(t, n.snap.FSDir(l.Key))
	}
	if err := n.Remove(t.Context(), registry+"/a:v"); err != nil {
		t.Fatal(err)
	}
	close(stop)
	<-done
	b, err := json.Marshal(layers)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "layers"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func syncAll(dir string) {
	if f, err := os.Open(dir); err == nil {
		_ = unix.Syncfs(int(f.Fd()))
		_ = f.Close()
	}
}

// compareLayers compares all that the store lists with what was unpacked before the power went.
func compareLayers(t *testing.T, n *node, was map[snapshot.Key]string) {
	t.Helper()
	for _, l := range n.snap.Layers() {
		if got := fingerprint(t, n.snap.FSDir(l.Key)); got != was[l.Key] {
			t.Errorf("layer %s:\n%s\nwas\n%s", l.Key, got, was[l.Key])
		}
	}
	for _, i := range n.List() {
		checks, err := n.Verify(t.Context(), i.ID)
		if err != nil {
			t.Error(err)
		}
		for _, l := range checks {
			if l.Err != nil {
				t.Errorf("layer %s: %v", l.Key, l.Err)
			}
		}
	}
}

// fingerprint lists a tree: names, metadata, attributes, digests of contents.
func fingerprint(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		size := st.Size
		if d.IsDir() {
			size = 0
		}
		if path == dir || st.Mode&unix.S_IFMT == unix.S_IFCHR {
			st.Mtim = unix.Timespec{} // the root has no entry in the archives, and nobody sees a whiteout's
		}
		fmt.Fprintf(&b, "%s %o %d:%d %d %d.%d %x", strings.TrimPrefix(path, dir), st.Mode, st.Uid, st.Gid, size, st.Mtim.Sec, st.Mtim.Nsec, st.Rdev)
		value := make([]byte, 16)
		if k, err := unix.Lgetxattr(path, "trusted.overlay.opaque", value); err == nil {
			fmt.Fprintf(&b, " opaque=%s", value[:k])
		}
		if d.Type().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %x", sha256.Sum256(content))
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return b.String()
}

// emptyExt4 makes a small ext4.
func emptyExt4(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ext4")
	if err := os.WriteFile(path, make([]byte, 24<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "-b", "1024", "-J", "size=2", "-E", "lazy_itable_init=0,lazy_journal_init=0", path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4 (Debian package e2fsprogs): %v: %s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
