// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"crishim.dev/internal/errs"
	"crishim.dev/sandbox"
)

// Injected is what CDI devices bring into a container besides environment and groups, which become the process's. It is resolved
// once, when the container is made: the record has it, whatever happens to the specifications later.
type Injected struct {
	Devices []injectedDevice `json:"devices,omitempty"`
	Mounts  []injectedMount  `json:"mounts,omitempty"`
}

type injectedDevice struct {
	Target string `json:"target"`
	Mode   uint32 `json:"mode"`
	Dev    uint64 `json:"dev"`
	UID    uint32 `json:"uid"` // inside
	GID    uint32 `json:"gid"`
	Access string `json:"access,omitempty"`
}

type injectedMount struct {
	Host        string               `json:"host"`
	Target      string               `json:"target"`
	ReadOnly    bool                 `json:"read_only,omitempty"`
	Propagation cri.MountPropagation `json:"propagation,omitempty"`
	Options     []string             `json:"options,omitempty"`
}

// Edits are what CDI devices add to a process.
type Edits struct {
	Env    []string
	Groups []uint32
}

// ResolveCDI finds the devices that the request names in the CDI specifications of dirs, for a process of uid and gid. The
// specifications are read anew each time: device plugins write them right before they are asked for.
func ResolveCDI(dirs []string, cfg *cri.ContainerConfig, uid, gid uint32) (Injected, Edits, error) {
	if len(cfg.GetCDIDevices()) == 0 {
		return Injected{}, Edits{}, nil
	}
	names := make([]string, 0, len(cfg.GetCDIDevices()))
	for _, d := range cfg.GetCDIDevices() {
		names = append(names, d.GetName())
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return Injected{}, Edits{}, fmt.Errorf("CDI_devices: %w", err)
	}
	spec := &specs.Spec{Process: &specs.Process{User: specs.User{UID: uid, GID: gid}}}
	if missing, err := cache.InjectDevices(spec, names...); err != nil {
		all := []error{err}
		if len(missing) > 0 { // a specification that can't be read may be the one
			for _, list := range cache.GetErrors() {
				all = append(all, list...)
			}
		}
		return Injected{}, Edits{}, errs.Newf(errs.Invalid, "CDI_devices: %w", errors.Join(all...))
	}
	in, err := translate(spec, cfg.GetMounts())
	if err != nil {
		return in, Edits{}, fmt.Errorf("CDI_devices: %s: %w", strings.Join(names, ", "), err)
	}
	return in, Edits{Env: spec.Process.Env, Groups: spec.Process.User.AdditionalGids}, nil
}

// translate takes from spec what CDI wrote there, and refuses what this runtime does not do.
func translate(spec *specs.Spec, taken []*cri.Mount) (in Injected, err error) {
	if spec.Hooks != nil {
		return in, errs.Newf(errs.Unsupported, "the device wants hooks, programs that run on the host; this runtime runs none")
	}
	if l := spec.Linux; l != nil {
		if l.IntelRdt != nil || len(l.NetDevices) > 0 {
			return in, errs.Newf(errs.Unsupported, "the device wants intelRdt or netDevices, which this runtime does not offer")
		}
		for _, d := range l.Devices {
			dev, err := translateDevice(d, l.Resources)
			if err != nil {
				return in, fmt.Errorf("device %s: %w", d.Path, err)
			}
			in.Devices = append(in.Devices, dev)
		}
	}
	for _, m := range spec.Mounts {
		mt, err := translateMount(m)
		if err == nil {
			err = CheckMounts(append(slices.Clone(taken), mt.mount(sandbox.Range{})))
		}
		if err == nil {
			_, err = os.Stat(mt.Host)
		}
		if err != nil {
			return in, fmt.Errorf("mount %s: %w", m.Destination, errs.As(errs.Invalid, err))
		}
		taken = append(slices.Clone(taken), mt.mount(sandbox.Range{}))
		in.Mounts = append(in.Mounts, mt)
	}
	return in, nil
}

func translateDevice(d specs.LinuxDevice, r *specs.LinuxResources) (injectedDevice, error) {
	out := injectedDevice{Target: path.Clean(d.Path), Mode: 0o666, Dev: unix.Mkdev(uint32(d.Major), uint32(d.Minor))}
	if !strings.HasPrefix(out.Target, "/dev/") {
		return out, errs.Newf(errs.Unsupported, "its path is not below /dev")
	}
	if d.FileMode != nil {
		out.Mode = uint32(d.FileMode.Perm())
	}
	switch d.Type {
	case "c", "u":
		out.Mode |= unix.S_IFCHR
	case "b":
		out.Mode |= unix.S_IFBLK
	default:
		return out, errs.Newf(errs.Unsupported, "type %q is not offered", d.Type)
	}
	if d.UID != nil {
		out.UID = *d.UID
	}
	if d.GID != nil {
		out.GID = *d.GID
	}
	if r == nil {
		return out, nil
	}
	for _, rule := range r.Devices {
		if rule.Allow && rule.Type == d.Type && rule.Major != nil && rule.Minor != nil && *rule.Major == d.Major && *rule.Minor == d.Minor {
			out.Access = rule.Access
		}
	}
	return out, nil
}

func translateMount(m specs.Mount) (injectedMount, error) {
	out := injectedMount{Host: m.Source, Target: m.Destination}
	if m.Type != "" && m.Type != "bind" {
		return out, errs.Newf(errs.Unsupported, "type %q is not offered, only bind mounts are", m.Type)
	}
	if !filepath.IsAbs(m.Source) {
		return out, errs.Newf(errs.Invalid, "%q is not an absolute path", m.Source)
	}
	for _, o := range m.Options {
		switch o {
		case "bind", "rbind", "rw":
		case "ro":
			out.ReadOnly = true
		case "private", "rprivate":
			out.Propagation = cri.MountPropagation_PROPAGATION_PRIVATE
		case "slave", "rslave":
			out.Propagation = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case "shared", "rshared":
			out.Propagation = cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
		default:
			out.Options = append(out.Options, o) // checked with the mount
		}
	}
	return out, nil
}

// mount is the injected mount as a request would name it, its owners mapped in a pod with a user namespace.
func (i injectedMount) mount(ids sandbox.Range) *cri.Mount {
	m := &cri.Mount{HostPath: i.Host, ContainerPath: i.Target, Readonly: i.ReadOnly, Propagation: i.Propagation, MountOptions: i.Options}
	if ids.Length > 0 {
		m.UidMappings = []*cri.IDMapping{{HostId: ids.Host, Length: ids.Length}}
		m.GidMappings = m.UidMappings
	}
	return m
}

// AllMounts are the request's and then those of its CDI devices.
func (in Injected) AllMounts(cfg *cri.ContainerConfig, ids sandbox.Range) []*cri.Mount {
	out := slices.Clone(cfg.GetMounts())
	for _, m := range in.Mounts {
		out = append(out, m.mount(ids))
	}
	return out
}

// DeviceList is what the container gets of them, root being what its root is on the host.
func (in Injected) DeviceList(root uint32) []Device {
	var out []Device
	for _, d := range in.Devices {
		out = append(out, Device{Target: d.Target, Mode: d.Mode, Dev: d.Dev, UID: root + d.UID, GID: root + d.GID, Access: d.Access})
	}
	return out
}
