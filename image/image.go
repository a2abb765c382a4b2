// SPDX-License-Identifier: Apache-2.0

// Package image turns references into verified, unpacked images, and keeps track of them.
//
// A pull streams: each layer is downloaded, checked against its digest, decompressed, checked against its diff ID and unpacked in one
// go, several at a time; no copy of the compressed bytes is kept. An image appears in one step, when all of it is on disk. Its id is
// the digest of its configuration.
//
// What is written where: layers are snapshot's; the records of images, with their manifests and configurations, are in images.db
// (bbolt, synced). A layer that no image, no snapshot and no pull needs is removed by Collect.
//
// The protocol of registries is image/registry's, archives are snapshot/untar's.
//
// Lock order: Store.collect, then catalog.write, then catalog.mu. No I/O happens under mu.
package image

import (
	"slices"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim.dev/image/registry"
	"crishim.dev/snapshot"
)

// Auth is who pulls; nil or empty: anybody.
type Auth = registry.Auth

// Image is an image as seen at one moment: an immutable copy. What it points to must not be written.
type Image struct {
	// ID is the digest of the configuration, "sha256:…".
	ID string
	// RepoTags and RepoDigests are the names it goes by: "docker.io/library/busybox:1.36", "docker.io/library/busybox@sha256:…".
	RepoTags, RepoDigests []string
	// Size is the disk space its layers take, those it shares with other images included.
	Size uint64
	// Layers are the keys of its layers, bottom first.
	Layers []snapshot.Key
	// Config is what a container of it runs with.
	Config v1.ImageConfig
	// Architecture and OS are the configuration's.
	Architecture, OS string
	// Pinned keeps the kubelet from removing it.
	Pinned bool
}

// record is an image as the database has it.
type record struct {
	ID      string   `json:"id"`
	Tags    []string `json:"tags,omitempty"`
	Digests []digest `json:"digests,omitempty"`
	// DiffIDs and Layers have one element per layer, bottom first.
	DiffIDs []string       `json:"diff_ids"`
	Layers  []snapshot.Key `json:"layers"`
	// Blobs are the layers' digests and media types as the manifest names them.
	Blobs []registry.Descriptor `json:"blobs,omitempty"`
	// Manifest is the digest of the manifest, Config that of the configuration; both are kept in the database.
	Manifest string `json:"manifest,omitempty"`
	// Index is the digest of the index that the manifest was chosen from.
	Index string `json:"index,omitempty"`
	// Pulled is when it was last pulled or imported, in seconds.
	Pulled int64 `json:"pulled"`
}

// digest is a name of an image by digest.
type digest struct {
	Ref string `json:"ref"` // name@sha256:…
	// Own says that the image was asked for by this name: it stays when its last tag goes.
	Own bool `json:"own,omitempty"`
}

func (r *record) clone() *record {
	c := *r
	c.Tags, c.Digests = slices.Clone(r.Tags), slices.Clone(r.Digests)
	return &c
}

// addDigest enters a name by digest.
func (r *record) addDigest(ref string, own bool) {
	for i := range r.Digests {
		if r.Digests[i].Ref == ref {
			r.Digests[i].Own = r.Digests[i].Own || own
			return
		}
	}
	r.Digests = append(r.Digests, digest{ref, own})
}

// named says that somebody still asks for the image by a name.
func (r *record) named() bool {
	return len(r.Tags) > 0 || slices.ContainsFunc(r.Digests, func(d digest) bool { return d.Own })
}

// entry is an image in memory: its record and what is derived from it. Never changed once it is in the index.
type entry struct {
	rec   *record
	image Image
}
