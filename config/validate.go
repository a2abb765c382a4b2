// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// handlerName is what Kubernetes accepts as the handler of a RuntimeClass (a DNS label).
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// Subnets reads the ranges of the built-in network: one, or one of each family with a comma between.
func (n Network) Subnets() ([]netip.Prefix, error) {
	var out []netip.Prefix
	for text := range strings.SplitSeq(n.Subnet, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		switch {
		case err != nil:
			return nil, err
		case p.Masked() != p:
			return nil, fmt.Errorf("%s has host bits set", p)
		case len(out) > 1 || len(out) == 1 && out[0].Addr().Is4() == p.Addr().Is4():
			return nil, fmt.Errorf("%s: one range of each family, no more", n.Subnet)
		}
		out = append(out, p)
	}
	return out, nil
}

// Validate reports every value that can't be used, each by its key.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("configuration: %s: %s", key, fmt.Sprintf(format, args...)))
	}
	c.validatePaths(bad)
	oneOf := func(key, v string, allowed ...string) {
		if !slices.Contains(allowed, v) {
			bad(key, "%q is none of %q", v, allowed)
		}
	}
	oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf("log.format", c.Log.Format, "text", "json")
	oneOf("cgroup.driver", c.Cgroup.Driver, "", "cgroupfs", "systemd")
	if _, err := c.Network.Subnets(); err != nil {
		bad("network.subnet", "%v", err)
	}
	if c.Image.Parallel < 1 {
		bad("image.parallel", "%d is less than 1", c.Image.Parallel)
	}
	if c.Image.Bandwidth < 0 {
		bad("image.bandwidth", "%d is less than 0", c.Image.Bandwidth)
	}
	if c.Image.MinRate < 1 {
		bad("image.min_rate", "%d is less than 1", c.Image.MinRate)
	}
	if c.Image.StallTime <= 0 {
		bad("image.stall_time", "must be longer than 0")
	}
	if c.Image.MaxLayers < 1 || c.Image.MaxLayers > 500 {
		bad("image.max_layers", "%d is not within 1 to 500", c.Image.MaxLayers)
	}
	if _, _, err := net.SplitHostPort(c.Streaming.Address); err != nil {
		bad("streaming.address", "%v", err)
	}
	if (c.Streaming.TLSCert == "") != (c.Streaming.TLSKey == "") {
		bad("streaming.tls_cert", "tls_cert and tls_key go together")
	}
	if c.Streaming.IdleTimeout <= 0 {
		bad("streaming.idle_timeout", "must be longer than 0")
	}
	if c.Streaming.CreationTimeout <= 0 {
		bad("streaming.creation_timeout", "must be longer than 0")
	}
	c.validateLimits(bad)
	for name, h := range c.Runtime.Handlers {
		if !handlerName.MatchString(name) {
			bad("runtime.handlers", "%q is not a DNS label", name)
		}
		oneOf("runtime.handlers."+name+".type", h.Type, "shim")
	}
	return errors.Join(errs...)
}

func (c *Config) validatePaths(bad func(key, format string, args ...any)) {
	paths := []struct {
		key, value string
		optional   bool
	}{
		{"socket", c.Socket, false}, {"admin_socket", c.AdminSocket, true}, {"root", c.Root, false}, {"state", c.State, false},
		{"keeper", c.Keeper, true}, {"cgroup.parent", c.Cgroup.Parent, false}, {"network.conf_dir", c.Network.ConfDir, false},
		{"image.certs_dir", c.Image.CertsDir, false},
		{"image.auth_file", c.Image.AuthFile, true}, {"image.policy_file", c.Image.PolicyFile, true}, {"streaming.tls_cert", c.Streaming.TLSCert, true}, {"streaming.tls_key", c.Streaming.TLSKey, true},
	}
	for _, p := range paths {
		if p.value == "" && p.optional {
			continue
		}
		if !filepath.IsAbs(p.value) || filepath.Clean(p.value) != p.value {
			bad(p.key, "%q is not a clean absolute path", p.value)
		}
	}
	for _, l := range []struct {
		key    string
		values []string
	}{{"network.bin_dirs", c.Network.BinDirs}, {"cdi.spec_dirs", c.CDI.SpecDirs}} {
		for _, v := range l.values {
			if !filepath.IsAbs(v) {
				bad(l.key, "%q is not an absolute path", v)
			}
		}
	}
	if c.Root == c.State {
		bad("state", "%q is also root", c.State)
	}
}

func (c *Config) validateLimits(bad func(key, format string, args ...any)) {
	for _, l := range []struct {
		key   string
		value int64
		least int64
	}{{"limits.core", c.Limits.Core, -1}, {"limits.memlock", c.Limits.MemLock, -1}, {"limits.tasks", c.Limits.Tasks, 0}} {
		if l.value < l.least {
			bad(l.key, "%d is less than %d", l.value, l.least)
		}
	}
}

// AdminSocketPath is where the admin service listens.
func (c *Config) AdminSocketPath() string {
	if c.AdminSocket != "" {
		return c.AdminSocket
	}
	return filepath.Join(filepath.Dir(c.Socket), "admin.sock")
}
