// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// source is a file that goes into the image.
type source struct {
	path string
	size int64
}

func total(files []source) (n int64) {
	for _, f := range files {
		n += f.size
	}
	return n
}

// choose takes real files, which compress like those of real images: of all below trees, in an order that is random but always the
// same, each that keeps the mean size near what the image is to have.
func choose(trees []string, size int64, n int) (out []source, err error) {
	var all []source
	for _, tree := range trees {
		err = errors.Join(err, filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil //nolint:nilerr // what can't be read is left out
			}
			if info, err := d.Info(); err == nil && info.Size() < 64<<20 {
				all = append(all, source{path, info.Size()})
			}
			return nil
		}))
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	var sum int64
	for _, s := range all {
		if short := sum*int64(n) <= size*int64(len(out)); len(out) < n && sum < size && short == (s.size*int64(n) > size) {
			out, sum = append(out, s), sum+s.size
		}
	}
	slices.SortFunc(out, func(a, b source) int { return strings.Compare(a.path, b.path) })
	return out, err
}

// build packs files into layers in dir and gives the registry what it needs to serve the image.
func build(dir, format string, files []source, layers int, reg *registry) (packed int64, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	config := v1.Image{Platform: v1.Platform{Architecture: runtime.GOARCH, OS: "linux"}, RootFS: v1.RootFS{Type: "layers"}}
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest}
	m.SchemaVersion = 2
	share, left := total(files)/int64(layers)+1, files
	for i := range layers {
		var part []source
		for size := int64(0); len(left) > 0 && (size < share || i == layers-1); left = left[1:] {
			part, size = append(part, left[0]), size+left[0].size
		}
		d, diffID, err := pack(filepath.Join(dir, strconv.Itoa(i)), format, part, reg)
		if err != nil {
			return 0, err
		}
		m.Layers, config.RootFS.DiffIDs = append(m.Layers, d), append(config.RootFS.DiffIDs, diffID)
		packed += d.Size
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return 0, err
	}
	m.Config = reg.putBytes(v1.MediaTypeImageConfig, raw)
	manifest, err := json.Marshal(m)
	if err != nil {
		return 0, err
	}
	reg.manifests[format] = reg.putBytes(v1.MediaTypeImageManifest, manifest)
	return packed, nil
}

// pack writes one layer to a file.
func pack(path, format string, files []source, reg *registry) (v1.Descriptor, digest.Digest, error) {
	f, err := os.Create(path)
	if err != nil {
		return v1.Descriptor{}, "", err
	}
	defer f.Close()
	packed, plain := sha256.New(), sha256.New()
	b := bufio.NewWriterSize(io.MultiWriter(f, packed), 1<<20)
	z, mediaType, err := packer(b, format)
	if err != nil {
		return v1.Descriptor{}, "", err
	}
	if err := errors.Join(writeTar(io.MultiWriter(z, plain), files), z.Close(), b.Flush()); err != nil {
		return v1.Descriptor{}, "", err
	}
	info, err := f.Stat()
	if err != nil {
		return v1.Descriptor{}, "", err
	}
	d := v1.Descriptor{MediaType: mediaType, Digest: sum(packed), Size: info.Size()}
	reg.blobs[d.Digest.String()] = path
	return d, sum(plain), nil
}

func packer(w io.Writer, format string) (io.WriteCloser, string, error) {
	if format == "zstd" {
		z, err := zstd.NewWriter(w)
		return z, v1.MediaTypeImageLayerZstd, err
	}
	z, err := gzip.NewWriterLevel(w, gzip.DefaultCompression)
	return z, v1.MediaTypeImageLayerGzip, err
}

func sum(h hash.Hash) digest.Digest { return digest.Digest("sha256:" + hex.EncodeToString(h.Sum(nil))) }

func writeTar(w io.Writer, files []source) error {
	t := tar.NewWriter(w)
	dirs := map[string]bool{".": true}
	for _, s := range files {
		name := strings.TrimPrefix(s.path, "/")
		if err := writeDirs(t, filepath.Dir(name), dirs); err != nil {
			return err
		}
		if err := writeFile(t, name, s); err != nil {
			return err
		}
	}
	return t.Close()
}

// writeDirs writes the directories above an entry, as the archives of real images have them.
func writeDirs(t *tar.Writer, dir string, seen map[string]bool) error {
	if seen[dir] {
		return nil
	}
	seen[dir] = true
	if err := writeDirs(t, filepath.Dir(dir), seen); err != nil {
		return err
	}
	return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755})
}

func writeFile(t *tar.Writer, name string, s source) error {
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: s.size}); err != nil {
		return err
	}
	_, err = io.CopyN(t, f, s.size)
	return err
}
