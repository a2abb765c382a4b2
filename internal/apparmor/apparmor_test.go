// SPDX-License-Identifier: Apache-2.0

package apparmor

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestListed(t *testing.T) {
	const text = "mine (enforce)\n/usr/bin/man (enforce)\nodd (name) (complain)\nnvidia_modprobe//kmod (unconfined)\n"
	for name, want := range map[string]bool{"mine": true, "/usr/bin/man": true, "odd (name)": true, "odd": false, "nvidia_modprobe": false, "": false} {
		if got, err := listed(strings.NewReader(text), name); got != want || err != nil {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
}

// TestDefaultConfines loads the default profile and runs programs under it.
func TestDefaultConfines(t *testing.T) {
	if b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || b[0] != 'Y' || os.Getuid() != 0 {
		t.Skip("needs root and a kernel with AppArmor")
	}
	for range 2 { // the second replaces
		if err := LoadDefault(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if ok, err := Loaded(Default); !ok || err != nil {
		t.Fatalf("loaded: %v, %v", ok, err)
	}
	if ok, err := Loaded("no-such-profile"); ok || err != nil {
		t.Errorf("a profile that is not there: %v, %v", ok, err)
	}
	for script, allowed := range map[string]bool{
		"cat /proc/self/attr/current | grep -q '^" + Default + " (enforce)'":       true,
		"echo x >/tmp/apparmor-test && rm /tmp/apparmor-test":                      true,
		"cat /proc/sys/vm/swappiness":                                              true,
		"cat /proc/sys/vm/swappiness >/proc/sys/vm/swappiness":                     false,
		"cat /proc/sys/kernel/pid_max >/proc/sys/kernel/pid_max":                   false,
		"cat /proc/sys/kernel/shmmni >/proc/sys/kernel/shmmni":                     true,
		"cat /proc/sys/net/ipv4/ip_forward >/proc/sys/net/ipv4/ip_forward":         true,
		"head -c 1 /proc/kcore":                                                    false,
		": >/proc/sysrq-trigger":                                                   false,
		"echo add >/sys/class/mem/null/uevent":                                     false,
		"mkdir /sys/fs/cgroup/apparmor-test && rmdir /sys/fs/cgroup/apparmor-test": true,
		"mount -t tmpfs none /mnt":                                                 false,
		"unshare -u true":                                                          true,
		"sleep 9 & kill $!":                                                        true,
		"kill -0 1":                                                                false,
		"ls /sys/kernel/security/apparmor/ >&2":                                    false,
	} {
		cmd := exec.Command("sh", "-c", "echo 'exec "+Default+"' >/proc/self/attr/exec && exec sh -c \"$0\"", script)
		out, err := cmd.CombinedOutput()
		if (err == nil) != allowed {
			t.Errorf("%s: %v, want allowed %v\n%s", script, err, allowed, out)
		}
	}
}
