// SPDX-License-Identifier: Apache-2.0

package process

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
	a := Accounts{
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
		if got, err := ParseSignal(in); err != nil || got != want {
			t.Errorf("%s: %d %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "0", "65", "-1", "SIGNOPE", "SIGRTMIN+40", "SIGRTMIN+x", "SIGRTMAX+1"} {
		if got, err := ParseSignal(in); err == nil {
			t.Errorf("%q gave %d", in, got)
		}
	}
	for enum, want := range map[cri.Signal]syscall.Signal{
		cri.Signal_SIGNAL_SIGUSR1: 10, cri.Signal_SIGNAL_SIGRTMINPLUS2: 36, cri.Signal_SIGNAL_SIGRTMAXMINUS3: 61, cri.Signal_SIGNAL_SIGRTMAX: 64,
	} {
		name, err := StopSignal(enum, "SIGQUIT")
		if got, err2 := ParseSignal(name); err != nil || err2 != nil || got != want {
			t.Errorf("%s: %s = %d %v %v, want %d", enum, name, got, err, err2, want)
		}
	}
	if name, err := StopSignal(cri.Signal_SIGNAL_RUNTIME_DEFAULT, ""); name != "SIGTERM" || err != nil {
		t.Errorf("default: %s %v", name, err)
	}
}

func TestEverySignalOfTheAPI(t *testing.T) {
	for n, name := range cri.Signal_name {
		if _, err := StopSignal(cri.Signal(n), ""); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
