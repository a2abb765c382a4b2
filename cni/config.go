// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

const (
	// maxConfig is the largest configuration file that is read.
	maxConfig = 1 << 20
	// builtinName is the network of the built-in configuration, builtinBridge its bridge.
	builtinName   = "shim"
	builtinBridge = "shim0"
)

// loaded is the configuration in use. Immutable but for ready.
type loaded struct {
	ready  atomic.Bool // every plugin was found once
	ours   atomic.Bool // all of them built in; valid once ready
	lasts  atomic.Bool // something of its attachments outlives a reboot; valid once ready
	list   *libcni.NetworkConfigList
	source string // the file, or "built in"
	err    error  // why there is none: the text is the reason for NetworkReady=false
}

// stamp tells whether a file is the one that was read.
type stamp struct {
	name         string
	size         int64
	inode        uint64
	mtime, ctime int64 // ns
}

func stampOf(name string, st *unix.Stat_t) stamp {
	return stamp{name, st.Size, st.Ino, st.Mtim.Nano(), st.Ctim.Nano()}
}

// candidates lists what could be configurations, in order, with their stamps. Directories and other endings are not looked at.
func candidates(dir string) ([]stamp, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read CNI configuration directory: %w", err)
	}
	var out []stamp
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".conflist", ".conf", ".json":
		default:
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, e.Name()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue // removed meanwhile; a link to nowhere; a directory
		}
		out = append(out, stampOf(e.Name(), &st))
	}
	return out, nil
}

// loadFile reads one configuration: a list, or a single plugin as a list of one.
func loadFile(path string) (*libcni.NetworkConfigList, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read CNI configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("read CNI configuration: %w", err)
	}
	if len(data) > maxConfig {
		return nil, errs.Newf(errs.Invalid, "read CNI configuration %s: larger than %d bytes", path, maxConfig)
	}
	list, err := parse(data)
	if err != nil {
		return nil, errs.Newf(errs.Invalid, "read CNI configuration %s: %w", path, err)
	}
	if list.LoadOnlyInlinedPlugins || filepath.Ext(path) != ".conflist" {
		return list, nil
	}
	// CNI 1.1: more plugins from a directory named after the network.
	more, err := libcni.NetworkPluginConfsFromFiles(filepath.Dir(path), list.Name)
	if err != nil {
		return nil, errs.Newf(errs.Invalid, "read CNI configuration %s: %w", path, err)
	}
	list.Plugins = append(list.Plugins, more...)
	if err := validate(list); err != nil {
		return nil, errs.Newf(errs.Invalid, "read CNI configuration %s: %w", path, err)
	}
	return list, nil
}

// parse reads a list, or a single configuration, whichever the content is: files are named freely.
func parse(data []byte) (*libcni.NetworkConfigList, error) {
	var shape struct {
		Type    json.RawMessage `json:"type"`
		Plugins json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(data, &shape); err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	if shape.Type == nil || shape.Plugins != nil {
		list, err := libcni.NetworkConfFromBytes(data)
		if err != nil {
			return nil, err
		}
		if len(list.Plugins) > 0 { // else they may come from files
			err = validate(list)
		} else {
			err = validateName(list)
		}
		return list, err
	}
	one, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(map[string]any{"name": one.Network.Name, "cniVersion": one.Network.CNIVersion, "plugins": []json.RawMessage{data}})
	if err != nil {
		return nil, fmt.Errorf("make a list: %w", err)
	}
	list, err := libcni.NetworkConfFromBytes(raw)
	if err != nil {
		return nil, err
	}
	return list, validate(list)
}

func validateName(list *libcni.NetworkConfigList) error {
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return err
	}
	return nil
}

func validate(list *libcni.NetworkConfigList) error {
	if err := validateName(list); err != nil {
		return err
	}
	if v := list.CNIVersion; v != "" && !slices.Contains(version.All.SupportedVersions(), v) {
		return errs.Newf(errs.Unsupported, "CNI version %q is not supported", v)
	}
	if len(list.Plugins) == 0 {
		return errors.New("no plugins")
	}
	for _, p := range list.Plugins {
		if p == nil || p.Network == nil {
			return errors.New("an entry of the list of plugins is null")
		}
		if err := validType(p.Network.Type); err != nil {
			return err
		}
		if ipam := p.Network.IPAM.Type; ipam != "" {
			if err := validType(ipam); err != nil {
				return err
			}
		}
	}
	return nil
}

// validType refuses names that would leave the plugin directories.
func validType(typ string) error {
	if typ == "" || typ == "." || typ == ".." || strings.ContainsAny(typ, "/\x00") || len(typ) > 255 {
		return errs.Newf(errs.Invalid, "plugin type %q is not a file name", typ)
	}
	return nil
}

// builtinList makes the built-in configuration for the pod ranges.
func builtinList(cidrs []netip.Prefix, mtu int) (*libcni.NetworkConfigList, error) {
	type object = map[string]any
	var ranges [][]object
	var routes []object
	for _, c := range cidrs {
		ranges = append(ranges, []object{{"subnet": c.String()}})
		dst := "0.0.0.0/0"
		if c.Addr().Is6() {
			dst = "::/0"
		}
		routes = append(routes, object{"dst": dst})
	}
	bridge := object{"type": "bridge", "bridge": builtinBridge, "isGateway": true, "ipMasq": true,
		// kubelet sends the node's pod CIDR when there may be a bridge with the default range's address already.
		"forceAddress": true,
		"ipam":         object{"type": "host-local", "ranges": ranges, "routes": routes}}
	if mtu > 0 {
		bridge["mtu"] = mtu
	}
	data, err := json.Marshal(object{"cniVersion": "1.1.0", "name": builtinName, "plugins": []object{
		bridge,
		{"type": "portmap", "capabilities": object{"portMappings": true}},
		{"type": "bandwidth", "capabilities": object{"bandwidth": true}},
	}})
	if err != nil {
		return nil, fmt.Errorf("make built-in CNI configuration: %w", err)
	}
	return parse(data)
}

// defaultCIDRs are the built-in network's ranges until SetPodCIDRs.
func defaultCIDRs() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16")} }

// current gives the configuration in use, read again if the directory has changed. That costs a read of the directory and a stat for each
// file; in return there is no watcher to fall behind, to run out of, or to miss a directory that did not exist.
func (n *Network) current() *loaded {
	now := time.Now()
	files, err := candidates(n.opts.ConfDir)
	if err != nil {
		return &loaded{err: errs.As(errs.Unavailable, err)}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conf != nil && !n.racy && slices.Equal(files, n.seen) {
		return n.conf
	}
	before := n.conf
	n.conf, n.seen = n.loadLocked(files), files
	// A file changed so recently may change again without a new stamp: then it is read again next time.
	n.racy = slices.ContainsFunc(files, func(f stamp) bool { return f.ctime > now.Add(-settle).UnixNano() })
	n.logChange(before, n.conf)
	return n.conf
}

// settle is longer than the tick of the kernel's clock for file times (100 to 1000 Hz).
const settle = 50 * time.Millisecond

func (n *Network) loadLocked(files []stamp) *loaded {
	if len(files) == 0 {
		if !n.opts.Builtin {
			return &loaded{err: errs.Newf(errs.Unavailable, "cni: no configuration in %s", n.opts.ConfDir)}
		}
		list, err := builtinList(n.cidrs, n.opts.MTU)
		if err == nil {
			err = native(list)
		}
		return &loaded{list: list, source: "built in", err: err}
	}
	path := filepath.Join(n.opts.ConfDir, files[0].name)
	list, err := loadFile(path)
	if err == nil {
		err = native(list)
	}
	if err != nil {
		return &loaded{source: path, err: errs.As(errs.Unavailable, fmt.Errorf("cni: %w", err))}
	}
	return &loaded{list: list, source: path}
}

func (n *Network) logChange(before, after *loaded) {
	switch {
	case before != nil && before.source == after.source && (before.err == nil) == (after.err == nil):
	case after.err != nil:
		n.opts.Log.Warn("no pod network", "reason", after.err)
	default:
		n.opts.Log.Info("pod network", "name", after.list.Name, "source", after.source)
	}
}
