// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim.dev/image"
	"crishim.dev/image/registry/registrytest"
	"crishim.dev/internal/errs"
)

// containerd is a real one, with its store in a directory of the test.
type containerd struct {
	programs, dir string
	daemon        *exec.Cmd
	log           bytes.Buffer
}

// runContainerd starts one that does nothing but keep images, and waits until it answers.
func runContainerd(t *testing.T) *containerd {
	t.Helper()
	if testing.Short() {
		t.Skip("a containerd may have to be built first")
	}
	programs, err := exec.CommandContext(t.Context(), "../hack/tool", "containerd").Output()
	if err != nil {
		t.Fatalf("get containerd (run hack/tool containerd): %v", err)
	}
	c := &containerd{programs: strings.TrimSpace(string(programs)), dir: t.TempDir()}
	// The others would make directories outside of the test's.
	const others = `disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri",
  "io.containerd.internal.v1.opt", "io.containerd.internal.v1.restart", "io.containerd.tracing.processor.v1.otlp"]`
	config := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\n%s\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n", c.dir+"/root", c.dir+"/state", others, c.dir+"/sock", c.dir+"/ttrpc")
	if err := os.WriteFile(c.dir+"/config.toml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	c.daemon = exec.Command(filepath.Join(c.programs, "containerd"), "--config", c.dir+"/config.toml")
	c.daemon.Stderr = &c.log
	c.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.stop)
	for deadline := time.Now().Add(20 * time.Second); exec.CommandContext(t.Context(), filepath.Join(c.programs, "ctr"), "-a", c.dir+"/sock", "version").Run() != nil; {
		if time.Now().After(deadline) {
			c.stop()
			t.Fatalf("containerd does not answer:\n%s", c.log.String())
		}
	}
	return c
}

// stop may be called twice.
func (c *containerd) stop() {
	if c.daemon.ProcessState == nil {
		_ = c.daemon.Process.Signal(syscall.SIGTERM)
		_ = c.daemon.Wait()
	}
}

func (c *containerd) ctr(t *testing.T, args ...string) {
	t.Helper()
	args = append([]string{"-a", c.dir + "/sock", "-n", "k8s.io", "images"}, args...)
	if out, err := exec.CommandContext(t.Context(), filepath.Join(c.programs, "ctr"), args...).CombinedOutput(); err != nil {
		t.Fatalf("ctr %s: %v: %s", args, err, out)
	}
}

// What a containerd has pulled and imported is taken over while it runs, and when it has stopped; not what it has thrown away.
func TestAdoptFromRunningContainerd(t *testing.T) {
	n, c, reg := open(t, t.TempDir(), nil), runContainerd(t), registrytest.New(t)
	pulled, imported, gone := simple(t, "pulled"), simple(t, "imported"), simple(t, "gone")
	foreign := reg.Push(t, "pulled", "", registrytest.NewImage(t, pulled.Tars[:1], nil, func(c *v1.Image) { c.Architecture = "s390x" }))
	foreign.Platform = &v1.Platform{OS: "linux", Architecture: "s390x"} // containerd has its manifest, but not its layers
	list := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{foreign, reg.Push(t, "pulled", "", pulled)}}
	list.SchemaVersion = 2
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	reg.PutManifest("pulled", "v", list.MediaType, b)
	reg.Push(t, "gone", "v", gone)
	c.ctr(t, "pull", "--plain-http", reg.Host+"/pulled:v")
	c.ctr(t, "pull", "--plain-http", reg.Host+"/gone:v")
	c.ctr(t, "import", writeTar(t, layoutFiles(t, imported, map[string]string{"io.containerd.image.name": "docker.io/library/imported:v"}), nil))
	lost := filepath.Join(c.dir, "root/io.containerd.content.v1.content/blobs/sha256", registrytest.Digest(gone.Blobs[1])[7:])
	if err := os.Remove(lost); err != nil { // as with discard_unpacked_layers
		t.Fatal(err)
	}
	for _, state := range []string{"running", "stopped"} {
		before := len(reg.Requests(""))
		got, failed, err := n.ImportContainerd(t.Context(), c.dir+"/root", "k8s.io")
		if err != nil || len(got) != 2 || len(failed) != 1 || !strings.Contains(failed[0].Error(), "/gone:v") || !errors.Is(failed[0], os.ErrNotExist) {
			t.Fatalf("%s: %d images, %v, %v", state, len(got), failed, err)
		}
		if asked := reg.Requests("")[before:]; len(asked) > 0 {
			t.Errorf("%s: downloaded %v", state, asked)
		}
		for name, img := range map[string]*registrytest.Image{reg.Host + "/pulled:v": pulled, "imported:v": imported} {
			i, err := n.Resolve(name)
			if err != nil || i.ID != img.ID() {
				t.Fatalf("%s: %s: %+v, %v", state, name, i, err)
			}
			checks, err := n.Verify(t.Context(), i.ID)
			if err != nil || slices.ContainsFunc(checks, func(l image.LayerCheck) bool { return l.Err != nil }) {
				t.Errorf("%s: %s: %+v, %v", state, name, checks, err)
			}
			if s := n.read(t, i, "etc/motd"); s != strings.TrimSuffix(name[strings.LastIndex(name, "/")+1:], ":v") {
				t.Errorf("%s: %s says %q", state, name, s)
			}
			if err := n.Remove(t.Context(), i.ID); err != nil {
				t.Error(err)
			}
		}
		c.stop()
	}
	_, _, err = n.ImportContainerd(t.Context(), c.dir+"/root", "moby")
	wantKind(t, err, errs.NotFound, "moby")
	n.clean(t)
}

// The library that CRI-O keeps its images with is skopeo's, too: what it wrote is taken over and verified.
func TestAdoptFromContainersStorage(t *testing.T) {
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Skip("skopeo is not installed (hack/deps)")
	}
	n, dir := open(t, t.TempDir(), nil), t.TempDir()
	capable := registrytest.File("usr/bin/ping", "x")
	capable.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	img := registrytest.NewImage(t, [][]byte{
		registrytest.Tar(t, registrytest.Dir("etc"), registrytest.File("etc/motd", "low"), registrytest.File("etc/gone", noise(100_000))),
		registrytest.Tar(t, registrytest.Dir("etc"), registrytest.File("etc/motd", "high"), registrytest.File("etc/.wh.gone", ""), link(tar.TypeSymlink, "motd", "/etc/motd"),
			registrytest.Dir("usr"), registrytest.Dir("usr/bin"), capable, link(tar.TypeLink, "usr/bin/ping6", "usr/bin/ping")),
	}, nil, nil)
	layout := writeDir(t, layoutFiles(t, img, map[string]string{v1.AnnotationRefName: "v"}))
	storage := fmt.Sprintf("containers-storage:[overlay@%s/root+%s/run]docker.io/library/app:v", dir, dir)
	// In a mount namespace of its own: it leaves a mount of its directory onto itself behind.
	copied := exec.CommandContext(t.Context(), "skopeo", "--insecure-policy", "copy", "oci:"+layout+":v", storage)
	copied.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := copied.CombinedOutput(); err != nil {
		t.Fatalf("skopeo: %v: %s", err, out)
	}
	got, failed, err := n.ImportCRIO(t.Context(), dir+"/root")
	if err != nil || len(got) != 1 || len(failed) > 0 {
		t.Fatalf("%+v, %v, %v", got, failed, err)
	}
	i, err := n.Resolve("app:v")
	if err != nil || i.ID != img.ID() {
		t.Fatalf("%+v, %v", i, err)
	}
	if s := n.read(t, i, "etc/motd"); s != "high" {
		t.Errorf("motd %q", s)
	}
	checks, err := n.Verify(t.Context(), i.ID)
	if err != nil || len(checks) != 2 || checks[0].Err != nil || checks[1].Err != nil {
		t.Errorf("%+v, %v", checks, err)
	}
	n.clean(t)
}
