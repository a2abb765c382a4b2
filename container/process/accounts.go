// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"strings"
	"sync"

	"crishim.dev/image"
	"crishim.dev/internal/errs"
	"crishim.dev/internal/fsx"
	"crishim.dev/snapshot"
)

// Viewer gives a read-only look at an image's file system; *snapshot.Store is one.
type Viewer interface {
	View(ctx context.Context, layers []snapshot.Key) (*os.File, error)
}

// Accounts are an image's /etc/passwd and /etc/group; nil where it has none.
type Accounts struct{ passwd, group []byte }

// accountsLimit is the size of the largest passwd or group file that is read from an image.
const accountsLimit = 4 << 20

func readAccounts(root *os.File) (Accounts, error) {
	var a Accounts
	for path, dst := range map[string]*[]byte{"/etc/passwd": &a.passwd, "/etc/group": &a.group} {
		b, err := fsx.ReadFileInRoot(root, path, accountsLimit)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return a, fmt.Errorf("read the image's accounts: %w", errs.OfPath(err))
		}
		*dst = b
	}
	return a, nil
}

// account is a line of /etc/passwd: "name:password:uid:gid:comment:home:shell".
type account struct {
	name     string
	uid, gid uint32
	home     string
}

// findAccount gives the first account that is wanted. Like the C library it passes over lines that are malformed, ids out of range among
// them: a number that can't be read must not be taken for 0, which is root's.
func (a Accounts) findAccount(wanted func(account) bool) (account, bool) {
	for f := range entries(a.passwd) {
		uid, isUID, errUID := parseID(f[2])
		gid, isGID, errGID := parseID(at(f, 3))
		found := account{name: f[0], uid: uid, gid: gid, home: at(f, 5)}
		if isUID && isGID && errUID == nil && errGID == nil && wanted(found) {
			return found, true
		}
	}
	return account{}, false
}

// groups goes through the lines of /etc/group, "name:password:gid:member,member", that are well-formed: name, gid, members.
func (a Accounts) groups(each func(name string, gid uint32, members []string)) {
	for f := range entries(a.group) {
		if gid, isGID, err := parseID(f[2]); isGID && err == nil {
			each(f[0], gid, strings.Split(at(f, 3), ","))
		}
	}
}

// entries are the fields of the lines of a passwd or group file, three of them at least; comments are left out.
func entries(file []byte) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		for line := range strings.Lines(string(file)) {
			f := strings.Split(strings.TrimSpace(line), ":")
			if len(f) >= 3 && f[0] != "" && !strings.HasPrefix(f[0], "#") && !yield(f) {
				return
			}
		}
	}
}

// at is the i-th field, empty where there are fewer.
func at(fields []string, i int) string {
	if i < len(fields) {
		return fields[i]
	}
	return ""
}

// AccountsCache remembers the accounts of images used of late: reading them takes a mount. The zero value is ready; safe for
// concurrent use.
type AccountsCache struct {
	mu sync.Mutex
	// byImage has at most AccountsCached entries. Guarded by mu.
	byImage map[string]Accounts
}

// AccountsCached bounds the cache; accountsKept is the size in bytes of the largest entry it takes.
const (
	AccountsCached = 64
	accountsKept   = 16 << 10
)

// Of gives the accounts of an image.
func (c *AccountsCache) Of(ctx context.Context, snaps Viewer, img image.Image) (Accounts, error) {
	c.mu.Lock()
	a, ok := c.byImage[img.ID]
	c.mu.Unlock()
	if ok {
		return a, nil
	}
	root, err := snaps.View(ctx, img.Layers)
	if err != nil {
		return a, err
	}
	defer root.Close()
	if a, err = readAccounts(root); err != nil {
		return a, err
	}
	if len(a.passwd)+len(a.group) > accountsKept {
		return a, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byImage == nil || len(c.byImage) >= AccountsCached {
		c.byImage = map[string]Accounts{}
	}
	c.byImage[img.ID] = a
	return a, nil
}
