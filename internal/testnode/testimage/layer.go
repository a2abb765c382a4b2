// SPDX-License-Identifier: Apache-2.0

// Package testimage makes the images that tests and the demo run, from local files and without any other runtime.
//
// All returns the stand-ins for every image that critest pulls by name and a few of our own; Layer and Build make others
// (hostile ones too). Everything is deterministic: the same sources give the same digests.
package testimage

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// File is one entry of a layer. Name is used as it is, so that a hostile layer can be made.
type File struct {
	Name string
	// Mode holds permission bits, setuid and sticky included; 0 is 0755 for directories and 0644 for files.
	Mode int64
	UID  int
	GID  int
	Body []byte
	// Dir, FIFO, Link and Symlink make something other than a regular file; the latter two name the target.
	Dir, FIFO     bool
	Link, Symlink string
	// Xattrs are extended attributes, "security.capability" for one.
	Xattrs map[string]string
}

// Compression says how a layer is stored.
type Compression = compression.Compression

// The ways to store a layer.
const (
	Gzip  = compression.GZip
	Zstd  = compression.ZStd
	Plain = compression.None
)

// Tar is the archive of these files.
func Tar(files ...File) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{
			Name: f.Name, Mode: f.Mode, Uid: f.UID, Gid: f.GID,
			ModTime: epoch(), Format: tar.FormatPAX, Typeflag: tar.TypeReg,
		}
		switch {
		case f.Dir:
			h.Typeflag = tar.TypeDir
		case f.FIFO:
			h.Typeflag = tar.TypeFifo
		case f.Link != "":
			h.Typeflag, h.Linkname = tar.TypeLink, f.Link
		case f.Symlink != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Symlink, 0o777
		default:
			h.Size = int64(len(f.Body))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if f.Dir {
				h.Mode = 0o755
			}
		}
		for k, v := range f.Xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = make(map[string]string)
			}
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("write entry %s: %w", f.Name, err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(f.Body); err != nil {
				return nil, fmt.Errorf("write entry %s: %w", f.Name, err)
			}
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("end archive: %w", err)
	}
	return buf.Bytes(), nil
}

// Layer makes a layer of these files, stored with c.
func Layer(c Compression, files ...File) (v1.Layer, error) {
	raw, err := Tar(files...)
	if err != nil {
		return nil, err
	}
	return LayerOf(c, raw)
}

// LayerOf makes a layer of an archive's bytes, whatever they are.
func LayerOf(c Compression, raw []byte) (v1.Layer, error) {
	media := map[Compression]types.MediaType{Gzip: types.OCILayer, Zstd: types.OCILayerZStd, Plain: types.OCIUncompressedLayer}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil },
		tarball.WithCompression(c), tarball.WithCompressionLevel(1), tarball.WithCompressedCaching, tarball.WithMediaType(media[c]))
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	return l, nil
}

// epoch is the time of everything in the images.
func epoch() time.Time { return time.Unix(1700000000, 0).UTC() }
