// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"crishim.dev/internal/errs"
)

const enodev = unix.ENODEV

// header is what every plugin's configuration may hold. Runtime configuration and args are open: the keys that are there depend on what the
// runtime has, and the specification tells plugins to ignore those they don't use.
type header struct {
	CNIVersion    string          `json:"cniVersion"`
	Name          string          `json:"name"`
	Type          string          `json:"type"`
	Capabilities  map[string]bool `json:"capabilities"`
	RuntimeConfig json.RawMessage `json:"runtimeConfig"`
	Args          json.RawMessage `json:"args"`
	PrevResult    json.RawMessage `json:"prevResult"`
	DNS           types.DNS       `json:"dns"`
	IPAM          json.RawMessage `json:"ipam"`
	// The two spellings of the list that GC gets (CNI 1.1; the second is an error in the first implementation that has stayed).
	Attachments      []types.GCAttachment `json:"cni.dev/valid-attachments"`
	OtherAttachments []types.GCAttachment `json:"cni.dev/attachments"`

	prev *current.Result
}

// configuration is anything with a header.
type configuration interface{ take(c *Call) }

// take lets what the caller passes beside the configuration win.
func (h *header) take(c *Call) {
	h.prev = c.Prev
	if c.Runtime != nil {
		h.RuntimeConfig = c.Runtime
	}
}

// decode parses the call's configuration.
func (c *Call) decode(into configuration) error {
	if err := decode(c.Config, into); err != nil {
		return err
	}
	into.take(c)
	return nil
}

// ErrNotUnderstood is returned, before anything is done, when a configuration has a key or a value that the built-in plugin doesn't know.
var ErrNotUnderstood = errors.New("not understood by the built-in plugin")

func notUnderstood(format string, args ...any) error {
	return fmt.Errorf("%s is %w", fmt.Sprintf(format, args...), ErrNotUnderstood)
}

// decode parses a configuration and refuses unknown keys as ErrNotUnderstood, malformed ones as errs.Invalid.
func decode(config []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(config))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	switch {
	case err == nil:
		return nil
	case strings.HasPrefix(err.Error(), "json: unknown field"):
		return notUnderstood("%s", strings.TrimPrefix(err.Error(), "json: "))
	default:
		return errs.Newf(errs.Invalid, "parse configuration: %w", err)
	}
}

// valid gives the attachments that GC must leave, by container and interface.
func (h *header) valid() map[types.GCAttachment]bool {
	out := map[types.GCAttachment]bool{}
	for _, a := range append(h.Attachments, h.OtherAttachments...) {
		out[a] = true
	}
	return out
}

func (h *header) network() (string, error) {
	if err := utils.ValidateNetworkName(h.Name); err != nil {
		return "", errs.As(errs.Invalid, err)
	}
	return h.Name, nil
}

// previous parses prevResult; nil when there is none.
func (h *header) previous() (*current.Result, error) {
	if h.prev != nil {
		return h.prev, nil
	}
	if len(h.PrevResult) == 0 || string(h.PrevResult) == "null" {
		return nil, nil
	}
	r, err := create.Create(h.version(), h.PrevResult)
	if err != nil {
		return nil, errs.Newf(errs.Invalid, "parse prevResult: %w", err)
	}
	out, err := current.NewResultFromResult(r)
	if err != nil {
		return nil, errs.Newf(errs.Invalid, "convert prevResult: %w", err)
	}
	return out, nil
}

func (h *header) version() string {
	if h.CNIVersion == "" {
		return "0.1.0"
	}
	return h.CNIVersion
}

func configVersion(config []byte) (string, error) {
	var d version.ConfigDecoder
	v, err := d.Decode(config)
	if err != nil {
		return "", errs.Newf(errs.Invalid, "parse configuration: %w", err)
	}
	if slices.Contains(version.All.SupportedVersions(), v) {
		return v, nil
	}
	return "", errs.Newf(errs.Unsupported, "CNI version %q is not supported", v)
}

// open parses a part of the configuration in which unknown keys are allowed.
func open(part json.RawMessage, into any) error {
	if len(part) == 0 {
		return nil
	}
	if err := json.Unmarshal(part, into); err != nil {
		return errs.Newf(errs.Invalid, "parse configuration: %w", err)
	}
	return nil
}

// envArgs parses CNI_ARGS, "KEY=VALUE;…", in which unknown keys are an error unless IgnoreUnknown is set.
func envArgs(args string, known ...string) (map[string]string, error) {
	out := map[string]string{}
	if args == "" {
		return out, nil
	}
	for pair := range strings.SplitSeq(args, ";") {
		k, v, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, errs.Newf(errs.Invalid, "CNI_ARGS: invalid pair %q", pair)
		}
		out[k] = v
	}
	if ignore := strings.ToLower(out["IgnoreUnknown"]); ignore == "1" || ignore == "true" {
		return out, nil
	}
	for k := range out {
		if k != "IgnoreUnknown" && !contains(known, k) {
			return nil, errs.Newf(errs.Invalid, "CNI_ARGS: unknown key %q", k)
		}
	}
	return out, nil
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if strings.EqualFold(x, s) {
			return true
		}
	}
	return false
}

func marshal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("write result: %w", err)
	}
	return b, nil
}
