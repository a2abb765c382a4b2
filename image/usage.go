// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/snapshot"
)

// FSUsage is what images, or containers' writable layers, take of a file system.
type FSUsage struct {
	// MountPoint is where the file system is mounted.
	MountPoint string
	// Bytes and Inodes are what is used for this purpose.
	Bytes, Inodes uint64
	// At is when that was so.
	At time.Time
}

// Usage says how much disk space the images and the containers' writable layers take. No tree is walked for it: layers were
// measured when they were made, writable layers are as last measured.
func (s *Store) Usage(ctx context.Context) (images, containers FSUsage, err error) {
	if err := ctx.Err(); err != nil {
		return images, containers, err
	}
	mount, err := mountPoint(s.snap.Dir())
	if err != nil {
		return images, containers, err
	}
	now := time.Now()
	images = FSUsage{MountPoint: mount, At: now}
	for _, l := range s.snap.Layers() {
		images.Bytes += l.Bytes
		images.Inodes += l.Inodes
	}
	if st, err := os.Stat(s.cat.dbPath()); err == nil {
		images.Bytes += uint64(st.Size())
		images.Inodes++
	}
	containers = FSUsage{MountPoint: mount, At: now}
	containers.Bytes, containers.Inodes = s.snap.UsageAll()
	return images, containers, nil
}

// DiskUsage is an image and how the space that its layers take divides.
type DiskUsage struct {
	Image
	// Shared is the part of Size that other images have too: removing this one gives Size - Shared back.
	Shared uint64
}

// Disk lists the images, sorted by id, with what each shares with others. Nothing is measured for it.
func (s *Store) Disk() []DiskUsage {
	images, users := s.List(), map[snapshot.Key]int{}
	for _, i := range images {
		for _, k := range unique(i.Layers) {
			users[k]++
		}
	}
	out := make([]DiskUsage, 0, len(images))
	for _, i := range images {
		d := DiskUsage{Image: i}
		for _, k := range unique(i.Layers) {
			if l, ok := s.snap.Layer(k); ok && users[k] > 1 {
				d.Shared += l.Bytes
			}
		}
		out = append(out, d)
	}
	return out
}

// unique gives each layer once: an image may have the same twice.
func unique(keys []snapshot.Key) []snapshot.Key {
	keys = slices.Clone(keys)
	slices.Sort(keys)
	return slices.Compact(keys)
}

// MountPoint is where the file system of images and writable layers is mounted.
func (s *Store) MountPoint() (string, error) { return mountPoint(s.snap.Dir()) }

// mountPoint climbs from dir as long as the mount is the same (STATX_MNT_ID: Linux 5.8; before, the device tells).
func mountPoint(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return "", err
	}
	id := func(path string) (unix.Statx_t, error) {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, path, unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st)
		if err != nil {
			return st, &os.PathError{Op: "statx", Path: path, Err: err}
		}
		return st, nil
	}
	at, err := id(dir)
	if err != nil {
		return "", err
	}
	for dir != "/" {
		up, err := id(filepath.Dir(dir))
		if err != nil {
			return "", err
		}
		if up.Mnt_id != at.Mnt_id || up.Dev_major != at.Dev_major || up.Dev_minor != at.Dev_minor {
			break
		}
		dir = filepath.Dir(dir)
	}
	return dir, nil
}
