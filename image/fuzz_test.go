// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"io"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim.dev/image/registry"
)

// FuzzManifest: whatever a document says, what is taken from it is well-formed.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"sha256:x","size":1},"layers":[{"digest":"y","size":-1}]}`), v1.MediaTypeImageManifest)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:x","platform":{"os":"linux","architecture":"arm","variant":"v6"}}]}`), v1.MediaTypeImageIndex)
	f.Fuzz(func(t *testing.T, b []byte, mediaType string) {
		d, err := parseDocument(b, mediaType)
		if err != nil {
			return
		}
		if len(d.Manifests) > 0 && (d.Config != nil || len(d.Layers) > 0) {
			t.Error("an ambiguous document was read")
		}
		if m, err := pick(d.Manifests, v1.Platform{OS: "linux", Architecture: "arm64"}); err == nil && !registry.ValidDigest(m.Digest) {
			t.Errorf("picked %+v", m)
		}
		if d.image(500) == nil && !registry.ValidDigest(string(d.Config.Digest)) {
			t.Errorf("configuration %+v", d.Config)
		}
	})
}

// FuzzConfig reads configurations.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"architecture":"amd64","os":"linux","config":{"Env":["A=b"]},"rootfs":{"type":"layers","diff_ids":["sha256:x"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseConfig(b)
		if err != nil {
			return
		}
		for _, d := range c.RootFS.DiffIDs {
			if !registry.ValidDigest(string(d)) {
				t.Errorf("diff ID %q", d)
			}
		}
		_ = runsHere(c, v1.Platform{OS: "linux", Architecture: "amd64"})
	})
}

// FuzzDecompress: a broken stream is an error, never a panic, and its memory is bounded.
func FuzzDecompress(f *testing.F) {
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x58})
	f.Add([]byte("plain"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		z, err := decompress(bytes.NewReader(b), maxWindow)
		if err != nil {
			return
		}
		_, _ = io.CopyN(io.Discard, z, 1<<22)
		_ = z.Close()
	})
}
