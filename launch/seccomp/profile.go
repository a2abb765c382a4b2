// SPDX-License-Identifier: Apache-2.0

package seccomp

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io"
	"slices"

	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"crishim.dev/internal/errs"
)

// maxProfile is the size in bytes of the largest profile file that is read.
const maxProfile = 1 << 20

// Profile is a profile as it is written: OCI's format, with Moby's conditions on capabilities, architectures and kernels.
//
// It is immutable and safe for concurrent use.
type Profile struct {
	p moby.Seccomp
	// key names the contents for Cache.
	key string
}

// Default is the profile of containers that ask for RuntimeDefault.
func Default() *Profile { return &Profile{p: *moby.DefaultProfile(), key: "default"} }

// Parse reads a profile from JSON. The error is errs.Invalid.
func Parse(r io.Reader) (*Profile, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxProfile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxProfile {
		return nil, errs.Newf(errs.Invalid, "seccomp profile: larger than %d bytes", maxProfile)
	}
	digest := sha256.Sum256(data)
	p := Profile{key: string(digest[:])}
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(&p.p); err != nil {
		return nil, errs.Newf(errs.Invalid, "parse seccomp profile: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errs.Newf(errs.Invalid, "parse seccomp profile: something follows it")
	}
	if p.p.DefaultAction == "" {
		return nil, errs.Newf(errs.Invalid, "seccomp profile: no defaultAction")
	}
	if len(p.p.Architectures) != 0 && len(p.p.ArchMap) != 0 {
		return nil, errs.Newf(errs.Invalid, "seccomp profile: both architectures and archMap")
	}
	for i, c := range p.p.Syscalls {
		if c == nil || (oldName(c) != "" && len(c.Names) > 0) {
			return nil, errs.Newf(errs.Invalid, "seccomp profile: syscalls[%d]: empty, or both name and names", i)
		}
	}
	return &p, nil
}

// Target is what a filter is made for.
type Target struct {
	// Arch is a GOARCH: "amd64" or "arm64".
	Arch string
	// Major and Minor are the kernel's version.
	Major, Minor int
	// Caps are the container's capabilities, as "CAP_…".
	Caps []string
}

// resolve decides the profile's conditions.
func (p *Profile) resolve(t Target) *specs.LinuxSeccomp {
	out := p.p.LinuxSeccomp
	out.Syscalls = nil
	out.Architectures = slices.Clone(out.Architectures)
	for _, m := range p.p.ArchMap {
		if m.Arch == nativeArch(t.Arch) {
			out.Architectures = append(append(out.Architectures, m.Arch), m.SubArches...)
			break
		}
	}
	for _, c := range p.p.Syscalls {
		if !t.included(c.Includes) || t.excluded(c.Excludes) {
			continue
		}
		call := c.LinuxSyscall
		if n := oldName(c); n != "" {
			call.Names = []string{n}
		}
		out.Syscalls = append(out.Syscalls, call)
	}
	return &out
}

// oldName is a rule's single name, as profiles before 2017 have it.
func oldName(c *moby.Syscall) string {
	return c.Name //nolint:staticcheck // deprecated for those who write profiles; we read them
}

// included says whether all of f holds.
func (t Target) included(f *moby.Filter) bool {
	if f == nil {
		return true
	}
	for _, c := range f.Caps {
		if !slices.Contains(t.Caps, c) {
			return false
		}
	}
	return (len(f.Arches) == 0 || slices.Contains(f.Arches, t.Arch)) && (f.MinKernel == nil || t.atLeast(f.MinKernel))
}

// excluded says whether any of f holds.
func (t Target) excluded(f *moby.Filter) bool {
	if f == nil {
		return false
	}
	return slices.Contains(f.Arches, t.Arch) || (f.MinKernel != nil && t.atLeast(f.MinKernel)) ||
		slices.ContainsFunc(f.Caps, func(c string) bool { return slices.Contains(t.Caps, c) })
}

func (t Target) atLeast(v *moby.KernelVersion) bool {
	major, minor := uint64(t.Major), uint64(t.Minor)
	return major > v.Kernel || major == v.Kernel && minor >= v.Major
}
