// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/http"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

func TestBadImages(t *testing.T) {
	n := node(t)
	_, err := pull(t, n, "registry.k8s.io/no/such/image:1")
	wantCode(t, err, codes.NotFound, "no/such/image")
	_, err = pull(t, n, "registry.k8s.io/e2e-test-images/busybox@sha256:"+strings.Repeat("ab", 32))
	wantCode(t, err, codes.NotFound)
	for _, name := range []string{"", "localhost/UPPER/case:1", "a b", "localhost/x@sha256:short", strings.Repeat("x", 5000)} {
		_, err = pull(t, n, name)
		wantCode(t, err, codes.InvalidArgument)
	}
	pod := kit.RunPod(t, n)
	_, err = pod.TryCreate(kit.ContainerConfig(t, "localhost/never/pulled:1", kit.Sleep()))
	wantCode(t, err, codes.NotFound, "never/pulled")
}

// A registry whose blobs are cut short, or are other bytes: nothing of the image stays.
func TestBadLayers(t *testing.T) {
	n := node(t)
	for name, spoil := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"truncated": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			w.Header().Set("Content-Length", "1000000")
			_, _ = w.Write(make([]byte, 1000))
			panic(http.ErrAbortHandler)
		},
		"other bytes": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			_, _ = w.Write([]byte("not what the digest says"))
			return true
		},
		"failing": func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/blobs/") {
				http.Error(w, "broken", http.StatusInternalServerError)
				return true
			}
			return false
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := serve(t, n, nil)
			l, err := testimage.Layer(testimage.Gzip, testimage.File{Name: "x", Body: []byte(name)})
			if err != nil {
				t.Fatal(err)
			}
			img, err := testimage.Build(runtime.GOARCH, v1.Config{Labels: map[string]string{"x": name}}, l)
			if err != nil {
				t.Fatal(err)
			}
			ref := r.Host + "/bad:1"
			if err := r.Push(kit.Context(t), testimage.Image{Refs: []string{ref}, Image: img}); err != nil {
				t.Fatal(err)
			}
			r.Intercept(spoil)
			// Unknown is the code under which kubelet looks for the name.
			if _, err := pull(t, n, ref); err == nil || status.Code(err) == codes.Unknown && !strings.HasPrefix(status.Convert(err).Message(), "RegistryUnavailable: ") {
				t.Errorf("pull: %v; want an error with a code, or a name that kubelet knows", err)
			}
			if imageStatus(t, n, ref) != nil {
				t.Error("the image is listed")
			}
			r.Intercept(nil)
			if _, err := pull(t, n, ref); err != nil {
				t.Errorf("pull once the registry works: %v", err)
			}
			kit.RemoveImage(t, n, ref)
		})
	}
}

// Archives that try to get out of the root.
func TestHostileArchives(t *testing.T) {
	n := node(t)
	for name, files := range map[string][]testimage.File{
		"dot dot":             {{Name: "../../../../tmp/escaped", Body: []byte("x")}},
		"absolute":            {{Name: "/tmp/../../../../escaped", Body: []byte("x")}},
		"through a link":      {{Name: "out", Symlink: "/tmp"}, {Name: "out/escaped", Body: []byte("x")}},
		"through a long link": {{Name: "a/b", Symlink: "../../../../../.."}, {Name: "a/b/tmp/escaped", Body: []byte("x")}},
		"hard link out":       {{Name: "link", Link: "../../../../etc/shadow"}},
		"whiteout out":        {{Name: "../.wh.tmp"}},
		"whiteout of all":     {{Name: ".wh..."}, {Name: ".wh.."}},
	} {
		t.Run(name, func(t *testing.T) {
			ref := small(t, n, layer(t, files...))
			// Refused or kept inside: either is safe. What matters is outside.
			if _, err := pull(t, n, ref); err != nil && status.Code(err) == codes.Unknown {
				t.Errorf("pull: %v; want an error with a code", err)
			}
			for _, path := range []string{"/tmp/escaped", "/escaped"} {
				if exists(path) {
					t.Errorf("%s was written", path)
				}
			}
		})
	}
}

func TestBadContainers(t *testing.T) {
	n := node(t)
	kit.RemoveImage(t, n, testimage.Bare)
	kit.Pull(t, n, testimage.Bare)
	pod := kit.RunPod(t, n)
	for name, tt := range map[string]struct {
		change func(*cri.ContainerConfig)
		want   codes.Code
		field  string
	}{
		"unknown user": {security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUsername = "nobody-here" }), codes.InvalidArgument, "run_as_username"},
		"group without user": {
			security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsGroup = &cri.Int64Value{Value: 5} }), codes.InvalidArgument, "run_as_group",
		},
		"user out of range": {
			security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: -5} }), codes.InvalidArgument, "run_as_user",
		},
		"malformed capability": {security(func(s *cri.LinuxContainerSecurityContext) {
			s.Capabilities = &cri.Capability{AddCapabilities: []string{"NO SUCH"}}
		}), codes.InvalidArgument, "capabilities.add_capabilities[0]"},
		"unknown capability": {security(func(s *cri.LinuxContainerSecurityContext) {
			s.Capabilities = &cri.Capability{DropCapabilities: []string{"NO_SUCH"}}
		}), codes.InvalidArgument, "drop_capabilities"},
		"relative mount":     {mount(&cri.Mount{HostPath: "/tmp", ContainerPath: "../../x\x00"}), codes.InvalidArgument, "mounts[0].container_path"},
		"mount without path": {mount(&cri.Mount{HostPath: "/tmp"}), codes.InvalidArgument, "mounts[0].container_path"},
		"missing device": {func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{HostPath: "/dev/no-such-device", ContainerPath: "/dev/x", Permissions: "rwm"}}
		}, codes.InvalidArgument, "devices[0]"},
		"no name":              {func(c *cri.ContainerConfig) { c.Metadata = nil }, codes.InvalidArgument, "config.metadata"},
		"no image":             {func(c *cri.ContainerConfig) { c.Image = nil }, codes.InvalidArgument, "config.image"},
		"no command":           {func(c *cri.ContainerConfig) { c.Image.Image, c.Command = testimage.Bare, nil }, codes.InvalidArgument, "command"},
		"log path out":         {func(c *cri.ContainerConfig) { c.LogPath = "../../../../tmp/escaped.log" }, codes.InvalidArgument, "log_path"},
		"shares out of range":  {func(c *cri.ContainerConfig) { c.Linux.Resources.CpuShares = -1 }, codes.InvalidArgument, "resources.cpu_shares"},
		"memory below nothing": {func(c *cri.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = -5 }, codes.InvalidArgument, "resources.memory_limit_in_bytes"},
		"apparmor missing": {security(func(s *cri.LinuxContainerSecurityContext) {
			s.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "no-such-profile"}
		}), codes.FailedPrecondition, "apparmor"},
		"seccomp missing": {security(func(s *cri.LinuxContainerSecurityContext) {
			s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/no/such/profile.json"}
		}), codes.InvalidArgument, "seccomp.localhost_ref"},
	} {
		t.Run(name, func(t *testing.T) {
			wantCode(t, tryRun(pod, kit.ContainerConfig(t, testimage.Busybox, kit.Sleep(), tt.change)), tt.want, tt.field)
		})
	}
}

// tryRun creates and starts a container, and gives what went wrong.
func tryRun(pod *kit.Pod, config *cri.ContainerConfig) error {
	made, err := pod.TryCreate(config)
	if err != nil {
		return err
	}
	return pod.TryStart(made.GetContainerId())
}

func TestBadPods(t *testing.T) {
	n := node(t)
	for name, tt := range map[string]struct {
		change func(*cri.PodSandboxConfig)
		want   string
	}{
		"no metadata":   {func(c *cri.PodSandboxConfig) { c.Metadata = nil }, "config.metadata"},
		"no name":       {func(c *cri.PodSandboxConfig) { c.Metadata.Name = "" }, "metadata.name"},
		"long hostname": {func(c *cri.PodSandboxConfig) { c.Hostname = strings.Repeat("h", 65) }, "hostname"},
		"odd cgroup":    {func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = "/../../x" }, "linux.cgroup_parent"},
		"log directory": {func(c *cri.PodSandboxConfig) { c.LogDirectory = "relative/dir" }, "log_directory"},
	} {
		_, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: kit.PodConfig(t, n, tt.change)})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want InvalidArgument naming %q", name, err, tt.want)
		}
	}
	_, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{})
	wantCode(t, err, codes.InvalidArgument, "config")
}

func TestOversizedRequest(t *testing.T) {
	n := node(t)
	large := kit.PodConfig(t, n, func(c *cri.PodSandboxConfig) { c.Annotations = map[string]string{"large": strings.Repeat("x", 20<<20)} })
	_, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: large}, grpc.MaxCallSendMsgSize(64<<20))
	wantCode(t, err, codes.ResourceExhausted)
	fits := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) { c.Annotations = map[string]string{"large": strings.Repeat("x", 3<<20)} })
	if got := fits.Status().GetStatus().GetAnnotations()["large"]; len(got) != 3<<20 {
		t.Errorf("an annotation of 3 MiB came back with %d bytes", len(got))
	}
}
