// SPDX-License-Identifier: Apache-2.0

// Package config is the daemon's configuration: plain data, its defaults, how files are merged and how it is printed.
//
// Load reads one main file and every *.toml of the directory config.d beside it, in lexical order; a later file overrides
// the keys it names and leaves the others. A key that no field claims is an error that names it and its file. What each
// key means stands once, in the field's doc tag; Print writes it above the key.
//
// The package opens nothing that the configuration names and decides nothing; cmd/shim turns it into options.
package config

import "time"

// DefaultPath is where the main file is looked for.
const DefaultPath = "/etc/shim/config.toml"

// Config is everything an administrator may set.
type Config struct {
	Socket      string    `toml:"socket" doc:"Unix socket of the CRI service (mode 0600)."`
	AdminSocket string    `toml:"admin_socket" doc:"Unix socket of the admin service that 'shim ps', 'shim plan' and others ask (mode 0600). Empty: admin.sock beside the CRI socket."`
	Root        string    `toml:"root" doc:"Persistent state: images, snapshots, records copied for the next boot."`
	State       string    `toml:"state" doc:"State of this boot: records, namespace pins, leases, sockets. Must be a tmpfs."`
	Keeper      string    `toml:"keeper" doc:"The shim-keeper binary. Empty: beside the shim binary, else in PATH."`
	Log         Log       `toml:"log"`
	Cgroup      Cgroup    `toml:"cgroup"`
	Network     Network   `toml:"network"`
	Image       Image     `toml:"image"`
	Streaming   Streaming `toml:"streaming"`
	Limits      Limits    `toml:"limits"`
	CDI         CDI       `toml:"cdi" doc:"Container Device Interface."`
	Runtime     Runtime   `toml:"runtime"`
}

// Log is what the daemon writes about itself.
type Log struct {
	Level  string `toml:"level" doc:"debug, info, warn or error."`
	Format string `toml:"format" doc:"text or json."`
}

// Cgroup is where pods and containers live in the cgroup tree.
type Cgroup struct {
	Driver string `toml:"driver" doc:"cgroupfs or systemd; kubelet asks for it. Empty: systemd where it is process 1, else cgroupfs."`
	Parent string `toml:"parent" doc:"Parent of pods whose request names none, in cgroupfs form."`
}

// Network is how pods get their addresses.
type Network struct {
	Builtin bool     `toml:"builtin" doc:"Use the built-in bridge network while no CNI configuration exists. A configuration file that appears takes over."`
	Subnet  string   `toml:"subnet" doc:"Address range of the built-in network, until kubelet sends the node's pod CIDR. With an IPv4 and an IPv6 range, a comma between, pods have an address of each."`
	ConfDir string   `toml:"conf_dir" doc:"CNI configuration files; the first in lexical order counts."`
	BinDirs []string `toml:"bin_dirs" doc:"Where the binaries of CNI plugins that are not built in are looked for."`
}

// Image is how images are fetched.
type Image struct {
	CertsDir          string   `toml:"certs_dir" doc:"Mirrors and certificates of registries: HOST/hosts.toml, in containerd's format. It is read for each pull, as are the next two."`
	AuthFile          string   `toml:"auth_file" doc:"Credentials for hosts to which those of the request may not go, or when it brings none: JSON as docker login writes it. Empty: none."`
	PolicyFile        string   `toml:"policy_file" doc:"Which images may be pulled and whose signatures they need, in TOML. Empty: any, signed or not."`
	MirrorsOnly       bool     `toml:"mirrors_only" doc:"Never ask a registry that has mirrors itself."`
	MirrorCredentials bool     `toml:"mirror_credentials" doc:"Send a request's credentials to mirrors too. Otherwise only the registry itself gets them, and a host that they name."`
	Parallel          int      `toml:"parallel" doc:"Layers fetched and unpacked at the same time, over all pulls."`
	Bandwidth         int64    `toml:"bandwidth" doc:"Bytes a second that all pulls together fetch at most. 0: no limit."`
	MinRate           int64    `toml:"min_rate" doc:"Bytes a second that a connection must bring, over the time of stall_time; if it brings less, another is tried."`
	StallTime         Duration `toml:"stall_time" doc:"See min_rate."`
	MaxLayers         int      `toml:"max_layers" doc:"Images with more layers are refused at pull; the kernel's overlay takes 500."`
}

// Streaming is the server behind the URLs that Exec, Attach and PortForward return.
type Streaming struct {
	Address         string   `toml:"address" doc:"HOST:PORT to listen on; port 0 picks a free one. Whoever reaches it needs a one-time token as well."`
	TLSCert         string   `toml:"tls_cert" doc:"PEM certificate chain; with tls_key, serve TLS. Both are read again when they change."`
	TLSKey          string   `toml:"tls_key" doc:"PEM private key."`
	IdleTimeout     Duration `toml:"idle_timeout" doc:"A connection without traffic for this long is closed."`
	CreationTimeout Duration `toml:"creation_timeout" doc:"How long a client may take to open the streams it asked for."`
}

// Limits are the resource limits that every container's first process starts with.
type Limits struct {
	NoFile  uint64 `toml:"nofile" doc:"RLIMIT_NOFILE, soft and hard. 0: the keeper's own."`
	NProc   uint64 `toml:"nproc" doc:"RLIMIT_NPROC, soft and hard. 0: unlimited."`
	Core    int64  `toml:"core" doc:"RLIMIT_CORE in bytes, soft and hard. -1: unlimited."`
	MemLock int64  `toml:"memlock" doc:"RLIMIT_MEMLOCK in bytes, soft and hard. -1: unlimited; 0: the keeper's own."`
	Tasks   int64  `toml:"tasks" doc:"pids.max of a container whose request sets none. 0: no limit."`
}

// CDI is where device specifications are read.
type CDI struct {
	SpecDirs []string `toml:"spec_dirs" doc:"Directories of device specifications; a later one overrides."`
}

// Runtime names the handlers that a RuntimeClass may ask for.
type Runtime struct {
	Handlers map[string]Handler `toml:"handlers" doc:"One table per handler: [runtime.handlers.NAME]. The empty handler is always shim itself."`
}

// Handler is one runtime handler.
type Handler struct {
	Type string `toml:"type" doc:"How pods of this handler are run; shim is the only type."`
}

// Duration is a time.Duration written as time.ParseDuration reads it ("4h", "30s").
type Duration time.Duration

// UnmarshalText reads a duration.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// MarshalText writes a duration.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Default is the configuration of a daemon that finds no file.
func Default() Config {
	return Config{
		Socket:  "/run/shim/shim.sock",
		Root:    "/var/lib/shim",
		State:   "/run/shim",
		Log:     Log{Level: "info", Format: "text"},
		Cgroup:  Cgroup{Parent: "/shim"},
		Network: Network{Subnet: "10.88.0.0/16", ConfDir: "/etc/cni/net.d", BinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"}},
		Image: Image{
			CertsDir: "/etc/shim/certs.d", Parallel: 4, MinRate: 1024, StallTime: Duration(30 * time.Second), MaxLayers: 500,
		},
		Streaming: Streaming{
			Address:         "127.0.0.1:0",
			IdleTimeout:     Duration(4 * time.Hour),
			CreationTimeout: Duration(30 * time.Second),
		},
		Limits:  Limits{NoFile: 1048576, Core: -1},
		CDI:     CDI{SpecDirs: []string{"/etc/cdi", "/var/run/cdi"}},
		Runtime: Runtime{Handlers: map[string]Handler{}},
	}
}
