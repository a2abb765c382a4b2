// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

// TestBadStarts: what only the image, the node's files or the kernel can tell is the request's fault all the same, and named.
func TestBadStarts(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	dir, logs := t.TempDir(), pod.Config.GetLogDirectory()
	if err := errors.Join(os.Symlink("loop", filepath.Join(dir, "loop")), os.WriteFile(filepath.Join(dir, "text"), []byte("text\n"), 0o755),
		os.WriteFile(filepath.Join(dir, "script"), []byte("#!/no/such/interpreter\n"), 0o755), os.MkdirAll(filepath.Join(logs, "dir.log"), 0o755),
		os.Symlink(filepath.Join(dir, "escaped"), filepath.Join(logs, "link.log"))); err != nil {
		t.Fatal(err)
	}
	long := "/" + strings.Repeat("x", 300)
	command := func(name string, args ...string) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) {
			c.Command, c.Args = []string{name}, args
			c.Mounts = []*cri.Mount{{HostPath: dir, ContainerPath: "/v"}}
		}
	}
	directory := func(d string) func(*cri.ContainerConfig) { return func(c *cri.ContainerConfig) { c.WorkingDir = d } }
	volume := func(host, target string) func(*cri.ContainerConfig) {
		return mount(&cri.Mount{HostPath: host, ContainerPath: target})
	}
	device := func(host, target string) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) {
			c.Devices = append(c.Devices, &cri.Device{HostPath: host, ContainerPath: target, Permissions: "r"})
		}
	}
	log := func(name string) func(*cri.ContainerConfig) { return func(c *cri.ContainerConfig) { c.LogPath = name } }
	for name, tt := range map[string]struct {
		change func(*cri.ContainerConfig)
		names  []string
	}{
		"no program":             {command("/no/such"), []string{`exec "/no/such"`, "no such file"}},
		"no program in PATH":     {command("no-such"), []string{`exec "no-such"`, "no such file"}},
		"a directory":            {command("/etc"), []string{`exec "/etc"`, "permission denied"}},
		"not executable":         {command("/etc/passwd"), []string{`exec "/etc/passwd"`, "permission denied"}},
		"no format":              {command("/v/text"), []string{`exec "/v/text"`, "exec format error"}},
		"no interpreter":         {command("/v/script"), []string{`exec "/v/script"`, "no such file"}},
		"program in circles":     {command("/v/loop"), []string{`exec "/v/loop"`, "symbolic links"}},
		"long program":           {command(long), []string{"exec", "too long"}},
		"many arguments":         {command("true", strings.Split(strings.Repeat(strings.Repeat("x", 120<<10)+" ", 40), " ")...), []string{`exec "true"`, "too long"}},
		"directory is a file":    {directory("/etc/passwd"), []string{"working directory", "/etc/passwd", "not a directory"}},
		"directory below a file": {directory("/etc/passwd/x"), []string{"working directory", "/etc/passwd", "not a directory"}},
		"directory on a file":    {volume(dir, "/etc/passwd"), []string{"mount point", "/etc/passwd", "not a directory"}},
		"file on a directory":    {volume(dir+"/text", "/etc"), []string{"mount point", "/etc", "is a directory"}},
		"target below a file":    {volume(dir, "/etc/passwd/x"), []string{"mount point", "/etc/passwd/x", "not a directory"}},
		"long target":            {volume(dir, long), []string{"mount point", "too long"}},
		"host path below a file": {volume(dir+"/text/x", "/w"), []string{"mount /w", "host_path", "not a directory"}},
		"host path in circles":   {volume(dir+"/loop", "/w"), []string{"mount /w", "host_path", "symbolic links"}},
		"long host path":         {volume(long, "/w"), []string{"mount /w", "host_path", "too long"}},
		"device below a file":    {device("/dev/zero", "/etc/passwd/x"), []string{"mount point", "/etc/passwd", "not a directory"}},
		"device below a device":  {device("/dev/zero", "/dev/null/x"), []string{"devices", "/dev/null/x", "not a directory"}},
		"long device":            {device("/dev/zero", "/dev"+long), []string{"devices", "too long"}},
		"device in circles":      {device(dir+"/loop", "/dev/x"), []string{"devices[0]", "too many links"}},
		"two devices at a path": {func(c *cri.ContainerConfig) {
			device("/dev/zero", "/dev/x")(c)
			device("/dev/full", "/dev/x")(c)
		}, []string{"devices[1].container_path", "/dev/zero"}},
		"log is a directory":  {log("dir.log"), []string{"open log", "dir.log", "is a directory"}},
		"log is a link":       {log("link.log"), []string{"open log", "link.log", "symbolic links"}},
		"log below a file":    {log("../" + filepath.Base(logs) + "/x"), []string{"log_path"}},
		"no such processor":   {func(c *cri.ContainerConfig) { c.Linux.Resources.CpusetCpus = "4096" }, []string{"cpuset_cpus", "4096"}},
		"masked below a file": {security(func(s *cri.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"/etc/passwd/x"} }), []string{"mask /etc/passwd/x"}},
	} {
		t.Run(name, func(t *testing.T) {
			wantCode(t, tryRun(pod, kit.ContainerConfig(t, testimage.Busybox, kit.Sleep(), tt.change)), codes.InvalidArgument, tt.names...)
		})
	}
	if exists(filepath.Join(dir, "escaped")) {
		t.Error("a log was written through a link")
	}
	wantCode(t, tryRun(pod, kit.ContainerConfig(t, testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 4096 })),
		codes.FailedPrecondition, "memory_limit_in_bytes", "too low")
}

// TestBadPodStarts is the same for pods.
func TestBadPodStarts(t *testing.T) {
	n := node(t)
	for name, tt := range map[string]struct {
		change func(*cri.PodSandboxConfig)
		want   codes.Code
		names  []string
	}{
		"no such sysctl": {func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.ipv4.no_such": "1"} }, codes.FailedPrecondition, []string{"sysctl net.ipv4.no_such", "no such file"}},
		"sysctl's value": {func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "abc"} }, codes.InvalidArgument, []string{"sysctl net.ipv4.ip_forward", "invalid"}},
		"two mappings of a port": {func(c *cri.PodSandboxConfig) {
			c.PortMappings = []*cri.PortMapping{{HostPort: 7778, ContainerPort: 80}, {HostPort: 7778, ContainerPort: 81}}
		}, codes.InvalidArgument, []string{"port_mappings[1].host_port", "7778"}},
		"no such processor": {func(c *cri.PodSandboxConfig) { c.Linux.Resources = &cri.LinuxContainerResources{CpusetCpus: "4096"} }, codes.InvalidArgument, []string{"cpuset_cpus", "4096"}},
	} {
		t.Run(name, func(t *testing.T) {
			made, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: kit.PodConfig(t, n, tt.change)})
			if err == nil {
				removePod(t, n, made.GetPodSandboxId())
			}
			wantCode(t, err, tt.want, tt.names...)
		})
	}
}

// TestCallsOnWhatHasEnded: the object is there, but not in a state for the call.
func TestCallsOnWhatHasEnded(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	runs, ended := pod.Run(testimage.Busybox, kit.Sleep()), pod.Run(testimage.Busybox, []string{"true"})
	for _, name := range []string{"/no/such", "no-such", "/etc"} {
		_, err := runs.ExecSync(5, name)
		wantCode(t, err, codes.InvalidArgument, "exec", name)
	}
	ended.Exited()
	ctx, r := kit.Context(t), n.Runtime
	id, limits := ended.ID, &cri.LinuxContainerResources{CpuShares: 512}
	calls := map[string]func() error{
		"start":     ended.TryStart,
		"exec sync": func() error { _, err := ended.ExecSync(5, "true"); return err },
		"exec": func() error {
			_, err := r.Exec(ctx, &cri.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
			return err
		},
		"attach": func() error { _, err := r.Attach(ctx, &cri.AttachRequest{ContainerId: id, Stdout: true}); return err },
		"update": func() error {
			_, err := r.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: limits})
			return err
		},
		"reopen log": func() error {
			_, err := r.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: id})
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) { wantCode(t, call(), codes.FailedPrecondition, "exited") })
	}
	pod.Stop()
	for name, call := range map[string]func() error{
		"create": func() error {
			_, err := pod.TryCreate(kit.ContainerConfig(t, testimage.Busybox, kit.Sleep()))
			return err
		},
		"port-forward": func() error { _, err := r.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: pod.ID}); return err },
		"update pod": func() error {
			_, err := r.UpdatePodSandboxResources(ctx, &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: pod.ID, Resources: limits})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, call(), codes.FailedPrecondition, "stopped") })
	}
}
