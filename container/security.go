// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/apparmor"
	"crishim.dev/internal/errs"
	"crishim.dev/launch"
	"crishim.dev/launch/seccomp"
)

// capabilities gives what the request grants: the default list as edited, everything when privileged.
func capabilities(sc *cri.LinuxContainerSecurityContext) (granted, ambient launch.CapSet, err error) {
	c := sc.GetCapabilities()
	if sc.GetPrivileged() {
		granted = launch.AllCaps
	} else if granted, err = launch.EditCaps(launch.DefaultCaps, c.GetAddCapabilities(), c.GetDropCapabilities()); err != nil {
		return 0, 0, fmt.Errorf("capabilities.add_capabilities, drop_capabilities: %w", err)
	}
	if ambient, err = launch.EditCaps(0, c.GetAddAmbientCapabilities(), nil); err != nil {
		return 0, 0, fmt.Errorf("capabilities.add_ambient_capabilities: %w", err)
	}
	// An ambient capability is permitted by definition (capabilities(7)).
	return granted | ambient, ambient, nil
}

// checkSecurity refuses what this host or this version can't give, and warns once of what it gives only in part.
func (m *Manager) checkSecurity(cfg *cri.ContainerConfig) error {
	sc := security(cfg)
	granted, _, err := capabilities(sc)
	if err != nil {
		return err
	}
	if missing := granted &^ m.o.Facts.Caps; missing != 0 {
		m.warned.once("capabilities", "this host lacks capabilities that containers ask for; they go without", "missing", missing.Names())
	}
	if adj := int(cfg.GetLinux().GetResources().GetOomScoreAdj()); adj < m.o.Facts.OOMScoreAdjMin {
		m.warned.once("oom_score_adj", "this host does not allow a low oom_score_adj; the lowest possible one is set", "asked", adj, "lowest", m.o.Facts.OOMScoreAdjMin)
	}
	if _, err := m.filter(sc, granted); err != nil {
		return err
	}
	return m.checkLabels(cfg)
}

// checkLabels refuses labels that would have no effect. An SELinux label on a kernel without SELinux is not refused: it guards
// nothing there, and pods are written for any kernel.
func (m *Manager) checkLabels(cfg *cri.ContainerConfig) error {
	sc := security(cfg)
	if name := m.appArmor(sc); name != "" {
		if !m.o.Facts.AppArmor {
			return errs.Newf(errs.Unsupported, "apparmor: this kernel has no AppArmor")
		}
		loaded, err := apparmor.Loaded(name)
		if err != nil {
			return fmt.Errorf("apparmor: %w", err)
		}
		if !loaded {
			return errs.Newf(errs.Precondition, "apparmor: the kernel has no profile %q loaded", name)
		}
	}
	if !m.o.Facts.SELinux {
		return nil
	}
	if o := sc.GetSelinuxOptions(); o.GetUser()+o.GetRole()+o.GetType()+o.GetLevel() != "" {
		return errs.Newf(errs.Unsupported, "selinux_options: this runtime sets no SELinux labels")
	}
	for i, mt := range cfg.GetMounts() {
		if mt.GetSelinuxRelabel() {
			return errs.Newf(errs.Unsupported, "mounts[%d].selinux_relabel: this runtime sets no SELinux labels", i)
		}
	}
	return nil
}

// appArmor is the profile of a container's processes, or none. Who asks for nothing gets the default one where there is one, but for
// privileged containers.
func (m *Manager) appArmor(sc *cri.LinuxContainerSecurityContext) string {
	p := sc.GetApparmor()
	switch {
	case p.GetProfileType() == cri.SecurityProfile_Localhost:
		return strings.TrimPrefix(p.GetLocalhostRef(), "localhost/") // the prefix of the annotation that was before the field
	case p.GetProfileType() == cri.SecurityProfile_Unconfined || sc.GetPrivileged():
		return ""
	}
	return m.o.AppArmorDefault
}

// confine gives a process of the container its seccomp filter and AppArmor profile.
func (m *Manager) confine(p *launch.Process, sc *cri.LinuxContainerSecurityContext) (err error) {
	p.AppArmor = m.appArmor(sc)
	p.Seccomp, err = m.filter(sc, p.Caps)
	return err
}

// filter gives the compiled seccomp filter that the request asks for; nil is unconfined, which privileged containers always are.
func (m *Manager) filter(sc *cri.LinuxContainerSecurityContext, caps launch.CapSet) (*launch.Seccomp, error) {
	if sc.GetPrivileged() || sc.GetSeccomp() == nil {
		return nil, nil
	}
	var profile *seccomp.Profile
	switch sc.GetSeccomp().GetProfileType() {
	case cri.SecurityProfile_Unconfined:
		return nil, nil
	case cri.SecurityProfile_RuntimeDefault:
		profile = m.defaultProfile
	case cri.SecurityProfile_Localhost:
		p, err := readProfile(sc.GetSeccomp().GetLocalhostRef())
		if err != nil {
			return nil, fmt.Errorf("seccomp.localhost_ref: %w", err)
		}
		profile = p
	default:
		return nil, errs.Newf(errs.Invalid, "seccomp.profile_type: unknown type %d", sc.GetSeccomp().GetProfileType())
	}
	f, err := m.o.Filters.Filter(profile, caps.Names())
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	return &launch.Seccomp{Code: f.Code, Flags: f.Flags, Narrow: f.Narrow}, nil
}

// readProfile reads a localhost profile; kubelet sends an absolute path.
func readProfile(path string) (*seccomp.Profile, error) {
	if !filepath.IsAbs(path) {
		return nil, errs.Newf(errs.Invalid, "%q is not an absolute path", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, errs.As(errs.Invalid, err)
	}
	defer f.Close()
	return seccomp.Parse(f)
}

// warnings says a thing once.
type warnings struct {
	log *slog.Logger
	mu  sync.Mutex
	// said has the keys of what was said. Guarded by mu.
	said map[string]bool
}

func (w *warnings) once(key, msg string, args ...any) {
	w.mu.Lock()
	said := w.said[key]
	if w.said == nil {
		w.said = map[string]bool{}
	}
	w.said[key] = true
	w.mu.Unlock()
	if !said {
		w.log.Warn(msg, args...)
	}
}
