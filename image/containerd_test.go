// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"crishim.dev/image/registry/registrytest"
	"crishim.dev/internal/errs"
)

// containerdStore lays out what containerd 2 keeps of images: names in meta.db, blobs in the content store.
func containerdStore(t *testing.T, names map[string]*registrytest.Image, leaveOut []byte) (root string, db *bolt.DB) {
	t.Helper()
	root = t.TempDir()
	meta := filepath.Join(root, "io.containerd.metadata.v1.bolt")
	blobs := filepath.Join(root, "io.containerd.content.v1.content", "blobs", "sha256")
	if err := errors.Join(os.MkdirAll(meta, 0o700), os.MkdirAll(blobs, 0o700)); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(meta, "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	for name, img := range names {
		err = errors.Join(err, db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("v1"))
			for _, n := range []string{"k8s.io", "images", name, "target"} {
				if err == nil {
					b, err = b.CreateBucketIfNotExists([]byte(n))
				}
			}
			if err != nil {
				return err
			}
			return errors.Join(b.Put([]byte("digest"), []byte(registrytest.Digest(img.Manifest))), b.Put([]byte("mediatype"), []byte(v1.MediaTypeImageManifest)),
				b.Put([]byte("size"), binary.AppendVarint(nil, int64(len(img.Manifest)))))
		}))
		for _, b := range append(slices.Clone(img.Blobs), img.Config, img.Manifest) {
			if string(b) != string(leaveOut) {
				err = errors.Join(err, os.WriteFile(filepath.Join(blobs, registrytest.Digest(b)[7:]), b, 0o600))
			}
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return root, db // open: a running containerd holds the lock
}

func TestImportFromContainerd(t *testing.T) {
	n := open(t, t.TempDir(), nil)
	a, b := simple(t, "a"), simple(t, "b")
	byDigest := "docker.io/library/a@" + registrytest.Digest(a.Manifest)
	root, _ := containerdStore(t, map[string]*registrytest.Image{
		"docker.io/library/a:v1": a, byDigest: a, a.ID(): a, "reg.example/b:v2": b,
	}, b.Blobs[1])
	got, failed, err := n.ImportContainerd(t.Context(), root, "k8s.io")
	if err != nil || len(failed) != 1 || !strings.Contains(failed[0].Error(), "reg.example/b:v2") || !errors.Is(failed[0], os.ErrNotExist) {
		t.Errorf("the image without its layer: %v, %v", failed, err)
	}
	if len(got) != 2 || len(n.List()) != 1 {
		t.Errorf("%d images, listed %+v", len(got), n.List())
	}
	i, err := n.Resolve("a:v1")
	if err != nil || i.ID != a.ID() || !slices.Equal(i.RepoDigests, []string{byDigest}) {
		t.Fatalf("%+v, %v", i, err)
	}
	if s := n.read(t, i, "etc/motd"); s != "a" {
		t.Errorf("motd %q", s)
	}
	_, _, err = n.ImportContainerd(t.Context(), root, "moby")
	wantKind(t, err, errs.NotFound, "moby")
	if _, _, err = n.ImportContainerd(t.Context(), t.TempDir(), "k8s.io"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no containerd: %v", err)
	}
	n.clean(t)
}
