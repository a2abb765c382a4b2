// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
	"crishim.dev/sandbox"
)

// validateContainer checks a container's configuration, the field under of a request; an error is errs.Invalid and names
// the field.
func validateContainer(under string, c *cri.ContainerConfig) error {
	f := fields{under: under}
	if c == nil {
		f.bad("", "is missing")
		return f.err
	}
	if c.GetMetadata() == nil {
		f.bad("metadata", "is missing")
		return f.err
	}
	f.name("metadata.name", c.GetMetadata().GetName())
	f.image("image", c.GetImage())
	f.arguments("command", c.GetCommand())
	f.arguments("args", c.GetArgs())
	if d := c.GetWorkingDir(); d != "" {
		f.path("working_dir", d)
	}
	f.environment(c.GetEnvs())
	for i, m := range c.GetMounts() {
		f.mount(fmt.Sprintf("mounts[%d]", i), m)
	}
	for i, d := range c.GetDevices() {
		f.device(fmt.Sprintf("devices[%d]", i), d)
		for _, other := range c.GetDevices()[:i] {
			if d.GetContainerPath() == other.GetContainerPath() && d.GetHostPath() != other.GetHostPath() {
				f.bad(fmt.Sprintf("devices[%d].container_path", i), "%q is that of %s already", d.GetContainerPath(), other.GetHostPath())
			}
		}
	}
	for i, d := range c.GetCDIDevices() {
		f.word(fmt.Sprintf("CDI_devices[%d].name", i), d.GetName())
	}
	f.pairs("labels", c.GetLabels())
	f.pairs("annotations", c.GetAnnotations())
	f.logPath(c.GetLogPath())
	if !known(cri.Signal_name, c.GetStopSignal()) {
		f.bad("stop_signal", "%d is no signal", c.GetStopSignal())
	}
	f.absent("windows", c.GetWindows() != nil, "this is a Linux runtime")
	f.resources("linux.resources", c.GetLinux().GetResources())
	f.securityContext(c.GetLinux().GetSecurityContext())
	return f.err
}

func (f *fields) logPath(p string) {
	if p == "" {
		return
	}
	f.text("log_path", p)
	if len(p) > maxPath {
		f.bad("log_path", "is longer than %d bytes", maxPath)
	}
	for element := range strings.SplitSeq(p, "/") {
		if len(element) > maxElement {
			f.bad("log_path", "has an element of more than %d bytes", maxElement)
		}
	}
	if !filepath.IsLocal(p) || filepath.Clean(p) == "." {
		f.bad("log_path", "%q is no file below the pod's log directory", p)
	}
}

func (f *fields) environment(envs []*cri.KeyValue) {
	for i, e := range envs {
		at := fmt.Sprintf("envs[%d]", i)
		switch {
		case e.GetKey() == "":
			f.bad(at+".key", "is empty")
		case strings.ContainsAny(e.GetKey(), "=\x00"):
			f.bad(at+".key", "%q has a = or a NUL", e.GetKey())
		}
		// The value is not repeated in the error: it may be a secret.
		f.argument(at+".value", string(e.GetValue()))
	}
}

// mountOptions are the flags that a request may add to a bind mount.
var mountOptions = []string{"noexec", "nodev", "nosuid", "exec", "dev", "suid", "noatime", "nodiratime", "relatime", "nosymfollow"}

func (f *fields) mount(at string, m *cri.Mount) {
	f.path(at+".container_path", m.GetContainerPath())
	if m.GetImage() != nil && m.GetImage().GetImage() != "" {
		f.image(at+".image", m.GetImage())
		f.absent(at+".host_path", m.GetHostPath() != "", "image is set")
		if p := m.GetImageSubPath(); p != "" && !filepath.IsLocal(strings.TrimPrefix(p, "/")) {
			f.bad(at+".image_sub_path", "%q leads out of the image", p)
		}
		f.text(at+".image_sub_path", m.GetImageSubPath())
	} else {
		f.path(at+".host_path", m.GetHostPath())
		f.absent(at+".image_sub_path", m.GetImageSubPath() != "", "image is not set")
	}
	if !known(cri.MountPropagation_name, m.GetPropagation()) {
		f.bad(at+".propagation", "%d is no propagation", m.GetPropagation())
	}
	if m.GetRecursiveReadOnly() {
		f.absent(at+".recursive_read_only", !m.GetReadonly(), "readonly is not set")
		f.absent(at+".recursive_read_only", m.GetPropagation() != cri.MountPropagation_PROPAGATION_PRIVATE, "propagation is not PRIVATE")
	}
	f.mappings(at+".uidMappings", m.GetUidMappings())
	f.mappings(at+".gidMappings", m.GetGidMappings())
	for i, o := range m.GetMountOptions() {
		if !slices.Contains(mountOptions, o) {
			f.bad(fmt.Sprintf("%s.mount_options[%d]", at, i), "%q is none of %q", o, mountOptions)
		}
	}
}

func (f *fields) device(at string, d *cri.Device) {
	f.path(at+".container_path", d.GetContainerPath())
	f.path(at+".host_path", d.GetHostPath())
	if strings.Trim(d.GetPermissions(), "rwm") != "" || len(d.GetPermissions()) > 3 {
		f.bad(at+".permissions", "%q is not made of r, w and m", d.GetPermissions())
	}
}

var capabilityName = regexp.MustCompile(`^[A-Za-z_]{1,40}$`)

func (f *fields) securityContext(sc *cri.LinuxContainerSecurityContext) {
	const at = "linux.security_context"
	if sc == nil {
		return
	}
	for _, l := range []struct {
		name   string
		values []string
	}{
		{"add_capabilities", sc.GetCapabilities().GetAddCapabilities()},
		{"drop_capabilities", sc.GetCapabilities().GetDropCapabilities()},
		{"add_ambient_capabilities", sc.GetCapabilities().GetAddAmbientCapabilities()},
	} {
		for i, v := range l.values {
			if !capabilityName.MatchString(v) {
				f.bad(fmt.Sprintf("%s.capabilities.%s[%d]", at, l.name, i), "%q is no capability", v)
			}
		}
	}
	f.containerNamespaces(at+".namespace_options", sc.GetNamespaceOptions())
	f.selinux(at+".selinux_options", sc.GetSelinuxOptions())
	if sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "" {
		f.bad(at+".run_as_username", "is set, and run_as_user as well")
	}
	if strings.ContainsAny(sc.GetRunAsUsername(), ":/\n\x00") || len(sc.GetRunAsUsername()) > maxName {
		f.bad(at+".run_as_username", "%q is no user name", sc.GetRunAsUsername())
	}
	f.user(at, sc.GetRunAsUser(), sc.GetRunAsGroup(), sc.GetRunAsUsername() != "", sc.GetSupplementalGroups(), sc.GetSupplementalGroupsPolicy())
	for _, l := range []struct {
		name   string
		values []string
	}{{"masked_paths", sc.GetMaskedPaths()}, {"readonly_paths", sc.GetReadonlyPaths()}} {
		for i, v := range l.values {
			f.path(fmt.Sprintf("%s.%s[%d]", at, l.name, i), v)
		}
	}
	f.deprecated(at+".seccomp_profile_path", sc.GetSeccompProfilePath(), &sc.Seccomp) //nolint:staticcheck // still sent by old callers
	f.deprecated(at+".apparmor_profile", sc.GetApparmorProfile(), &sc.Apparmor)       //nolint:staticcheck // still sent by old callers
	f.profile(at+".seccomp", sc.GetSeccomp(), true)
	f.profile(at+".apparmor", sc.GetApparmor(), false)
}

func (f *fields) containerNamespaces(at string, n *cri.NamespaceOption) {
	if n == nil {
		return
	}
	for _, m := range []struct {
		name string
		mode cri.NamespaceMode
	}{{"network", n.GetNetwork()}, {"ipc", n.GetIpc()}} {
		f.oneMode(at+"."+m.name, m.mode, []cri.NamespaceMode{cri.NamespaceMode_POD, cri.NamespaceMode_NODE})
	}
	if !known(cri.NamespaceMode_name, n.GetPid()) {
		f.bad(at+".pid", "%d is no mode", n.GetPid())
	}
	if n.GetPid() == cri.NamespaceMode_TARGET {
		if n.GetTargetId() == "" {
			f.bad(at+".target_id", "is empty, but pid is TARGET")
		}
	} else {
		f.absent(at+".target_id", n.GetTargetId() != "", "pid is not TARGET")
	}
	f.userNamespace(at+".userns_options", n.GetUsernsOptions())
}

// validateInPod checks what depends on the pod that a container is made in.
func (o *Options) validateInPod(r *cri.CreateContainerRequest, pod sandbox.Sandbox) error {
	f := fields{under: "config"}
	const at = "linux.security_context"
	sc := r.GetConfig().GetLinux().GetSecurityContext()
	if sc.GetPrivileged() && !allowsPrivileged(pod.Config) && !allowsPrivileged(r.GetSandboxConfig()) {
		f.bad(at+".privileged", "is set, but the pod sandbox's is not")
	}
	if n := sc.GetNamespaceOptions(); n != nil {
		have := namespaceOptions(pod)
		for _, m := range []struct {
			name      string
			want, has cri.NamespaceMode
		}{{"network", n.GetNetwork(), have.GetNetwork()}, {"pid", n.GetPid(), have.GetPid()}, {"ipc", n.GetIpc(), have.GetIpc()}} {
			if m.want == cri.NamespaceMode_NODE && m.has != m.want {
				f.bad(at+".namespace_options."+m.name, "is NODE, but the pod sandbox's is %s", m.has)
			}
		}
		if n.GetPid() == cri.NamespaceMode_TARGET {
			o.target(&f, at+".namespace_options.target_id", n.GetTargetId(), pod.ID)
		}
	}
	o.imageHandlers(&f, r.GetConfig())
	if f.err != nil {
		return f.err
	}
	return samePod(r.GetSandboxConfig().GetMetadata(), pod.Config.GetMetadata())
}

// imageHandlers checks which runtime handlers the images are said to be for.
func (o *Options) imageHandlers(f *fields, c *cri.ContainerConfig) {
	check := func(field, name string) {
		if err := o.validateHandler(f.full(field), name); err != nil && f.err == nil {
			f.err = err
		}
	}
	check("image.runtime_handler", c.GetImage().GetRuntimeHandler())
	for i, m := range c.GetMounts() {
		check(fmt.Sprintf("mounts[%d].image.runtime_handler", i), m.GetImage().GetRuntimeHandler())
	}
}

// samePod refuses a sandbox_config that is another pod's than that of pod_sandbox_id. What it leaves out is not compared.
func samePod(said, is *cri.PodSandboxMetadata) error {
	f := fields{under: "sandbox_config.metadata"}
	for _, p := range []struct{ field, said, is string }{
		{"name", said.GetName(), is.GetName()}, {"uid", said.GetUid(), is.GetUid()}, {"namespace", said.GetNamespace(), is.GetNamespace()},
	} {
		if p.said != "" && p.said != p.is {
			f.bad(p.field, "%q, but the pod sandbox's is %q", p.said, p.is)
		}
	}
	return f.err
}

func allowsPrivileged(c *cri.PodSandboxConfig) bool {
	return c.GetLinux().GetSecurityContext().GetPrivileged()
}

// target checks the container whose pid namespace is to be joined.
func (o *Options) target(f *fields, field, id string, pod sandbox.ID) {
	t, err := o.Containers.Get(id)
	switch {
	case err != nil && f.err == nil:
		f.err = errs.As(errs.Invalid, fmt.Errorf("%s: %w", f.full(field), err))
	case err != nil:
	case t.Sandbox != pod:
		f.bad(field, "%s is in another pod sandbox", id)
	}
}
