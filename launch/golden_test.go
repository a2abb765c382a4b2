// SPDX-License-Identifier: Apache-2.0

package launch_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"crishim.dev/launch"
	"crishim.dev/proto"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares text with testdata/name.golden.
func golden(t *testing.T, name string, text []byte) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(text)); d != "" {
		t.Errorf("%s: -golden +now (go test -update rewrites it):\n%s", file, d)
	}
}

func planText(t *testing.T, p *launch.Plan, fds int) []byte {
	t.Helper()
	var b bytes.Buffer
	fmt.Fprintf(&b, "clone flags %#x, cgroup %d\n", p.CloneFlags, p.Cgroup)
	if err := launch.Dump(&b, p.Program); err != nil {
		t.Fatal(err)
	}
	enc, err := p.Program.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := proto.Check(enc, proto.FDPassed+fds); err != nil {
		t.Error(err)
	}
	if len(p.Program.Labels) != len(p.Program.Ops) {
		t.Errorf("%d labels for %d ops", len(p.Program.Labels), len(p.Program.Ops))
	}
	return b.Bytes()
}

func v1Facts() launch.Facts {
	return launch.Facts{
		Caps: launch.AllCaps &^ (1 << 24), LastCap: 40, OOMScoreAdjMin: 0, Rlimits: map[int]uint64{unix.RLIMIT_NOFILE: 20000}, CgroupVersion: 1,
		Hierarchies: []launch.Hierarchy{{Dir: "cpu,cpuacct", Controllers: []string{"cpu", "cpuacct"}}, {Dir: "pids", Controllers: []string{"pids"}}, {Dir: "systemd", Name: "systemd"}},
	}
}

func v2Facts() launch.Facts {
	return launch.Facts{Caps: launch.AllCaps, LastCap: 40, OOMScoreAdjMin: -1000, CgroupVersion: 2, ProcPIDNS: true}
}

// minimal is a container as kubelet asks for without any options. Descriptors: 0 root, 1 dev, 2 shm, 3..5 namespaces, 6 cgroup.
func minimal() launch.Description {
	return launch.Description{
		Process: launch.Process{
			Args: []string{"nginx", "-g", "daemon off;"}, Env: []string{"PATH=/usr/bin:/bin", "PASSWORD=hunter2"}, Cwd: "/",
			Caps: launch.DefaultCaps, Stdout: true, Stderr: true, Seccomp: &launch.Seccomp{Code: make([]byte, 80), Flags: 4},
			Rlimits: []launch.Rlimit{{Resource: unix.RLIMIT_NOFILE, Soft: 1 << 20, Hard: 1 << 20}},
		},
		Cgroup: launch.Cgroup{Procs: []launch.FD{6}, Dir: launch.NoFD},
		Root:   0, Dev: 1, Shm: 2, NetNS: 3, IPCNS: 4, UTSNS: 5, PIDNS: launch.NoFD, UserNS: launch.NoFD,
		MaskedPaths: []string{"/proc/kcore"}, ReadOnlyPaths: []string{"/proc/sys"},
	}
}

func TestGoldenContainer(t *testing.T) {
	for _, c := range []struct {
		name  string
		facts launch.Facts
		edit  func(d *launch.Description)
	}{
		{"minimal", v1Facts(), func(*launch.Description) {}},
		{"v2", v2Facts(), func(d *launch.Description) { d.Cgroup = launch.Cgroup{Dir: 6} }},
		{"privileged", v1Facts(), func(d *launch.Description) {
			d.Caps, d.SysReadWrite, d.CgroupReadWrite, d.Seccomp, d.MaskedPaths, d.ReadOnlyPaths = launch.AllCaps, true, true, nil, nil, nil
		}},
		{"volumes", v2Facts(), func(d *launch.Description) {
			d.Cgroup = launch.Cgroup{Dir: 6}
			d.ReadOnlyRoot, d.Cwd = true, "/data/work"
			d.Mounts = []launch.Mount{
				{Target: "/data/a/b", FD: 8}, {Target: "/data", FD: 7}, {Target: "/etc/hosts", FD: 9, File: true},
				{Target: "/dev/shm", FD: 10}, {Target: "/dev/termination-log", FD: 11, File: true},
			}
		}},
		{"hostdev", v2Facts(), func(d *launch.Description) {
			d.Cgroup, d.Dev = launch.Cgroup{Dir: 6}, launch.NoFD
			d.Mounts = []launch.Mount{{Target: "/dev", FD: 7}}
		}},
		{"tty", v2Facts(), func(d *launch.Description) {
			d.Cgroup, d.TTY, d.UID, d.GID = launch.Cgroup{Dir: 6}, true, 1000, 1000
		}},
		{"podpid", v2Facts(), func(d *launch.Description) {
			d.Cgroup, d.PID, d.PIDNS, d.NoNewPrivileges = launch.Cgroup{Dir: 6}, launch.PIDJoin, 7, true
		}},
		{"podpid-old", v1Facts(), func(d *launch.Description) { d.PID, d.PIDNS, d.PIDMount = launch.PIDJoin, 7, 8 }},
		{"userns", v2Facts(), func(d *launch.Description) {
			d.Cgroup, d.UserNS, d.IDBase, d.UID = launch.Cgroup{Dir: 6}, 7, 300000, 1000
			d.Mounts = []launch.Mount{{Target: "/data", FD: 8}, {Target: "/data/a", FD: 9}, {Target: "/proc/cpuinfo", FD: 10, File: true}}
		}},
		{"podpid-narrow", v2Facts(), func(d *launch.Description) {
			d.Cgroup, d.PID, d.PIDNS, d.Seccomp.Narrow = launch.Cgroup{Dir: 6}, launch.PIDJoin, 7, true
		}},
		{"hostpid", v2Facts(), func(d *launch.Description) {
			d.PID, d.NetNS, d.IPCNS, d.UTSNS, d.HostCgroupNS = launch.PIDHost, launch.NoFD, launch.NoFD, launch.NoFD, true
			d.Cgroup = launch.Cgroup{Dir: 6}
		}},
		{"user", v2Facts(), func(d *launch.Description) {
			d.Cgroup, d.UID, d.GID, d.Groups, d.Stdin = launch.Cgroup{Dir: 6}, 1000, 1001, []uint32{1001, 2000}, true
			d.Caps, d.Ambient, d.NoNewPrivileges, d.Cwd, d.Args[0] = 1<<10|1<<13, 1<<10, true, "/srv", "/usr/sbin/nginx"
			d.OOMScoreAdj, d.AppArmor = -997, "cri-default"
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := minimal()
			c.edit(&d)
			p, err := launch.Container(&d, c.facts)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, c.name, planText(t, p, 12))
		})
	}
}

func TestGoldenOthers(t *testing.T) {
	d := minimal()
	exec := launch.ExecDescription{Process: d.Process, Cgroup: d.Cgroup, PIDFD: 0, Stdio: [3]launch.FD{launch.NoFD, 7, 8}}
	execTTY := exec
	execTTY.TTY, execTTY.NoNewPrivileges, execTTY.UID, execTTY.HostPID = true, true, 1000, true
	for name, make := range map[string]func() (*launch.Plan, error){
		"exec":     func() (*launch.Plan, error) { return launch.Exec(&exec, v1Facts()) },
		"exec-tty": func() (*launch.Plan, error) { return launch.Exec(&execTTY, v1Facts()) },
		"pod": func() (*launch.Plan, error) {
			return launch.Pod(&launch.PodDescription{Hostname: "web-0", UserNS: launch.NoFD,
				Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel/shmmax": "1", "net.ipv4.conf.eth0/1.forwarding": "1"}}, v1Facts())
		},
		"pod-hostnet": func() (*launch.Plan, error) {
			return launch.Pod(&launch.PodDescription{HostNet: true, HostUTS: true, Hostname: "node", UserNS: launch.NoFD}, v1Facts())
		},
		"pod-userns": func() (*launch.Plan, error) {
			return launch.Pod(&launch.PodDescription{Hostname: "web-0", UserNS: 0}, v1Facts())
		},
		"podinit": func() (*launch.Plan, error) {
			return launch.PodInit(&launch.PodInitDescription{Cgroup: d.Cgroup, NetNS: 3, IPCNS: 4, UTSNS: 5, UserNS: launch.NoFD, Binary: 0, Seccomp: d.Seccomp}, v1Facts())
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := make()
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, planText(t, p, 12))
		})
	}
}
