// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"path"
	"strings"
	"testing"

	"crishim.dev/internal/errs"
)

func TestSysctlPath(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward":         "net/ipv4/ip_forward",
		"net/ipv4/ip_forward":         "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/100.x":    "net/ipv4/conf/eth0.100/x",
		"net/ipv4/conf/eth0.100/x":    "net/ipv4/conf/eth0.100/x",
		"kernel.sem":                  "kernel/sem",
		"net/ipv4.ip_forward/../../x": "net/ipv4.ip_forward/../../x",
	} {
		if got := sysctlPath(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestValidSysctl(t *testing.T) {
	for _, c := range []struct {
		name, value     string
		net, ipc, valid bool
	}{
		{"net.ipv4.ip_unprivileged_port_start", "0", false, false, true},
		{"net/ipv4/ping_group_range", "0 2147483647", false, true, true},
		{"net.ipv4.conf.eth0/100.forwarding", "1", false, false, true},
		{"net/ipv4/conf/Eth0.100@x:1+y/forwarding", "1", false, false, true},
		{"net.core.somaxconn", "1024", false, false, true},
		{"kernel.shm_rmid_forced", "1", true, false, true},
		{"kernel/msgmax", "65536", false, false, true},
		{"kernel.sem", "250\t32000 100 128", false, false, true},
		{"fs.mqueue.msg_max", "100", false, false, true},
		{"kernel.domainname", "example", false, true, true},

		{"net.ipv4.ip_forward", "1", true, false, false},
		{"kernel.domainname", "x", true, false, false},
		{"kernel.shmmax", "1", false, true, false},
		{"fs.mqueue.msg_max", "1", false, true, false},
		// Not a namespace's.
		{"kernel.hostname", "x", false, false, false},
		{"kernel.core_pattern", "|/x", false, false, false},
		{"kernel.shmmax2", "1", false, false, false},
		{"kernel.sem.x", "1", false, false, false},
		{"vm.overcommit_memory", "1", false, false, false},
		{"fs.file-max", "1", false, false, false},
		{"user.max_user_namespaces", "0", false, false, false},
		{"networking.x", "1", false, false, false},
		// Smuggling.
		{"net/../kernel/core_pattern", "x", false, false, false},
		{"net/ipv4/../../kernel/core_pattern", "x", false, false, false},
		{"net.//kernel.core_pattern", "x", false, false, false},
		{"net...kernel.core_pattern", "x", false, false, false},
		{"net./../kernel/core_pattern", "x", false, false, false},
		{"net..ipv4.ip_forward", "1", false, false, false},
		{"net.ipv4.ip_forward.", "1", false, false, false},
		{".net.ipv4.ip_forward", "1", false, false, false},
		{"/net/ipv4/ip_forward", "1", false, false, false},
		{"net/./ipv4/ip_forward", "1", false, false, false},
		{"net.ipv4.conf./..x", "1", false, false, false},
		{"NET.ipv4.ip_forward", "1", false, false, false},
		{"net.IPv4.ip_forward", "1", false, false, false},
		{"Kernel.shmmax", "1", false, false, false},
		{"net.ipv4.ip_forward\n", "1", false, false, false},
		{"net.ipv4.ip_forward\x00.x", "1", false, false, false},
		{"net.ipv4.ip forward", "1", false, false, false},
		{"net.ipv4.ïp_forward", "1", false, false, false},
		{"net", "1", false, false, false},
		{"net.", "1", false, false, false},
		{"", "1", false, false, false},
		{"net.ipv4." + strings.Repeat("a", 300), "1", false, false, false},
		{"net.ipv4.ip_forward", "1\n2", false, false, false},
		{"net.ipv4.ip_forward", "\x00", false, false, false},
		{"net.ipv4.ip_forward", "", false, false, false},
		{"net.ipv4.ip_forward", strings.Repeat("1", 5000), false, false, false},
	} {
		err := ValidSysctl(c.name, c.value, c.net, c.ipc)
		if (err == nil) != c.valid || (err != nil && !errors.Is(err, errs.Invalid)) {
			t.Errorf("%q = %.20q, host net %v, host ipc %v: %v", c.name, c.value, c.net, c.ipc, err)
		}
	}
}

func FuzzValidSysctl(f *testing.F) {
	f.Add("net.ipv4.conf.eth0/1.forwarding", "1", false, false)
	f.Add("net/../kernel/core_pattern", "|/x", false, true)
	f.Add("kernel.sem", "1\t2", true, false)
	f.Fuzz(func(t *testing.T, name, value string, hostNet, hostIPC bool) {
		if ValidSysctl(name, value, hostNet, hostIPC) != nil {
			return
		}
		p := sysctlPath(name)
		if path.Clean("/"+p) != "/"+p || strings.ContainsAny(p+value, "\x00\n") {
			t.Errorf("%q leads to %q", name, p)
		}
		if net := strings.HasPrefix(p, "net/") || p == "kernel/domainname"; net && hostNet {
			t.Errorf("%q with the host's network", name)
		} else if !net && (hostIPC || !strings.HasPrefix(p, "kernel/") && !strings.HasPrefix(p, "fs/mqueue/")) {
			t.Errorf("%q", name)
		}
	})
}

func TestCaps(t *testing.T) {
	for _, c := range []struct {
		add, drop []string
		want      CapSet
	}{
		{nil, nil, DefaultCaps},
		{[]string{"net_admin"}, []string{"CAP_CHOWN"}, DefaultCaps&^1 | 1<<12},
		{[]string{"ALL"}, nil, AllCaps},
		{[]string{"NET_BIND_SERVICE"}, []string{"all"}, 1 << 10},
		{[]string{"ALL"}, []string{"SYS_ADMIN"}, AllCaps &^ (1 << 21)},
		{[]string{"CHOWN"}, []string{"CHOWN"}, DefaultCaps &^ 1},
	} {
		got, err := EditCaps(DefaultCaps, c.add, c.drop)
		if err != nil || got != c.want {
			t.Errorf("add %v, drop %v: %x, want %x (%v)", c.add, c.drop, got, c.want, err)
		}
	}
	if _, err := EditCaps(0, nil, []string{"CAP_NOTHING"}); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	if n := AllCaps.Names(); len(n) != 41 || n[12] != "CAP_NET_ADMIN" || n[40] != "CAP_CHECKPOINT_RESTORE" {
		t.Error(n)
	}
}
