// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

// cdiDir is one of the directories that the daemon reads by default; /run is the node's own.
const cdiDir = "/var/run/cdi"

// cdiSpec writes a specification of devices and gives its kind.
func cdiSpec(t *testing.T, devices string) string {
	t.Helper()
	if err := os.MkdirAll(cdiDir, 0o755); err != nil {
		t.Fatal(err)
	}
	class := kit.Unique(t)
	path := filepath.Join(cdiDir, class+".json")
	text := fmt.Sprintf(`{"cdiVersion": "0.7.0", "kind": "test.crishim.dev/%s", "containerEdits": {"env": ["SHARED=spec"]}, "devices": [%s]}`, class, devices)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	})
	return "test.crishim.dev/" + class
}

// cdiDevices asks for CDI devices.
func cdiDevices(names ...string) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) {
		for _, name := range names {
			c.CDIDevices = append(c.CDIDevices, &cri.CDIDevice{Name: name})
		}
	}
}

func TestCDIDevices(t *testing.T) {
	n := node(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "library"), []byte("text\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	kind := cdiSpec(t, fmt.Sprintf(`
		{"name": "zero", "containerEdits": {
			"env": ["DEVICE=zero", "HOME=/device"],
			"deviceNodes": [{"path": "/dev/vendor/zero0", "hostPath": "/dev/zero", "permissions": "rw", "gid": 44, "fileMode": 432}],
			"mounts": [{"hostPath": %q, "containerPath": "/opt/vendor", "options": ["ro", "bind", "nosuid", "noexec"]}],
			"additionalGids": [44]}},
		{"name": "null", "containerEdits": {"deviceNodes": [{"path": "/dev/null0", "type": "c", "major": 1, "minor": 3}]}}`, dir))
	for name, pod := range map[string]*kit.Pod{"host's users": kit.RunPod(t, n), "own users": kit.RunPod(t, n, mapped(1100000))} {
		c := pod.Run(testimage.Busybox, kit.Sleep(), cdiDevices(kind+"=zero", kind+"=null"), security(func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup = &cri.Int64Value{Value: 1000}, &cri.Int64Value{Value: 1000}
		}))
		if got := c.Exec("sh", "-c", "head -c 4 /dev/vendor/zero0 | wc -c; echo x > /dev/null0; cat /opt/vendor/library; echo $SHARED $DEVICE $HOME; id -G"); got != "4\ntext\nspec zero /device\n1000 44\n" {
			t.Errorf("%s: %q", name, got)
		}
		if got := c.Exec("stat", "-c", "%u:%g %a %F", "/dev/vendor/zero0"); got != "1000:44 660 character special file\n" {
			t.Errorf("%s: the device is %q", name, got)
		}
		if got := c.Exec("grep", " /opt/vendor ", "/proc/mounts"); !strings.Contains(got, "ro,nosuid,noexec") {
			t.Errorf("%s: mounted as %q", name, got)
		}
		if r, err := c.ExecSync(10, "touch", "/opt/vendor/x"); err != nil || r.GetExitCode() == 0 {
			t.Errorf("%s: the read-only mount was written: %v, %v", name, r, err)
		}
	}
}

func TestCDIRefusals(t *testing.T) {
	n := node(t)
	kind := cdiSpec(t, `
		{"name": "hook", "containerEdits": {"hooks": [{"hookName": "createContainer", "path": "/bin/true"}]}},
		{"name": "outside", "containerEdits": {"deviceNodes": [{"path": "/opt/null", "hostPath": "/dev/null"}]}},
		{"name": "gone", "containerEdits": {"deviceNodes": [{"path": "/dev/no-such-device"}]}},
		{"name": "lost", "containerEdits": {"mounts": [{"hostPath": "/no/such", "containerPath": "/v"}]}},
		{"name": "tmpfs", "containerEdits": {"mounts": [{"hostPath": "tmpfs", "containerPath": "/v", "type": "tmpfs"}]}},
		{"name": "option", "containerEdits": {"mounts": [{"hostPath": "/tmp", "containerPath": "/v", "options": ["strange"]}]}},
		{"name": "taken", "containerEdits": {"mounts": [{"hostPath": "/tmp", "containerPath": "/taken"}]}}`)
	pod := kit.RunPod(t, n)
	kit.Pull(t, n, testimage.Busybox)
	for device, c := range map[string]struct {
		code codes.Code
		text string
	}{
		kind + "=hook":     {codes.FailedPrecondition, "hooks"},
		kind + "=outside":  {codes.FailedPrecondition, "/opt/null"},
		kind + "=gone":     {codes.InvalidArgument, "/dev/no-such-device"},
		kind + "=lost":     {codes.InvalidArgument, "/no/such"},
		kind + "=tmpfs":    {codes.InvalidArgument, "tmpfs"},
		kind + "=option":   {codes.InvalidArgument, "strange"},
		kind + "=taken":    {codes.InvalidArgument, "/taken"},
		kind + "=none":     {codes.InvalidArgument, kind + "=none"},
		"no.such/kind=dev": {codes.InvalidArgument, "no.such/kind=dev"},
	} {
		_, err := pod.TryCreate(kit.ContainerConfig(t, testimage.Busybox, kit.Sleep(), cdiDevices(device),
			mount(&cri.Mount{HostPath: "/tmp", ContainerPath: "/taken"})))
		if err == nil {
			t.Errorf("%s: a container was made", device)
			continue
		}
		wantCode(t, err, c.code, "CDI_devices", c.text)
	}
}
