// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxHostname is the kernel's __NEW_UTS_LEN.
const maxHostname = 64

// validatePod checks a pod's configuration, the field under of a request; an error is errs.Invalid and names the field.
func validatePod(under string, c *cri.PodSandboxConfig) error {
	f := fields{under: under}
	if c == nil {
		f.bad("", "is missing")
		return f.err
	}
	m := c.GetMetadata()
	if m == nil {
		f.bad("metadata", "is missing")
		return f.err
	}
	f.name("metadata.name", m.GetName())
	f.name("metadata.uid", m.GetUid())
	f.name("metadata.namespace", m.GetNamespace())
	if len(c.GetHostname()) > maxHostname {
		f.bad("hostname", "is longer than %d bytes", maxHostname)
	}
	f.text("hostname", c.GetHostname())
	if strings.ContainsAny(c.GetHostname(), "/ ") {
		f.bad("hostname", "%q is no host name", c.GetHostname())
	}
	if d := c.GetLogDirectory(); d != "" {
		f.path("log_directory", d)
		f.noDots("log_directory", d)
	}
	f.dns(c.GetDnsConfig())
	for i, p := range c.GetPortMappings() {
		f.portMapping(fmt.Sprintf("port_mappings[%d]", i), p)
	}
	f.portsOnce(c.GetPortMappings())
	f.pairs("labels", c.GetLabels())
	f.pairs("annotations", c.GetAnnotations())
	f.absent("windows", c.GetWindows() != nil, "this is a Linux runtime")
	f.podLinux(c.GetLinux())
	return f.err
}

// dns checks what becomes lines of a resolv.conf.
func (f *fields) dns(d *cri.DNSConfig) {
	for _, l := range []struct {
		name   string
		values []string
	}{{"servers", d.GetServers()}, {"searches", d.GetSearches()}, {"options", d.GetOptions()}} {
		for i, v := range l.values {
			f.word(fmt.Sprintf("dns_config.%s[%d]", l.name, i), v)
		}
	}
	for i, s := range d.GetServers() {
		if _, err := netip.ParseAddr(s); err != nil {
			f.bad(fmt.Sprintf("dns_config.servers[%d]", i), "%q is no IP address", s)
		}
	}
}

// portsOnce refuses two mappings of one port of the host: only one of them could be had. The same mapping twice is no matter.
func (f *fields) portsOnce(all []*cri.PortMapping) {
	type port struct {
		protocol cri.Protocol
		ip       string
		number   int32
	}
	to := map[port]int32{}
	for i, p := range all {
		at := port{p.GetProtocol(), p.GetHostIp(), p.GetHostPort()}
		if other, taken := to[at]; taken && at.number != 0 && other != p.GetContainerPort() {
			f.bad(fmt.Sprintf("port_mappings[%d].host_port", i), "%d goes to container port %d already", at.number, other)
		}
		to[at] = p.GetContainerPort()
	}
}

func (f *fields) portMapping(field string, p *cri.PortMapping) {
	if !known(cri.Protocol_name, p.GetProtocol()) {
		f.bad(field+".protocol", "%d is no protocol", p.GetProtocol())
	}
	if h := p.GetHostPort(); h < 0 || h > 65535 {
		f.bad(field+".host_port", "%d is not within 0 to 65535", h)
	}
	// Without a host port the mapping is ignored.
	if c := p.GetContainerPort(); c < 0 || c > 65535 || c == 0 && p.GetHostPort() != 0 {
		f.bad(field+".container_port", "%d is not within 1 to 65535", c)
	}
	if ip := p.GetHostIp(); ip != "" {
		if _, err := netip.ParseAddr(ip); err != nil {
			f.bad(field+".host_ip", "%q is no IP address", ip)
		}
	}
}

func (f *fields) podLinux(l *cri.LinuxPodSandboxConfig) {
	const field = "linux"
	if p := l.GetCgroupParent(); p != "" {
		if len(p) > maxPath {
			f.bad(field+".cgroup_parent", "is longer than %d bytes", maxPath)
		}
		f.text(field+".cgroup_parent", p)
		f.noDots(field+".cgroup_parent", p)
	}
	f.podResources(field+".overhead", l.GetOverhead())
	f.podResources(field+".resources", l.GetResources())
	sc, at := l.GetSecurityContext(), field+".security_context"
	f.podNamespaces(at+".namespace_options", sc.GetNamespaceOptions())
	f.user(at, sc.GetRunAsUser(), sc.GetRunAsGroup(), false, sc.GetSupplementalGroups(), sc.GetSupplementalGroupsPolicy())
	f.selinux(at+".selinux_options", sc.GetSelinuxOptions())
	if sc != nil {
		f.deprecated(at+".seccomp_profile_path", sc.GetSeccompProfilePath(), &sc.Seccomp) //nolint:staticcheck // still sent by old callers
	}
	f.profile(at+".seccomp", sc.GetSeccomp(), true)
	f.profile(at+".apparmor", sc.GetApparmor(), false)
	for k, v := range l.GetSysctls() {
		f.sysctl(k, v, sc.GetNamespaceOptions())
	}
}

func (f *fields) podNamespaces(field string, n *cri.NamespaceOption) {
	modes := []struct {
		name    string
		mode    cri.NamespaceMode
		allowed []cri.NamespaceMode
	}{
		{"network", n.GetNetwork(), []cri.NamespaceMode{cri.NamespaceMode_POD, cri.NamespaceMode_NODE}},
		{"pid", n.GetPid(), []cri.NamespaceMode{cri.NamespaceMode_POD, cri.NamespaceMode_CONTAINER, cri.NamespaceMode_NODE}},
		{"ipc", n.GetIpc(), []cri.NamespaceMode{cri.NamespaceMode_POD, cri.NamespaceMode_NODE}},
	}
	for _, m := range modes {
		f.oneMode(field+"."+m.name, m.mode, m.allowed)
	}
	f.absent(field+".target_id", n.GetTargetId() != "", "a pod has no target")
	f.userNamespace(field+".userns_options", n.GetUsernsOptions())
}

func (f *fields) oneMode(field string, mode cri.NamespaceMode, allowed []cri.NamespaceMode) {
	if !slices.Contains(allowed, mode) {
		f.bad(field, "%s is none of %v", mode, allowed)
	}
}

func (f *fields) userNamespace(field string, u *cri.UserNamespace) {
	if u == nil {
		return
	}
	f.oneMode(field+".mode", u.GetMode(), []cri.NamespaceMode{cri.NamespaceMode_POD, cri.NamespaceMode_NODE})
	if u.GetMode() == cri.NamespaceMode_NODE {
		f.absent(field+".uids", len(u.GetUids()) > 0, "mode is NODE")
		f.absent(field+".gids", len(u.GetGids()) > 0, "mode is NODE")
		return
	}
	for _, side := range []struct {
		name string
		m    []*cri.IDMapping
	}{{"uids", u.GetUids()}, {"gids", u.GetGids()}} {
		if len(side.m) != 1 {
			f.bad(field+"."+side.name, "has %d mappings; exactly one is needed", len(side.m))
		}
		f.mappings(field+"."+side.name, side.m)
	}
}

// selinux refuses what would break out of a label's fields.
func (f *fields) selinux(field string, s *cri.SELinuxOption) {
	for _, l := range []struct{ name, v string }{{"user", s.GetUser()}, {"role", s.GetRole()}, {"type", s.GetType()}} {
		f.text(field+"."+l.name, l.v)
		if strings.ContainsAny(l.v, ": /") {
			f.bad(field+"."+l.name, "%q is no part of a label", l.v)
		}
	}
	f.text(field+".level", s.GetLevel())
}

// sysctlName is the form with dots or with slashes. Every element has a letter, so no path leads upwards.
var sysctlName = regexp.MustCompile(`^[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)+$`)

// sysctl lets through only settings that belong to a namespace of the pod's own.
func (f *fields) sysctl(name, value string, n *cri.NamespaceOption) {
	field := fmt.Sprintf("linux.sysctls[%q]", name)
	if len(name) > maxName || !sysctlName.MatchString(name) {
		f.bad(field, "is no name of a setting")
		return
	}
	f.text(field, value)
	dotted := strings.ReplaceAll(name, "/", ".")
	switch {
	case strings.HasPrefix(dotted, "net."):
		f.absent(field, n.GetNetwork() == cri.NamespaceMode_NODE, "the pod uses the host's network")
	case strings.HasPrefix(dotted, "kernel.shm"), strings.HasPrefix(dotted, "kernel.msg"), dotted == "kernel.sem", strings.HasPrefix(dotted, "fs.mqueue."):
		f.absent(field, n.GetIpc() == cri.NamespaceMode_NODE, "the pod uses the host's IPC")
	default:
		f.bad(field, "belongs to no namespace of the pod")
	}
}
