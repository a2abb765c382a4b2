// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode"
	"crishim.dev/internal/testnode/testimage"
)

// pull is PullImage as it is.
func pull(t *testing.T, n *testnode.Node, image string) (string, error) {
	r, err := n.Images.PullImage(kit.Context(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}})
	return r.GetImageRef(), err
}

// status is the image's status; nil when there is none.
func imageStatus(t *testing.T, n *testnode.Node, image string) *cri.Image {
	t.Helper()
	r, err := n.Images.ImageStatus(kit.Context(t), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: image}})
	if err != nil {
		t.Fatalf("status of image %s: %v", image, err)
	}
	return r.GetImage()
}

// small makes an image of its own name with one small layer, serves it, and removes it from the node at the end.
func small(t *testing.T, n *testnode.Node, layers ...v1.Layer) string {
	t.Helper()
	if len(layers) == 0 {
		layers = []v1.Layer{layer(t, testimage.File{Name: "name", Body: []byte(kit.Unique(t))})}
	}
	return configured(t, n, v1.Config{}, layers...)
}

func layer(t *testing.T, files ...testimage.File) v1.Layer {
	t.Helper()
	l, err := testimage.Layer(testimage.Gzip, files...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// configured makes an image as small does.
func configured(t *testing.T, n *testnode.Node, config v1.Config, layers ...v1.Layer) string {
	t.Helper()
	ref := "localhost/" + kit.Unique(t) + ":1"
	img, err := testimage.Build(runtime.GOARCH, config, layers...)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Registry.Push(kit.Context(t), testimage.Image{Refs: []string{ref}, Image: img}); err != nil {
		t.Fatal(err)
	}
	kit.RemoveImage(t, n, ref)
	return ref
}

func TestKubelet32_PullListRemove(t *testing.T) {
	n := node(t)
	ref := small(t, n)
	id, err := pull(t, n, ref)
	if err != nil {
		t.Fatal(err)
	}
	list, err := n.Images.ListImages(kit.Context(t), &cri.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list.GetImages(), func(i *cri.Image) bool { return i.GetId() == id })
	if i < 0 {
		t.Fatalf("PullImage returned %s, which ListImages does not list", id)
	}
	img := list.GetImages()[i]
	if !slices.Equal(img.GetRepoTags(), []string{ref}) || len(img.GetRepoDigests()) != 1 || img.GetSize() == 0 {
		t.Errorf("image %v", img)
	}
	digest := img.GetRepoDigests()[0]
	for _, name := range []string{ref, id, digest, strings.TrimPrefix(id, "sha256:")} {
		if got := imageStatus(t, n, name); got.GetId() != id {
			t.Errorf("status of %s: %v; want %s", name, got, id)
		}
	}
	if again, err := pull(t, n, digest); err != nil || again != id {
		t.Errorf("pull by digest: %s, %v; want %s", again, err, id)
	}
	filtered, err := n.Images.ListImages(kit.Context(t), &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: &cri.ImageSpec{Image: ref}}})
	if err != nil || len(filtered.GetImages()) != 1 {
		t.Errorf("list by name: %v, %v", filtered.GetImages(), err)
	}
	// A second tag of the same image: by id, both go.
	second := strings.TrimSuffix(ref, ":1") + ":2"
	_, path, _ := strings.Cut(ref, "/")
	copyTag(t, n, strings.TrimSuffix(path, ":1"), "1", "2")
	if got, err := pull(t, n, second); err != nil || got != id {
		t.Errorf("pull second tag: %s, %v", got, err)
	}
	if got := imageStatus(t, n, id).GetRepoTags(); len(got) != 2 {
		t.Errorf("tags %v; want two", got)
	}
	if _, err := n.Images.RemoveImage(kit.Context(t), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: id}}); err != nil {
		t.Errorf("remove by id: %v", err)
	}
	for _, name := range []string{ref, second, id} {
		if imageStatus(t, n, name) != nil {
			t.Errorf("%s is still there", name)
		}
	}
}

func TestKubelet33_ImageFsInfo(t *testing.T) {
	n := node(t)
	info, err := n.Images.ImageFsInfo(kit.Context(t), &cri.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(info.GetImageFilesystems()) == 0 || len(info.GetContainerFilesystems()) == 0 {
		t.Fatalf("filesystems %v", info)
	}
	first := info.GetImageFilesystems()[0]
	if first.GetUsedBytes().GetValue() == 0 || first.GetInodesUsed().GetValue() == 0 || first.GetTimestamp() == 0 {
		t.Errorf("image filesystem %v", first)
	}
	if !strings.HasPrefix(n.Root, first.GetFsId().GetMountpoint()) {
		t.Errorf("mount point %q does not hold %s", first.GetFsId().GetMountpoint(), n.Root)
	}
	c := kit.RunPod(t, n).Run(testimage.Busybox, []string{"sh", "-c", "head -c 1000000 /dev/urandom > /data; sleep 600"})
	kit.Until(t, func() error {
		_, err := c.ExecSync(5, "test", "-s", "/data")
		return err
	})
	stats, err := n.Runtime.ContainerStats(kit.Context(t), &cri.ContainerStatsRequest{ContainerId: c.ID})
	if err != nil {
		t.Fatal(err)
	}
	want := info.GetContainerFilesystems()[0].GetFsId().GetMountpoint()
	if got := stats.GetStats().GetWritableLayer().GetFsId().GetMountpoint(); got != want {
		t.Errorf("the writable layer is on %q; want %q", got, want)
	}
}

func TestImageTree(t *testing.T) {
	n := node(t)
	kit.RemoveImage(t, n, testimage.Layers)
	const look = `cd /tree; find . | sort; stat -c '%n %u %g %a' changed . kept; cat changed kept link becomes-file opaque/above becomes-dir/x; readlink symlink`
	want := `.
./becomes-dir
./becomes-dir/x
./becomes-file
./changed
./kept
./link
./opaque
./opaque/above
./symlink
changed 1 2 600
. 0 0 750
kept 0 0 644
322333/tree/kept
`
	if got := kit.RunPod(t, n).Output(testimage.Layers, []string{"sh", "-c", look}); got != want {
		t.Errorf("tree of the three-layer image:\n%s\nwant\n%s", got, want)
	}
}

func TestImageCompressionsAndPlatforms(t *testing.T) {
	n := node(t)
	kit.RemoveImage(t, n, testimage.Mixed)
	kit.RemoveImage(t, n, testimage.Multi)
	pod := kit.RunPod(t, n)
	if got := pod.Output(testimage.Mixed, []string{"cat", "/zstd", "/plain"}); got != "zstdplain" && got != "zstdplain\n" {
		t.Errorf("layers stored with zstd and plain: %q", got)
	}
	if got := pod.Output(testimage.Multi, []string{"cat", "/arch"}); strings.TrimSpace(got) != runtime.GOARCH {
		t.Errorf("from an index of many platforms came %q; want %s", got, runtime.GOARCH)
	}
}

func TestImageIsSharedNotCopied(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	c := pod.Run(testimage.Busybox, kit.Sleep())
	c.Exec("sh", "-c", "echo changed > /etc/passwd; rm -r /home; mkdir /new")
	if got := pod.Output(testimage.Busybox, []string{"sh", "-c", "head -n1 /etc/passwd; ls -d /home /new 2>/dev/null || true"}); got != "root:x:0:0:root:/root:/bin/sh\n/home\n" {
		t.Errorf("another container of the image sees %q", got)
	}
}

func TestImageImport(t *testing.T) {
	n := node(t)
	l, err := testimage.Layer(testimage.Gzip, testimage.File{Name: "imported", Body: []byte("yes")})
	if err != nil {
		t.Fatal(err)
	}
	img, err := testimage.Build(runtime.GOARCH, v1.Config{}, l)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "layout")
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	ref := "localhost/" + kit.Unique(t) + ":imported"
	if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": ref, "io.containerd.image.name": ref})); err != nil {
		t.Fatal(err)
	}
	out, err := n.Shim(kit.Context(t), "image", "import", dir)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	kit.RemoveImage(t, n, ref)
	if imageStatus(t, n, ref) == nil {
		t.Errorf("%s was imported, but is not there:\n%s", ref, out)
	}
}

func TestImagePullBasicAuth(t *testing.T) {
	n := node(t)
	other, err := testnode.StartRegistry()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	l, err := testimage.Layer(testimage.Gzip, testimage.File{Name: "secret", Body: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	img, err := testimage.Build(runtime.GOARCH, v1.Config{}, l)
	if err != nil {
		t.Fatal(err)
	}
	ref := other.Host + "/private/image:1"
	if err := other.Push(kit.Context(t), testimage.Image{Refs: []string{ref}, Image: img}); err != nil {
		t.Fatal(err)
	}
	if err := n.Mirror(other); err != nil {
		t.Fatal(err)
	}
	other.Intercept(requireLogin("user", "pa55word"))
	_, err = pull(t, n, ref)
	if err == nil || strings.Contains(err.Error(), "pa55word") {
		t.Errorf("pull without credentials: %v", err)
	}
	_, err = n.Images.PullImage(kit.Context(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}, Auth: &cri.AuthConfig{Username: "user", Password: "wrong-secret"}})
	if err == nil || strings.Contains(err.Error(), "wrong-secret") {
		t.Errorf("pull with a wrong password: %v; want an error without it", err)
	}
	if _, err := n.Images.PullImage(kit.Context(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}, Auth: &cri.AuthConfig{Username: "user", Password: "pa55word"}}); err != nil {
		t.Errorf("pull with credentials: %v", err)
	}
	kit.RemoveImage(t, n, ref)
	if text, err := os.ReadFile(filepath.Join(n.Dir, "shim.log")); err != nil || strings.Contains(string(text), "pa55word") {
		t.Errorf("the daemon's log has the password, or: %v", err)
	}
}
