// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
)

// Layout derives every path of a sandbox from its id. All of it is on tmpfs.
//
//	<Run>/pods/<id>/{hostname,hosts,resolv.conf}   mounted into each container
//	<Run>/ns/<id>/{net,ipc,uts,pid,user}           pinned namespaces
//	<Run>/ns/<id>/shm                              the pod's /dev/shm, a mounted tmpfs
type Layout struct {
	// Run is the daemon's directory on tmpfs, usually /run/shim.
	Run string
}

// Dir holds the pod's files.
func (l Layout) Dir(id ID) string { return filepath.Join(l.Run, "pods", string(id)) }

// Hostname, Hosts and ResolvConf are the pod's copies of the files of these names in /etc.
func (l Layout) Hostname(id ID) string { return filepath.Join(l.Dir(id), "hostname") }

// Hosts is the pod's /etc/hosts.
func (l Layout) Hosts(id ID) string { return filepath.Join(l.Dir(id), "hosts") }

// ResolvConf is the pod's /etc/resolv.conf.
func (l Layout) ResolvConf(id ID) string { return filepath.Join(l.Dir(id), "resolv.conf") }

// Pins is the directory of the pod's pinned namespaces.
func (l Layout) Pins(id ID) string { return filepath.Join(l.Run, "ns", string(id)) }

// Pin is the file that pins the namespace of that kind: "net", "ipc", "uts", "pid" or "user".
func (l Layout) Pin(id ID, kind string) string { return filepath.Join(l.Pins(id), kind) }

// Shm is the mount point of the pod's /dev/shm.
func (l Layout) Shm(id ID) string { return filepath.Join(l.Pins(id), "shm") }

// writeFiles makes the pod's copies of hostname, hosts and resolv.conf.
func (m *Manager) writeFiles(id ID, cfg *cri.PodSandboxConfig, hostname string, ips []string) error {
	resolv, err := resolvConf(cfg.GetDnsConfig(), m.o.HostEtc)
	if err != nil {
		return err
	}
	hosts := hostsFile(hostname, ips)
	if hostNetwork(cfg) {
		if hosts, err = os.ReadFile(filepath.Join(m.o.HostEtc, "hosts")); err != nil {
			hosts = hostsFile(hostname, ips)
		}
	}
	if err := os.MkdirAll(m.o.Layout.Dir(id), 0o700); err != nil {
		return fmt.Errorf("make pod directory: %w", err)
	}
	root, _ := users(cfg)
	for path, data := range map[string][]byte{
		m.o.Layout.Hostname(id):   []byte(hostname + "\n"),
		m.o.Layout.Hosts(id):      hosts,
		m.o.Layout.ResolvConf(id): resolv,
	} {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return fmt.Errorf("write pod file: %w", err)
		}
		if root.Host == 0 {
			continue
		}
		if err := os.Chown(path, int(root.Host), int(root.Host)); err != nil {
			return fmt.Errorf("write pod file: %w", err)
		}
	}
	return nil
}

func hostsFile(hostname string, ips []string) []byte {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
	if hostname == "" {
		return []byte(b.String())
	}
	for _, ip := range ips {
		fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
	}
	return []byte(b.String())
}

// maxDNSSearches is the resolver's limit on search domains (resolv.conf(5), glibc 2.26 and later has none; musl 32).
const maxDNSSearches = 32

// resolvConf renders the request's DNS settings; without any it is the host's file.
func resolvConf(dns *cri.DNSConfig, hostEtc string) ([]byte, error) {
	if dns == nil || len(dns.GetServers())+len(dns.GetSearches())+len(dns.GetOptions()) == 0 {
		b, err := os.ReadFile(filepath.Join(hostEtc, "resolv.conf"))
		if err != nil && !os.IsNotExist(err) {
			return nil, fmt.Errorf("read the host's resolv.conf: %w", err)
		}
		return b, nil
	}
	if len(dns.GetSearches()) > maxDNSSearches {
		return nil, errs.Newf(errs.Invalid, "dns_config.searches: %d domains, the limit is %d", len(dns.GetSearches()), maxDNSSearches)
	}
	var b strings.Builder
	line := func(key, value string) error {
		if strings.ContainsAny(value, "\n\r\x00") {
			return errs.Newf(errs.Invalid, "dns_config: line break in %q", value)
		}
		_, err := fmt.Fprintf(&b, "%s %s\n", key, value)
		return err
	}
	if len(dns.GetSearches()) > 0 {
		if err := line("search", strings.Join(dns.GetSearches(), " ")); err != nil {
			return nil, err
		}
	}
	for _, s := range dns.GetServers() {
		if err := line("nameserver", s); err != nil {
			return nil, err
		}
	}
	if len(dns.GetOptions()) > 0 {
		if err := line("options", strings.Join(dns.GetOptions(), " ")); err != nil {
			return nil, err
		}
	}
	return []byte(b.String()), nil
}
