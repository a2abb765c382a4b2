// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// setAsideDamaged looks through the database and renames one that can't be trusted, so that the daemon starts without images rather
// than not at all, or with what a disk made of them. Layers stay: a pull finds them.
func (c *catalog) setAsideDamaged() error {
	fault := checkDB(c.dbPath())
	if fault == nil || environmental(fault) {
		return fault
	}
	aside := fmt.Sprintf("%s.damaged-%d", c.dbPath(), time.Now().Unix())
	c.log.Error("The database of the images is damaged and set aside. Images will be pulled again when needed.", "kept", aside, "err", fault)
	if err := os.Rename(c.dbPath(), aside); err != nil {
		return fmt.Errorf("set damaged image database aside: %w", err)
	}
	return nil
}

// environmental says whether an error is about the system (no permission, no descriptors, an unreadable disk, another daemon), not
// about the database's content.
func environmental(err error) bool {
	var no syscall.Errno
	return errors.As(err, &no) || errors.Is(err, berrors.ErrTimeout)
}

// checkDB reads all pages, whatever they hold. No database is no fault. A record that is damaged for itself costs only its image
// (decode).
func checkDB(path string) (fault error) {
	defer func() {
		if r := recover(); r != nil { // bbolt asserts what it relies on
			fault = fmt.Errorf("read %s: %v", path, r)
		}
	}()
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read image database: %w", err)
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, ReadOnly: true})
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer db.Close()
	return db.View(func(tx *bolt.Tx) error {
		if tx.Size() > info.Size() { // reading on would be a fault of the memory map
			return fmt.Errorf("read %s: %d bytes of %d are there", path, info.Size(), tx.Size())
		}
		var all []error
		for err := range tx.Check() {
			all = append(all, err)
		}
		if len(all) > 0 {
			return fmt.Errorf("read %s: %w", path, errors.Join(all...))
		}
		return nil
	})
}
