// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	toml "github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"crishim.dev/internal/errs"
)

// Host is one place to ask for an image's parts.
type Host struct {
	// Base is the root of the registry's API there: scheme, host and path, usually ending in /v2.
	Base url.URL
	// Resolve and Pull say what may be asked: tags, and content by digest.
	Resolve, Pull bool
	// Mirror says that it stands in for the registry the image is named after: it is another host, and not what that registry's own
	// hosts.toml calls its server.
	Mirror bool
	// From is the file that said so; empty: the default for the registry's name.
	From string

	header      http.Header
	ca          []string
	clients     [][2]string // certificate and key files
	skipVerify  bool
	dialTimeout time.Duration
	// eitherScheme: asked by https first and then, as Base says, by http.
	eitherScheme bool
}

// fileHost is one host of a hosts.toml, in containerd's format (docs/hosts.md there).
type fileHost struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

type hostsFile struct {
	fileHost
	Server string              `toml:"server"`
	Host   map[string]fileHost `toml:"host"`
}

// defaultDir is the directory for registries that have none of their own.
const defaultDir = "_default"

// maxHostsFile bounds a hosts.toml.
const maxHostsFile = 1 << 20

// Hosts lists where to ask for images of a registry, in order: the mirrors of its hosts.toml, then its server. Unlike containerd,
// which falls back to defaults, it treats a file it can't read as an error: a mirror that must be used would be passed by.
func Hosts(certsDir, registry string) ([]Host, error) {
	dir, err := hostDir(certsDir, registry)
	if err != nil {
		return nil, err
	}
	if dir == "" {
		return []Host{defaultHost(registry)}, nil
	}
	file := filepath.Join(dir, "hosts.toml")
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(b)) == 0 {
		h := defaultHost(registry)
		h.From = dir
		if err := h.dockerCerts(dir); err != nil {
			return nil, err
		}
		return []Host{h}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read registry configuration: %w", err)
	}
	hosts, err := parseHosts(b, dir, registry)
	if err != nil {
		return nil, errs.Newf(errs.Invalid, "read registry configuration %s: %w", file, err)
	}
	for i := range hosts {
		hosts[i].From = file
	}
	return hosts, nil
}

// hostDir finds the registry's directory as containerd does: HOST_PORT_, HOST:PORT, then _default.
func hostDir(certsDir, registry string) (string, error) {
	if certsDir == "" {
		return "", nil
	}
	var names []string
	if i := strings.LastIndexByte(registry, ':'); i > 0 {
		names = append(names, registry[:i]+"_"+registry[i+1:]+"_")
	}
	for _, n := range append(names, registry, defaultDir) {
		dir := filepath.Join(certsDir, n)
		_, err := os.Stat(dir)
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("read registry configuration: %w", err)
		}
	}
	return "", nil
}

// defaultHost is where a registry is when nothing is configured: https; on this machine's loopback whichever it speaks, with any
// certificate, unless its port says which (as containerd does).
func defaultHost(registry string) Host {
	h := Host{Base: url.URL{Scheme: "https", Host: registry, Path: "/v2"}, Resolve: true, Pull: true}
	if registry == "docker.io" {
		h.Base.Host = "registry-1.docker.io"
	}
	name, port, err := net.SplitHostPort(registry)
	if err != nil {
		name = registry
	}
	if isLoopback(name) {
		h.skipVerify = true
		if port != "" && port != "443" {
			h.Base.Scheme = "http"
			h.eitherScheme = port != "80"
		}
	}
	return h
}

func isLoopback(name string) bool {
	ip := net.ParseIP(strings.Trim(name, "[]"))
	return name == "localhost" || ip != nil && ip.IsLoopback()
}

// parseHosts reads a hosts.toml of the directory dir.
func parseHosts(b []byte, dir, registry string) ([]Host, error) {
	if len(b) > maxHostsFile {
		return nil, fmt.Errorf("larger than %d bytes", maxHostsFile)
	}
	var f hostsFile
	if err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&f); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			return nil, fmt.Errorf("unknown key:\n%s", strict.String())
		}
		return nil, err
	}
	order, err := hostOrder(b)
	if err != nil {
		return nil, err
	}
	own := defaultHost(registry)
	var out []Host
	for _, name := range order {
		h, err := f.Host[name].host(name, dir)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", name, err)
		}
		h.Mirror = h.Base.Host != own.Base.Host
		out = append(out, h)
	}
	server := f.Server
	if server == "" {
		server = own.Base.Scheme + "://" + own.Base.Host
	}
	h, err := f.fileHost.host(server, dir)
	if err != nil {
		return nil, fmt.Errorf("server %q: %w", server, err)
	}
	if f.Server == "" {
		h.eitherScheme = h.eitherScheme || own.eitherScheme
		h.skipVerify = h.skipVerify || own.skipVerify && f.CA == nil && f.SkipVerify == nil
	}
	h.Mirror = filepath.Base(dir) == defaultDir && h.Base.Host != own.Base.Host
	return append(out, h), nil
}

// hostOrder lists the [host."…"] tables in the order of the file, which the decoder's map has lost.
func hostOrder(b []byte) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	p := unstable.Parser{}
	p.Reset(b)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table {
			continue
		}
		var parts []string
		for it := e.Key(); it.Next(); {
			parts = append(parts, string(it.Node().Data))
		}
		if len(parts) < 2 || parts[0] != "host" || seen[parts[1]] {
			continue
		}
		seen[parts[1]] = true
		out = append(out, parts[1])
	}
	return out, p.Error()
}

// host makes a Host of its table; name is its URL.
func (f fileHost) host(name, dir string) (h Host, err error) {
	if !strings.Contains(name, "://") {
		name = "https://" + name
	}
	u, err := url.Parse(name)
	if err != nil {
		return h, errors.New("malformed URL")
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return h, errors.New("the URL must be http:// or https:// and a host")
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return h, errors.New("the URL may have no user, query or fragment")
	}
	h.Base = url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimSuffix(path.Clean("/"+u.Path), "/")}
	if !f.OverridePath && !strings.HasSuffix(h.Base.Path, "/v2") {
		h.Base.Path += "/v2"
	}
	if err := f.capabilities(&h); err != nil {
		return h, err
	}
	h.skipVerify = f.SkipVerify != nil && *f.SkipVerify
	if h.ca, err = stringList("ca", f.CA, dir); err != nil {
		return h, err
	}
	if h.clients, err = clientPairs(f.Client, dir); err != nil {
		return h, err
	}
	if h.header, err = headers(f.Header); err != nil {
		return h, err
	}
	// containerd: settings of TLS for a host of http mean "whichever it speaks".
	h.eitherScheme = u.Scheme == "http" && u.Port() != "80" && (f.CA != nil || f.Client != nil || f.SkipVerify != nil)
	if f.DialTimeout != "" {
		if h.dialTimeout, err = time.ParseDuration(f.DialTimeout); err != nil || h.dialTimeout <= 0 {
			return h, fmt.Errorf("dial_timeout %q is no duration", f.DialTimeout)
		}
	}
	return h, nil
}

func (f fileHost) capabilities(h *Host) error {
	if len(f.Capabilities) == 0 {
		h.Resolve, h.Pull = true, true
	}
	for _, c := range f.Capabilities {
		switch strings.ToLower(c) {
		case "resolve":
			h.Resolve = true
		case "pull":
			h.Pull = true
		case "push", "referrers": // nothing here pushes
		default:
			return fmt.Errorf("unknown capability %q", c)
		}
	}
	return nil
}

// stringList reads a string or a list of them as file names relative to dir.
func stringList(key string, v any, dir string) ([]string, error) {
	list, ok := v.([]any)
	if !ok && v != nil {
		list = []any{v}
	}
	var out []string
	for _, x := range list {
		s, ok := x.(string)
		if !ok || s == "" {
			return nil, fmt.Errorf("%s must be a file name or a list of them", key)
		}
		if !filepath.IsAbs(s) {
			s = filepath.Join(dir, s)
		}
		out = append(out, s)
	}
	return out, nil
}

// clientPairs reads client = "file", ["file", …] or [["cert", "key"], …]. A key that is missing or "" is in the certificate's file.
func clientPairs(v any, dir string) ([][2]string, error) {
	list, ok := v.([]any)
	if !ok && v != nil {
		list = []any{v}
	}
	var out [][2]string
	for _, x := range list {
		pair, ok := x.([]any)
		if !ok {
			pair = []any{x, x}
		}
		if len(pair) == 2 && pair[1] == "" {
			pair = []any{pair[0], pair[0]}
		}
		files, err := stringList("client", pair, dir)
		if err != nil || len(files) != 2 {
			return nil, errors.New("client must be a file, a list of files, or a list of [certificate, key]")
		}
		out = append(out, [2]string{files[0], files[1]})
	}
	return out, nil
}

func headers(m map[string]any) (http.Header, error) {
	out := http.Header{}
	for k, v := range m {
		list, ok := v.([]any)
		if !ok {
			list = []any{v}
		}
		for _, x := range list {
			s, ok := x.(string)
			if !ok || strings.ContainsAny(s, "\r\n") || strings.ContainsAny(k, "\r\n: ") {
				return nil, fmt.Errorf("header %q must be a string or a list of strings", k)
			}
			out.Add(k, s)
		}
	}
	return out, nil
}

// dockerCerts adds certificates laid out as Docker wants them: *.crt are authorities, NAME.cert and NAME.key a client's.
func (h *Host) dockerCerts(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read registry configuration: %w", err)
	}
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		switch filepath.Ext(p) {
		case ".crt":
			h.ca, h.skipVerify = append(h.ca, p), false
		case ".cert":
			key := strings.TrimSuffix(p, ".cert") + ".key"
			if _, err := os.Stat(key); err != nil {
				key = p
			}
			h.clients = append(h.clients, [2]string{p, key})
		}
	}
	return nil
}
