// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
)

func TestCommand(t *testing.T) {
	img := v1.ImageConfig{Entrypoint: []string{"/entry", "-e"}, Cmd: []string{"a", "b"}}
	for _, c := range []struct {
		name          string
		command, args []string
		img           v1.ImageConfig
		want          string
	}{
		{"image", nil, nil, img, "/entry -e a b"},
		{"args replace cmd", nil, []string{"x"}, img, "/entry -e x"},
		{"command drops cmd", []string{"sh"}, nil, img, "sh"},
		{"both", []string{"sh"}, []string{"-c"}, img, "sh -c"},
		{"cmd only", nil, nil, v1.ImageConfig{Cmd: []string{"run"}}, "run"},
	} {
		got, err := command(&cri.ContainerConfig{Command: c.command, Args: c.args}, c.img)
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q %v, want %q", c.name, got, err, c.want)
		}
	}
	for _, cfg := range []*cri.ContainerConfig{{}, {Command: []string{""}}, {Command: []string{"a\x00b"}}} {
		if _, err := command(cfg, v1.ImageConfig{}); !errors.Is(err, errs.Invalid) {
			t.Errorf("%v: got %v, want Invalid", cfg, err)
		}
	}
}

// KUBELET.md 23.
func TestKubelet23Environment(t *testing.T) {
	img := v1.ImageConfig{Env: []string{"A=image", "B=image"}}
	cfg := &cri.ContainerConfig{Tty: true, Envs: []*cri.KeyValue{{Key: "A", Value: []byte("request")}, {Key: "E"}}}
	got, err := environment(cfg, img, "pod", "/home/u")
	want := []string{defaultPath, "HOSTNAME=pod", "TERM=xterm", "A=request", "B=image", "E=", "HOME=/home/u"}
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("%q %v", got, err)
	}
	got, err = environment(&cri.ContainerConfig{}, v1.ImageConfig{Env: []string{"PATH=/p", "HOME=/h"}}, "", "/root")
	if err != nil || !slices.Equal(got, []string{"PATH=/p", "HOME=/h"}) {
		t.Fatalf("the image's own values: %q %v", got, err)
	}
	secret := &cri.ContainerConfig{Envs: []*cri.KeyValue{{Key: "K", Value: []byte("hush\x00hush")}}}
	if _, err := environment(secret, img, "", ""); !errors.Is(err, errs.Invalid) || strings.Contains(err.Error(), "hush") {
		t.Fatalf("zero byte in a value: %v", err)
	}
}

func TestIdentify(t *testing.T) {
	a := accounts{
		passwd: []byte("root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/srv/web:/bin/sh\nbig:x:4294967294:7::/:/\n"),
		group:  []byte("root:x:0:\nweb:x:1001:\nextra:x:2000:web,other\nstaff:x:50:other\n"),
	}
	num := func(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }
	for _, c := range []struct {
		name  string
		sc    *cri.LinuxContainerSecurityContext
		image string
		want  identity
	}{
		{"nothing", nil, "", identity{0, 0, []uint32{0}, "/root"}},
		{"image name", nil, "web", identity{1000, 1001, []uint32{1001, 2000}, "/srv/web"}},
		{"image name and group", nil, "web:staff", identity{1000, 50, []uint32{50, 2000}, "/srv/web"}},
		{"image numbers", nil, "77:88", identity{77, 88, []uint32{88}, "/"}},
		{"number with an account", nil, "1000", identity{1000, 1001, []uint32{1001, 2000}, "/srv/web"}},
		{"request over image", &cri.LinuxContainerSecurityContext{RunAsUser: num(77)}, "web:staff", identity{77, 0, []uint32{0}, "/"}},
		{"request with group", &cri.LinuxContainerSecurityContext{RunAsUser: num(77), RunAsGroup: num(9), SupplementalGroups: []int64{9, 10}}, "", identity{77, 9, []uint32{9, 10}, "/"}},
		{"username", &cri.LinuxContainerSecurityContext{RunAsUsername: "web"}, "", identity{1000, 1001, []uint32{1001, 2000}, "/srv/web"}},
		{
			"strict", &cri.LinuxContainerSecurityContext{RunAsUsername: "web", SupplementalGroups: []int64{5}, SupplementalGroupsPolicy: cri.SupplementalGroupsPolicy_Strict},
			"", identity{1000, 1001, []uint32{1001, 5}, "/srv/web"},
		},
		{"largest", nil, "big", identity{4294967294, 7, []uint32{7}, "/"}},
	} {
		got, err := identify(c.sc, c.image, a)
		if err != nil || got.uid != c.want.uid || got.gid != c.want.gid || got.home != c.want.home || !slices.Equal(got.groups, c.want.groups) {
			t.Errorf("%s: %+v %v, want %+v", c.name, got, err, c.want)
		}
	}
	for name, sc := range map[string]*cri.LinuxContainerSecurityContext{
		"unknown name":       {RunAsUsername: "nobody"},
		"negative":           {RunAsUser: num(-1)},
		"too large":          {RunAsUser: num(1<<32 - 1)},
		"group without user": {RunAsGroup: num(1)},
		"user twice":         {RunAsUser: num(1), RunAsUsername: "web"},
		"negative group":     {SupplementalGroups: []int64{-5}},
	} {
		if _, err := identify(sc, "", a); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: got %v, want Invalid", name, err)
		}
	}
	if _, err := identify(nil, "web:nogroup", a); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "nogroup") {
		t.Errorf("unknown group: %v", err)
	}
}

func TestParseSignal(t *testing.T) {
	for in, want := range map[string]syscall.Signal{
		"SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63, "64": 64, "SIGQUIT": 3,
	} {
		if got, err := parseSignal(in); err != nil || got != want {
			t.Errorf("%s: %d %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "0", "65", "-1", "SIGNOPE", "SIGRTMIN+40", "SIGRTMIN+x", "SIGRTMAX+1"} {
		if got, err := parseSignal(in); err == nil {
			t.Errorf("%q gave %d", in, got)
		}
	}
	for enum, want := range map[cri.Signal]syscall.Signal{
		cri.Signal_SIGNAL_SIGUSR1: 10, cri.Signal_SIGNAL_SIGRTMINPLUS2: 36, cri.Signal_SIGNAL_SIGRTMAXMINUS3: 61, cri.Signal_SIGNAL_SIGRTMAX: 64,
	} {
		name, err := stopSignal(enum, "SIGQUIT")
		if got, err2 := parseSignal(name); err != nil || err2 != nil || got != want {
			t.Errorf("%s: %s = %d %v %v, want %d", enum, name, got, err, err2, want)
		}
	}
	if name, err := stopSignal(cri.Signal_SIGNAL_RUNTIME_DEFAULT, ""); name != "SIGTERM" || err != nil {
		t.Errorf("default: %s %v", name, err)
	}
}

func TestEverySignalOfTheAPI(t *testing.T) {
	for n, name := range cri.Signal_name {
		if _, err := stopSignal(cri.Signal(n), ""); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLogPath(t *testing.T) {
	if got, err := logPath("/var/log/pods/x", "c/0.log"); got != "/var/log/pods/x/c/0.log" || err != nil {
		t.Errorf("%s %v", got, err)
	}
	for _, name := range []string{"../x", "/abs", "a/../../b"} {
		if _, err := logPath("/var/log/pods/x", name); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIsShared(t *testing.T) {
	const info = `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
37 35 98:0 / /s rw shared:7 - tmpfs none rw
38 35 98:0 / /both rw shared:9 master:2 - tmpfs none rw
`
	for id, want := range map[uint64]bool{36: false, 37: true, 38: true, 39: false} {
		if got, err := isShared(strings.NewReader(info), id); got != want || err != nil {
			t.Errorf("%d: %v %v", id, got, err)
		}
	}
}

// KUBELET.md 7.
func TestKubelet07Outcome(t *testing.T) {
	for status, want := range map[uint32]struct {
		code   int32
		reason string
	}{0: {0, "Completed"}, 3 << 8: {3, "Error"}, 9: {137, "Error"}, 15: {143, "Error"}, 0xffffffff: {255, "Unknown"}} {
		if code, reason := outcome(status); code != want.code || reason != want.reason {
			t.Errorf("%x: %d %s", status, code, reason)
		}
	}
}

func TestCheckMounts(t *testing.T) {
	ok := &cri.Mount{ContainerPath: "/data", HostPath: "/srv"}
	if err := checkMounts([]*cri.Mount{ok, {ContainerPath: "/data/sub", HostPath: "/x", Readonly: true, RecursiveReadOnly: true}}); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]*cri.Mount{
		"root":         {ContainerPath: "/", HostPath: "/x"},
		"empty":        {HostPath: "/x"},
		"relative":     {ContainerPath: "/y", HostPath: "x"},
		"proc":         {ContainerPath: "/proc/sys", HostPath: "/x"},
		"twice":        {ContainerPath: "/data/", HostPath: "/x"},
		"rro alone":    {ContainerPath: "/y", HostPath: "/x", RecursiveReadOnly: true},
		"rro and slve": {ContainerPath: "/y", HostPath: "/x", Readonly: true, RecursiveReadOnly: true, Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
	} {
		if err := checkMounts([]*cri.Mount{ok, bad}); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "mounts[1]") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
