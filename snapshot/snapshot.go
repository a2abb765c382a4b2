// SPDX-License-Identifier: Apache-2.0

// Package snapshot keeps image layers and the writable layers of containers on disk, and makes root file systems of them.
//
// A layer is one directory that holds what one layer of an image adds, in the form overlayfs wants it: a removed file is a
// character device 0:0, a directory that hides what is below it carries the attribute trusted.overlay.opaque=y. A snapshot is a
// list of layers plus an empty writable directory. Mounting one gives a detached overlay: a descriptor that no mount table shows,
// that the next process may attach where it likes, and that is freed with its last user.
//
// The package knows no archives (snapshot/untar fills a layer), no registries and no image records (image does), and no containers.
//
// On disk, all of it mode 0700:
//
//	layers/<key>/{fs/,layer.json,side-*,durable}   complete layers; made by one rename
//	snapshots/<id>/{upper/,work/,snapshot.json}    writable layers
//	drafts/<n>/{fs/}                               layers being filled; gone at the next Open
//	trash/<n>                                      on its way out
//
// Lock order: a snapshot's or layer's key (Store.keys), then index.mu. No I/O happens under index.mu.
package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"time"
)

// MaxLayers is how many layers a snapshot may have: what one overlay mount of Linux can stack (OVL_MAX_STACK).
const MaxLayers = 500

// Key names a layer: "diff-" or "chain-", and the hexadecimal SHA-256 of its diff ID or chain ID.
//
// A layer that stands for itself is keyed by its diff ID and shared by every image that has it. One whose content was taken in
// part from the layers below it (a hard link to a lower file, a parent directory it has no entry for) is only right on top of
// those and is keyed by the chain ID.
type Key string

// DiffKey is the key of a self-contained layer; diffID is "sha256:…".
func DiffKey(diffID string) Key { return Key("diff-" + strings.TrimPrefix(diffID, "sha256:")) }

// ChainKey is the key of a layer that depends on those below: the last of diffIDs (bottom first).
func ChainKey(diffIDs []string) Key {
	return Key("chain-" + strings.TrimPrefix(ChainID(diffIDs), "sha256:"))
}

// ChainID is the chain ID of a stack of layers as the OCI image specification (config.md, "Layer ChainID") defines it.
func ChainID(diffIDs []string) string {
	if len(diffIDs) == 0 {
		return ""
	}
	chain := diffIDs[0]
	for _, d := range diffIDs[1:] {
		sum := sha256.Sum256([]byte(chain + " " + d))
		chain = "sha256:" + hex.EncodeToString(sum[:])
	}
	return chain
}

// valid says that the key is one of the two forms: it becomes a file name.
func (k Key) valid() bool {
	hash, ok := strings.CutPrefix(string(k), "diff-")
	if !ok {
		hash, ok = strings.CutPrefix(string(k), "chain-")
	}
	if !ok || len(hash) != 2*sha256.Size {
		return false
	}
	return strings.Trim(hash, "0123456789abcdef") == ""
}

// Layer describes a complete layer.
type Layer struct {
	Key Key `json:"key"`
	// DiffID is the digest of the uncompressed tar stream it came from, "sha256:…".
	DiffID string `json:"diff_id"`
	// Bytes is the disk space it takes, Inodes the number of files, directories included.
	Bytes  uint64 `json:"bytes"`
	Inodes uint64 `json:"inodes"`
	// RootSet says that the layer has an entry for the root directory; else the root's owner and mode come from below.
	RootSet bool `json:"root_set,omitempty"`
	// Created is when it was committed, Boot the boot id of then; Commit sets both.
	Created time.Time `json:"created"`
	Boot    string    `json:"boot"`
}

// Mount says how a snapshot is to be mounted. The zero value is the ordinary writable root file system.
type Mount struct {
	// ReadOnly leaves the writable layer out: nothing can be made in it, and many such mounts may live at once. It is for image
	// volumes. A container with a read-only root is mounted writable, gets its mount points, and is then made read-only.
	ReadOnly bool
	// UserNS, if not nil, is the user namespace that the layers are id-mapped by: owner 0 on disk is the namespace's root.
	UserNS *os.File
	// UID and GID become the owner of the writable root directory when UserNS is set: the host's ids of the namespace's root.
	UID, GID int
}

// Snapshotter is what images and containers need of this package; Store is the one implementation, package snapshottest the
// suite that says what each method promises.
//
// # Life of a layer
//
// Prepare gives a Draft with an empty directory. Its filler writes below Draft.Root and then calls Commit, which makes the
// layer visible in one step, or Discard. A crash leaves the layer complete or absent, never half there: one that a power cut
// caught before it was written to disk is dropped by the next Open.
// RemoveLayer refuses while a snapshot refers to the layer or a Hold lies on it.
//
// # Life of a snapshot
//
//	Create ──▶ Mount ──▶ (descriptor closed, processes gone) ──▶ Mount … ──▶ Remove
//
// Each Mount makes a new overlay on the same writable directory. Two overlays alive on one writable directory corrupt each other
// (the kernel only warns), so: one descriptor is one launch attempt. Whoever mounts again has first closed the last descriptor and
// seen the last process end.
//
// All methods are safe for concurrent use. Create, Remove and RemoveLayer of one object wait for each other.
type Snapshotter interface {
	// Prepare makes an empty draft of a layer.
	Prepare(ctx context.Context) (*Draft, error)
	// Layer describes a complete layer.
	Layer(key Key) (Layer, bool)
	// Layers lists the complete layers, sorted by key.
	Layers() []Layer
	// Hold keeps layers, also ones yet to be committed, from being removed until release is called.
	Hold(keys ...Key) (release func())
	// RemoveLayer removes a layer. An unknown one is no error; one in use is Precondition.
	RemoveLayer(ctx context.Context, key Key) error
	// View mounts layers, bottom first, read-only, without a snapshot.
	View(ctx context.Context, layers []Key) (*os.File, error)

	// Create makes a snapshot with an empty writable layer on layers, bottom first. A taken id is AlreadyExists, an unknown layer
	// NotFound, more than MaxLayers layers Invalid.
	Create(ctx context.Context, id string, layers []Key) error
	// Mount gives the root directory of a new detached overlay; the caller closes it.
	Mount(ctx context.Context, id string, m Mount) (*os.File, error)
	// Usage is what the writable layer takes, as of a moment ago; Unavailable until it is known for the first time.
	Usage(id string) (Usage, error)
	// Remove removes a snapshot and its writable layer. An unknown one is no error.
	Remove(ctx context.Context, id string) error
	// Snapshots lists the ids, sorted.
	Snapshots() ([]string, error)
}

var _ Snapshotter = (*Store)(nil)
