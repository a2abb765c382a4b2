// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"crishim.dev/cni/builtin"
	"crishim.dev/cni/builtin/rtnl"
	"crishim.dev/internal/fsx"
)

// A chain of built-in plugins only is run here, in the way libcni would: the same order, the same arguments, the same cache. What is
// left out is to write each result as JSON, read it again, write it into the next configuration and read that: half the time of an ADD.

// errMixed is returned for a DEL that needs libcni.
var errMixed = errors.New("not all plugins are built in")

// native prepares the list: each plugin's configuration gets what libcni would inject.
func native(list *libcni.NetworkConfigList) error {
	for i, p := range list.Plugins {
		if !builtin.Is(p.Network.Type) {
			continue
		}
		inject := map[string]any{"name": list.Name}
		if list.CNIVersion != "" {
			inject["cniVersion"] = list.CNIVersion
		}
		q, err := libcni.InjectConf(p, inject)
		if err != nil {
			return fmt.Errorf("prepare plugin %s: %w", p.Network.Type, err)
		}
		list.Plugins[i] = q
	}
	return nil
}

// chain is one operation on one pod.
type chain struct {
	n    *Network
	list *libcni.NetworkConfigList
	rt   *libcni.RuntimeConf
	pod  *rtnl.Conn // nil: no way into the pod
	// later takes over the slow end of DEL; nil: everything at once.
	later *job
}

func (c *chain) call(verb string, p *libcni.PluginConfig, prev *current.Result) (*builtin.Call, error) {
	call := &builtin.Call{Command: verb, Container: c.rt.ContainerID, NetNS: c.rt.NetNS, IfName: c.rt.IfName, Config: p.Bytes, Prev: prev, Pod: c.pod}
	var args strings.Builder
	for i, kv := range c.rt.Args {
		if i > 0 {
			args.WriteByte(';')
		}
		args.WriteString(kv[0] + "=" + kv[1])
	}
	call.Args = args.String()
	given := map[string]any{}
	for name, declared := range p.Network.Capabilities {
		if v, ok := c.rt.CapabilityArgs[name]; ok && declared {
			given[name] = v
		}
	}
	if len(given) > 0 {
		raw, err := json.Marshal(given)
		if err != nil {
			return nil, fmt.Errorf("pass capabilities to plugin %s: %w", p.Network.Type, err)
		}
		call.Runtime = raw
	}
	call.Delegate = func(ctx context.Context, typ string, config []byte) ([]byte, error) {
		return c.delegate(ctx, verb, typ, config)
	}
	if c.later != nil {
		call.Later = c.later.add
	}
	return call, nil
}

// delegate runs an IPAM plugin that is not built in.
func (c *chain) delegate(ctx context.Context, verb, typ string, config []byte) ([]byte, error) {
	path, err := findBinary(typ, c.n.opts.BinDirs)
	if err != nil {
		return nil, err
	}
	return c.n.run.runBinary(ctx, path, config, c.environ(verb))
}

func (c *chain) environ(verb string) []string {
	args := make([]string, len(c.rt.Args))
	for i, kv := range c.rt.Args {
		args[i] = kv[0] + "=" + kv[1]
	}
	return append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+c.rt.ContainerID, "CNI_NETNS="+c.rt.NetNS, "CNI_IFNAME="+c.rt.IfName,
		"CNI_ARGS="+strings.Join(args, ";"), "CNI_PATH="+strings.Join(c.n.opts.BinDirs, string(os.PathListSeparator)))
}

func (c *chain) allBuiltIn() bool {
	return !c.n.binaries && !slices.ContainsFunc(c.list.Plugins, func(p *libcni.PluginConfig) bool { return !builtin.Is(p.Network.Type) })
}

// add runs ADD and caches the result. Every plugin must understand its configuration.
func (c *chain) add(ctx context.Context) (*current.Result, error) {
	var res *current.Result
	for _, p := range c.list.Plugins {
		call, err := c.call("ADD", p, res)
		if err != nil {
			return nil, err
		}
		res, err = c.n.host.Do(ctx, p.Network.Type, call)
		if err != nil {
			return nil, fmt.Errorf("plugin %s: %w", p.Network.Type, err)
		}
	}
	return res, c.cache(res)
}

// del runs DEL, last plugin first.
func (c *chain) del(ctx context.Context) error {
	if !c.allBuiltIn() {
		return errMixed
	}
	prev, err := c.cached()
	if err != nil {
		return errMixed
	}
	for i, p := range slices.Backward(c.list.Plugins) {
		call, err := c.call("DEL", p, prev)
		if err != nil {
			return err
		}
		_, err = c.n.host.Do(ctx, p.Network.Type, call)
		if errors.Is(err, builtin.ErrNotUnderstood) {
			return errMixed // DEL of those before is repeated, which is harmless
		}
		if err != nil {
			return fmt.Errorf("plugin %s (number %d): %w", p.Network.Type, i+1, err)
		}
	}
	if err := os.Remove(c.cachePath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove cached result: %w", err)
	}
	return nil
}

// cached is a result in the format of libcni's cache, so that either can read the other's.
type cachedResult struct {
	Kind        string      `json:"kind"`
	ContainerID string      `json:"containerId"`
	IfName      string      `json:"ifName"`
	NetworkName string      `json:"networkName"`
	Result      *flatResult `json:"result,omitempty"`
}

// flatResult has no MarshalJSON, which would write, read and write.
type flatResult current.Result

func (c *chain) cachePath() string {
	return filepath.Join(c.n.records.dir(c.rt.ContainerID), "results", c.list.Name+"-"+c.rt.ContainerID+"-"+c.rt.IfName)
}

func (c *chain) cache(res *current.Result) error {
	data, err := json.Marshal(cachedResult{libcni.CNICacheV1, c.rt.ContainerID, c.rt.IfName, c.list.Name, (*flatResult)(res)})
	if err == nil {
		err = os.Mkdir(filepath.Dir(c.cachePath()), 0o700)
	}
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = fsx.WriteFileAtomic(c.cachePath(), data, 0o600, false)
	}
	if err != nil {
		return fmt.Errorf("cache result: %w", err)
	}
	return nil
}

// cached reads the result of ADD; nil when ADD did not get that far.
func (c *chain) cached() (*current.Result, error) {
	data, err := os.ReadFile(c.cachePath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read cached result: %w", err)
	}
	var r struct {
		Result struct {
			CNIVersion string               `json:"cniVersion"`
			Interfaces []*current.Interface `json:"interfaces"`
			IPs        []*current.IPConfig  `json:"ips"`
			Routes     []*types.Route       `json:"routes"`
		} `json:"result"`
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("read cached result: %w", err)
	}
	if r.Result.CNIVersion != current.ImplementedSpecVersion {
		return nil, errMixed // of another form: libcni converts it
	}
	return &current.Result{CNIVersion: r.Result.CNIVersion, Interfaces: r.Result.Interfaces, IPs: r.Result.IPs, Routes: r.Result.Routes}, nil
}
