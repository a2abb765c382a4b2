// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"encoding/json"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim.dev/image/registry/registrytest"
)

// An image as Docker's registries have it, by its list and by its manifest, is the same as by OCI's.
func TestDockerSchema2(t *testing.T) {
	reg, n := registrytest.New(t), open(t, t.TempDir(), nil)
	img := simple(t, "from Docker")
	reg.Push(t, "app", "", img)
	var m v1.Manifest
	if err := json.Unmarshal(img.Manifest, &m); err != nil {
		t.Fatal(err)
	}
	m.MediaType, m.Config.MediaType = "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.container.image.v1+json"
	for i := range m.Layers {
		m.Layers[i].MediaType = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	}
	put := func(tag, mediaType string, v any) v1.Descriptor {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return reg.PutManifest("app", tag, mediaType, b)
	}
	d := put("one", m.MediaType, m)
	list := v1.Index{MediaType: "application/vnd.docker.distribution.manifest.list.v2+json", Manifests: []v1.Descriptor{d}}
	list.SchemaVersion = 2
	put("all", list.MediaType, list)
	for _, tag := range []string{"one", "all"} {
		i := n.pull(t, reg.Host+"/app:"+tag, nil)
		if i.ID != img.ID() {
			t.Errorf("%s: %+v", tag, i)
		}
		if s := n.read(t, i, "etc/motd"); s != "from Docker" {
			t.Errorf("%s: motd %q", tag, s)
		}
	}
}
