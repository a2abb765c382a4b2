// SPDX-License-Identifier: Apache-2.0

package census

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// cgroups lists directories: each is a control group.
func (t *taker) cgroups() error {
	for _, pattern := range t.Cgroups {
		tops, err := filepath.Glob(pattern)
		if err != nil {
			return fmt.Errorf("list cgroups %s: %w", pattern, err)
		}
		for _, top := range tops {
			err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					t.add("cgroup", p, "")
				}
				return ignoreVanished(err)
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// files lists names and types. Sizes are notes: a log may grow.
func (t *taker) files() error {
	for _, dir := range t.Dirs {
		fi, err := os.Lstat(dir)
		if vanished(err) {
			continue
		}
		if err != nil {
			return err
		}
		top := device(fi)
		err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return ignoreVanished(err)
			}
			fi, err := d.Info()
			if err != nil {
				return ignoreVanished(err)
			}
			t.add("file", p+typeMark(fi.Mode()), fmt.Sprintf("%s, %d bytes", fi.Mode(), fi.Size()))
			if d.IsDir() && device(fi) != top {
				return filepath.SkipDir
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func ignoreVanished(err error) error {
	if vanished(err) {
		return nil
	}
	return err
}

func device(fi fs.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Dev)
	}
	return 0
}

// typeMark is what ls -F puts behind a name.
func typeMark(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "/"
	case m&fs.ModeSymlink != 0:
		return "@"
	case m&fs.ModeNamedPipe != 0:
		return "|"
	case m&fs.ModeSocket != 0:
		return "="
	case m&fs.ModeDevice != 0:
		return "%"
	}
	return ""
}
