// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

func TestKubelet01_CgroupLeafIsTheContainersID(t *testing.T) {
	n := node(t)
	parent := n.CgroupParent + "/" + kit.Unique(t)
	pod := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = parent })
	c := pod.Run(testimage.Busybox, kit.Sleep())
	if got, want := c.Cgroup("memory"), filepath.Join("/sys/fs/cgroup/memory", parent, c.ID); got != want && got != filepath.Join("/sys/fs/cgroup", parent, c.ID) {
		t.Errorf("control group is %s; want %s", got, want)
	}
	if len(c.PIDs()) == 0 {
		t.Error("no process in the control group")
	}
}

func TestKubelet02_RuntimeVersionParses(t *testing.T) {
	n := node(t)
	v, err := n.Runtime.Version(kit.Context(t), &cri.VersionRequest{Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^v?\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]+)?$`).MatchString(v.GetRuntimeVersion()) {
		t.Errorf("runtime version %q is none", v.GetRuntimeVersion())
	}
	if v.GetRuntimeName() != "shim" || v.GetRuntimeApiVersion() != "v1" || v.GetVersion() == "" {
		t.Errorf("version: %v", v)
	}
}

func TestKubelet03_RuntimeConfigNamesTheDriver(t *testing.T) {
	n := node(t)
	c, err := n.Runtime.RuntimeConfig(kit.Context(t), &cri.RuntimeConfigRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if c.GetLinux() == nil || c.GetLinux().GetCgroupDriver() != cri.CgroupDriver_CGROUPFS {
		t.Errorf("runtime config %v; want the cgroupfs driver that the node is configured for", c)
	}
}

func TestKubelet04_MountsAndLogPathVerbatim(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	host := filepath.Join(t.TempDir(), "termination")
	if err := os.WriteFile(host, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	odd := filepath.Dir(host) + "/../" + filepath.Base(filepath.Dir(host)) + "//termination"
	c := pod.Run(testimage.Busybox, []string{"sh", "-c", "echo bye > /dev/termination-log"}, mount(&cri.Mount{HostPath: odd, ContainerPath: "/dev/termination-log"}))
	s := c.Exited()
	if len(s.GetMounts()) != 1 || s.GetMounts()[0].GetHostPath() != odd || s.GetMounts()[0].GetContainerPath() != "/dev/termination-log" {
		t.Errorf("mounts %v; want the request's, verbatim", s.GetMounts())
	}
	if s.GetLogPath() != c.LogPath() || !filepath.IsAbs(s.GetLogPath()) {
		t.Errorf("log path %q; want %q", s.GetLogPath(), c.LogPath())
	}
	if text, err := os.ReadFile(host); err != nil || string(text) != "bye\n" {
		t.Errorf("termination log %q, %v", text, err)
	}
}

func TestKubelet05_UnknownIDs(t *testing.T) {
	n := node(t)
	const id = "deadbeef00000000000000000000000000000000000000000000000000000000"
	ctx := kit.Context(t)
	_, err := n.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	wantCode(t, err, codes.NotFound, id)
	_, err = n.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
	wantCode(t, err, codes.NotFound, id)
	_, err = n.Runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: id})
	wantCode(t, err, codes.NotFound)
	_, err = n.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
	wantCode(t, err, codes.NotFound)
	_, err = n.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
	wantCode(t, err, codes.NotFound)
	image, err := n.Images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "registry.k8s.io/none:1"}})
	if err != nil || image.GetImage() != nil {
		t.Errorf("status of an unknown image: %v, %v; want nothing", image, err)
	}
	for name, f := range map[string]func() error{
		"StopPodSandbox": func() error {
			_, err := n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
			return err
		},
		"RemovePodSandbox": func() error {
			_, err := n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		},
		"StopContainer": func() error {
			_, err := n.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id})
			return err
		},
		"RemoveContainer": func() error {
			_, err := n.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
			return err
		},
		"RemoveImage": func() error {
			_, err := n.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: "registry.k8s.io/none:1"}})
			return err
		},
	} {
		if err := f(); err != nil {
			t.Errorf("%s of an unknown id: %v; want success", name, err)
		}
	}
}

func TestKubelet06_ExecTimeoutIsDeadlineExceeded(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep())
	_, err := c.ExecSync(1, "sh", "-c", "sleep 600 & sleep 600")
	wantCode(t, err, codes.DeadlineExceeded, "did not end within 1s")
	kit.Until(t, func() error {
		if out := c.Exec("sh", "-c", "pgrep sleep | wc -l"); strings.TrimSpace(out) != "1" {
			return fmt.Errorf("%s processes named sleep; want the container's own only", strings.TrimSpace(out))
		}
		return nil
	})
}

// The names that kubelet knows stand at the start of the message (cri-api/pkg/errors). Those of a pull it finds only under the code
// Unknown, which alone cri-client takes off.
func TestKubelet06_NamedErrors(t *testing.T) {
	n := node(t)
	_, err := n.Images.PullImage(kit.Context(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "127.0.0.1:1/nobody/listens:1"}})
	if s := status.Convert(err); err == nil || s.Code() != codes.Unknown || !strings.HasPrefix(s.Message(), "RegistryUnavailable: ") {
		t.Errorf("pull from a registry that is down: %v; want RegistryUnavailable", err)
	}
	// The node's signature policy forbids this repository.
	ref := "localhost/forbidden/" + kit.Unique(t) + ":1"
	img, err := testimage.Build(runtime.GOARCH, v1.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Registry.Push(kit.Context(t), testimage.Image{Refs: []string{ref}, Image: img}); err != nil {
		t.Fatal(err)
	}
	_, err = pull(t, n, ref)
	if s := status.Convert(err); err == nil || s.Code() != codes.Unknown || !strings.HasPrefix(s.Message(), "SignatureValidationFailed: ") {
		t.Errorf("pull of what the policy rejects: %v; want SignatureValidationFailed", err)
	}
}

func TestKubelet07_Reasons(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	for name, tt := range map[string]struct {
		command []string
		code    int32
		reason  string
	}{
		"completed": {[]string{"true"}, 0, "Completed"},
		"error":     {[]string{"sh", "-c", "exit 3"}, 3, "Error"},
		"255":       {[]string{"sh", "-c", "exit 255"}, 255, "Error"},
	} {
		t.Run(name, func(t *testing.T) {
			s := pod.Run(testimage.Busybox, tt.command).Exited()
			if s.GetExitCode() != tt.code || s.GetReason() != tt.reason {
				t.Errorf("exit code %d, reason %q; want %d, %q", s.GetExitCode(), s.GetReason(), tt.code, tt.reason)
			}
			if s.GetStartedAt() < s.GetCreatedAt() || s.GetFinishedAt() < s.GetStartedAt() || s.GetCreatedAt() == 0 {
				t.Errorf("created %d, started %d, finished %d", s.GetCreatedAt(), s.GetStartedAt(), s.GetFinishedAt())
			}
		})
	}
}

func TestKubelet07_Killed(t *testing.T) {
	n := node(t)
	c := kit.RunPod(t, n).Run(testimage.Busybox, kit.Sleep())
	c.Stop(0) // pid 1 can't kill itself
	if s := c.Exited(); s.GetExitCode() != 137 || s.GetReason() != "Error" {
		t.Errorf("exit code %d, reason %q; want 137, Error", s.GetExitCode(), s.GetReason())
	}
}

func TestKubelet07_StartError(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	for name, tt := range map[string]struct {
		command []string
		want    string
	}{
		"missing":        {[]string{"/no/such/program"}, "no such file or directory"},
		"not in PATH":    {[]string{"no-such-program"}, "no-such-program"},
		"directory":      {[]string{"/etc"}, "permission denied"},
		"not executable": {[]string{"/etc/passwd"}, "permission denied"},
	} {
		t.Run(name, func(t *testing.T) {
			c := pod.Create(testimage.Busybox, tt.command)
			err := c.TryStart()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("start: %v; want %q", err, tt.want)
			}
			s := c.Status()
			if s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 128 || s.GetReason() != "StartError" || !strings.Contains(s.GetMessage(), tt.want) {
				t.Errorf("%v, exit code %d, reason %q, message %q; want EXITED, 128, StartError with the cause", s.GetState(), s.GetExitCode(), s.GetReason(), s.GetMessage())
			}
		})
	}
}

func TestKubelet07_OOMKilled(t *testing.T) {
	n := node(t)
	limit := func(c *cri.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 32 << 20 }
	s := kit.RunPod(t, n).Run(testimage.Busybox, []string{"probe", "eat", "4096"}, limit).Exited()
	if s.GetExitCode() != 137 || s.GetReason() != "OOMKilled" {
		t.Errorf("exit code %d, reason %q; want 137, OOMKilled", s.GetExitCode(), s.GetReason())
	}
}

func TestKubelet09_SameNameAndConfigIsTheSameID(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	again, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: pod.Config})
	if err != nil || again.GetPodSandboxId() != pod.ID {
		t.Errorf("same pod again: %v, %v; want %s", again, err, pod.ID)
	}
	c := pod.Create(testimage.Busybox, kit.Sleep())
	twin, err := pod.TryCreate(c.Config)
	if err != nil || twin.GetContainerId() != c.ID {
		t.Errorf("same container again: %v, %v; want %s", twin, err, c.ID)
	}
	changed := kit.PodConfig(t, n, func(p *cri.PodSandboxConfig) {
		p.Metadata, p.Hostname, p.LogDirectory = pod.Config.Metadata, "another", pod.Config.LogDirectory
	})
	_, err = n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: changed})
	wantCode(t, err, codes.AlreadyExists, "hostname")
	other := kit.ContainerConfig(t, testimage.Busybox, []string{"other"}, func(o *cri.ContainerConfig) { o.Metadata, o.LogPath = c.Config.Metadata, c.Config.LogPath })
	_, err = pod.TryCreate(other)
	wantCode(t, err, codes.AlreadyExists, "command")
}

// In flight: many calls with one name get one id.
func TestKubelet09_CallsInFlightJoin(t *testing.T) {
	n := node(t)
	config := kit.PodConfig(t, n)
	type result struct {
		id  string
		err error
	}
	results := make(chan result)
	for range 8 {
		go func() {
			r, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: config})
			results <- result{r.GetPodSandboxId(), err}
		}()
	}
	ids := make(map[string]int)
	for range 8 {
		r := <-results
		if r.err != nil {
			t.Errorf("run pod: %v", r.err)
		}
		ids[r.id]++
	}
	if len(ids) != 1 {
		t.Errorf("ids %v; want one", ids)
	}
	for id := range ids {
		if _, err := n.Runtime.StopPodSandbox(kit.Context(t), &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
			t.Error(err)
		}
		if _, err := n.Runtime.RemovePodSandbox(kit.Context(t), &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
			t.Error(err)
		}
	}
}
