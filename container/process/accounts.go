// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"crishim.dev/image"
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
			return a, fmt.Errorf("read the image's accounts: %w", err)
		}
		*dst = b
	}
	return a, nil
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
