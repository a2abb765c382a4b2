// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"

	"crishim.dev/internal/errs"
	"crishim.dev/internal/fsx"
)

// attachment is the record of one: enough to DEL it whatever has become of the configuration.
type attachment struct {
	Network    string              `json:"network"`
	CNIVersion string              `json:"cniVersion"`
	Config     json.RawMessage     `json:"config"`
	Plugins    []json.RawMessage   `json:"plugins"` // with those from a network's directory
	Runtime    *libcni.RuntimeConf `json:"runtime"`
}

const recordName = "attachment"

// records keeps a directory for each attachment, in one of two places. What built-in plugins hold ends with a reboot, and so do the records
// of it; what a binary holds (an address from a server, say) does not, and has to be given back all the same.
type records struct {
	// passing is on tmpfs, lasting on a disk.
	passing, lasting string
}

func (r records) places() []string { return []string{r.passing, r.lasting} }

func (r records) open() error {
	for _, dir := range r.places() {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("open network state: %w", err)
		}
	}
	return nil
}

// dir is the directory of an attachment: that of a lasting one if there is one.
func (r records) dir(id string) string {
	lasting := filepath.Join(r.lasting, id)
	if _, err := os.Lstat(lasting); err == nil {
		return lasting
	}
	return filepath.Join(r.passing, id)
}

// has says that a pod has an attachment, complete or not.
func (r records) has(id string) bool {
	_, err := os.Lstat(r.dir(id))
	return err == nil
}

// list gives the pods that have an attachment, and which of them outlive a reboot.
func (r records) list() (map[string]bool, error) {
	out := map[string]bool{}
	for i, place := range r.places() {
		entries, err := os.ReadDir(place)
		if err != nil {
			return nil, fmt.Errorf("list attachments: %w", err)
		}
		for _, e := range entries {
			out[e.Name()] = i > 0
		}
	}
	return out, nil
}

// write records what ADD is about to do.
func (r records) write(id string, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf, lasts bool) error {
	a := attachment{Network: list.Name, CNIVersion: list.CNIVersion, Config: list.Bytes, Runtime: rt}
	for _, p := range list.Plugins {
		a.Plugins = append(a.Plugins, p.Bytes)
	}
	data, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("record attachment: %w", err)
	}
	dir := filepath.Join(r.passing, id)
	if lasts {
		dir = filepath.Join(r.lasting, id)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("record attachment: %w", err)
	}
	if err := fsx.WriteFileAtomic(filepath.Join(dir, recordName), data, 0o600, false); err != nil {
		return fmt.Errorf("record attachment: %w", err)
	}
	return nil
}

// read reads an attachment back. fs.ErrNotExist: there is none, or nothing was done yet. errs.Invalid: it was on its way to the disk when
// the power failed, and what it was is lost.
func (r records) read(id string) (*libcni.NetworkConfigList, *libcni.RuntimeConf, error) {
	data, err := os.ReadFile(filepath.Join(r.dir(id), recordName))
	if err != nil {
		return nil, nil, fmt.Errorf("read attachment: %w", err)
	}
	var a attachment
	if err := json.Unmarshal(data, &a); err != nil || a.Runtime == nil {
		return nil, nil, errs.Newf(errs.Invalid, "read attachment of pod %s: not complete", id)
	}
	list := &libcni.NetworkConfigList{Name: a.Network, CNIVersion: a.CNIVersion, Bytes: a.Config}
	for _, raw := range a.Plugins {
		p, err := libcni.NetworkPluginConfFromBytes(raw)
		if err != nil {
			return nil, nil, errs.Newf(errs.Invalid, "read attachment of pod %s: %w", id, err)
		}
		list.Plugins = append(list.Plugins, p)
	}
	return list, a.Runtime, nil
}

// forget removes the record. None is fine.
func (r records) forget(id string) error {
	var failed []error
	for _, place := range r.places() {
		if err := os.RemoveAll(filepath.Join(place, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, fmt.Errorf("remove attachment: %w", err))
		}
	}
	return errors.Join(failed...)
}
