// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode/testimage"
)

// Limits of a container, as it is made.
func TestContainerFieldLimits(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	var c *kit.Container
	dir := func(controller string) string {
		if c == nil {
			return "/sys/fs/cgroup/" + controller
		}
		return c.Cgroup(controller)
	}
	for field, l := range limits() {
		t.Run(field, func(t *testing.T) {
			c = pod.Run(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) { l.set(c.Linux.Resources) })
			l.check(t, dir)
		})
	}
	missingLimits(t, func(r *cri.LinuxContainerResources) error {
		c = pod.Create(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) { c.Linux.Resources = r })
		err := c.TryStart()
		if err != nil {
			c = nil
		}
		return err
	}, dir)
}

// Limits of a container, as they are changed while it runs.
func TestContainerUpdateFieldLimits(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	var c *kit.Container
	update := func(r *cri.LinuxContainerResources) error {
		c = pod.Run(testimage.Busybox, kit.Sleep())
		_, err := n.Runtime.UpdateContainerResources(kit.Context(t), &cri.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: r})
		return err
	}
	dir := func(controller string) string { return c.Cgroup(controller) }
	for field, l := range limits() {
		t.Run(field, func(t *testing.T) {
			r := &cri.LinuxContainerResources{}
			l.set(r)
			if err := update(r); err != nil {
				t.Fatal(err)
			}
			l.check(t, dir)
		})
	}
	t.Run("oom_score_adj", func(t *testing.T) {
		if err := update(&cri.LinuxContainerResources{OomScoreAdj: 321}); err != nil {
			t.Fatal(err)
		}
		if got := c.Exec("cat", "/proc/1/oom_score_adj"); got != "321\n" {
			t.Errorf("oom_score_adj %q", got)
		}
	})
	c = pod.Run(testimage.Busybox, kit.Sleep())
	missingLimits(t, update, func(controller string) string {
		if controller == "hugetlb" && !unified() {
			return "/sys/fs/cgroup/" + controller
		}
		return c.Cgroup(controller)
	})
}

func TestContainerField(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	mappedPod := kit.RunPod(t, n, mapped(3<<20))
	fails := func(pod *kit.Pod, want codes.Code, part string, mods ...func(*cri.ContainerConfig)) func(*testing.T) {
		return func(t *testing.T) {
			_, err := pod.TryCreate(kit.ContainerConfig(t, testimage.Busybox, kit.Sleep(), mods...))
			wantCode(t, err, want, part)
		}
	}
	for name, check := range map[string]func(*testing.T){
		"metadata": func(t *testing.T) {
			c := pod.Create(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) { c.Metadata.Attempt = 9 })
			if got := c.Status().GetMetadata(); got.GetName() != c.Config.Metadata.Name || got.GetAttempt() != 9 {
				t.Errorf("metadata %v", got)
			}
		},
		"image": func(t *testing.T) {
			c := pod.Create(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) {
				c.Image.Annotations, c.Image.UserSpecifiedImage, c.Image.ImageRef = map[string]string{"a": "b"}, "busybox", "some-digest"
			})
			if got := c.Status().GetImage(); got.GetImage() != testimage.Busybox || got.GetAnnotations()["a"] != "b" || got.GetUserSpecifiedImage() != "busybox" || got.GetImageRef() != "some-digest" {
				t.Errorf("image %v; want it verbatim", got)
			}
		},
		"image_handler": fails(pod, codes.InvalidArgument, "image.runtime_handler", func(c *cri.ContainerConfig) { c.Image.RuntimeHandler = "nobody" }),
		"labels": func(t *testing.T) {
			s := pod.Create(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) {
				c.Labels, c.Annotations = map[string]string{"a": "b"}, map[string]string{"c": "d"}
			}).Status()
			if s.GetLabels()["a"] != "b" || s.GetAnnotations()["c"] != "d" {
				t.Errorf("labels %v, annotations %v", s.GetLabels(), s.GetAnnotations())
			}
		},
		"log_path": func(t *testing.T) {
			c := pod.Run(testimage.Busybox, []string{"echo", "text"})
			c.Exited()
			if got := c.Text("stdout"); got != "text\n" {
				t.Errorf("log %q", got)
			}
		},
		"stdin": func(t *testing.T) {
			c := pod.Run(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) { c.Stdin = true })
			if got := c.Exec("readlink", "/proc/1/fd/0"); strings.Contains(got, "null") {
				t.Errorf("standard input is %s", got)
			}
		},
		"tty": func(t *testing.T) {
			c := pod.Run(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) { c.Tty = true })
			if got := c.Exec("readlink", "/proc/1/fd/1"); !strings.HasPrefix(got, "/dev/pts/") && !strings.HasPrefix(got, "/dev/console") {
				t.Errorf("standard output is %s", got)
			}
		},
		"mount_image": func(t *testing.T) {
			c := pod.Create(testimage.Busybox, kit.Sleep(), mount(&cri.Mount{ContainerPath: "/v", Image: &cri.ImageSpec{
				Image: testimage.Busybox, Annotations: map[string]string{"a": "b"}, UserSpecifiedImage: "busybox", ImageRef: "some-digest",
			}}))
			got := c.Status().GetMounts()[0].GetImage()
			if got.GetAnnotations()["a"] != "b" || got.GetUserSpecifiedImage() != "busybox" || got.GetImageRef() != "some-digest" {
				t.Errorf("image of the mount %v; want it verbatim", got)
			}
		},
		"mount_image_handler": fails(pod, codes.InvalidArgument, "mounts[0].image.runtime_handler",
			mount(&cri.Mount{ContainerPath: "/v", Image: &cri.ImageSpec{Image: testimage.Busybox, RuntimeHandler: "nobody"}})),
		"recursive_read_only": func(t *testing.T) {
			dir := t.TempDir()
			below := filepath.Join(dir, "below")
			if err := os.Mkdir(below, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("tmpfs", below, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(below, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			c := pod.Run(testimage.Busybox, kit.Sleep(), mount(&cri.Mount{HostPath: dir, ContainerPath: "/v", Readonly: true, RecursiveReadOnly: true}))
			if r, err := c.ExecSync(10, "touch", "/v/below/x"); err != nil || r.GetExitCode() == 0 {
				t.Errorf("what is mounted below was written: %v, %v", r, err)
			}
		},
		"uidMappings": func(t *testing.T) {
			dir := t.TempDir()
			c := mappedPod.Run(testimage.Busybox, kit.Sleep(), mappedVolume(3<<20, &cri.Mount{HostPath: dir, ContainerPath: "/v"}))
			c.Exec("touch", "/v/x")
			if uid, gid := owner(t, filepath.Join(dir, "x")); uid != 0 || gid != 0 {
				t.Errorf("the file's owner is %d:%d; want 0:0", uid, gid)
			}
		},
		"uidMappings_container_id": fails(mappedPod, codes.InvalidArgument, "mounts[0].uidMappings", mount(&cri.Mount{
			HostPath: "/tmp", ContainerPath: "/v", UidMappings: []*cri.IDMapping{{HostId: 3 << 20, ContainerId: 1, Length: 65536}}, GidMappings: idRange(3 << 20),
		})),
		"gidMappings_container_id": fails(mappedPod, codes.InvalidArgument, "mounts[0].gidMappings", mount(&cri.Mount{
			HostPath: "/tmp", ContainerPath: "/v", UidMappings: idRange(3 << 20), GidMappings: []*cri.IDMapping{{HostId: 3 << 20, ContainerId: 1, Length: 65536}},
		})),
		"device": func(t *testing.T) {
			c := pod.Run(testimage.Busybox, kit.Sleep(), func(c *cri.ContainerConfig) {
				c.Devices = []*cri.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/mine", Permissions: "r"}}
			})
			if got := c.Exec("stat", "-c", "%t:%T", "/dev/mine"); got != "1:5\n" {
				t.Errorf("device %q", got)
			}
		},
		"device_permissions": fails(pod, codes.InvalidArgument, "devices[0].permissions", func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/mine", Permissions: "x"}}
		}),
		"add_ambient_capabilities": func(t *testing.T) {
			got := pod.Output(testimage.Busybox, []string{"grep", "CapAmb", "/proc/self/status"}, security(func(s *cri.LinuxContainerSecurityContext) {
				s.RunAsUser, s.Capabilities = &cri.Int64Value{Value: 1000}, &cri.Capability{AddAmbientCapabilities: []string{"CHOWN"}}
			}))
			if !strings.Contains(got, "0000000000000001") {
				t.Errorf("ambient capabilities %q", got)
			}
		},
		"network": fails(pod, codes.InvalidArgument, "namespace_options.network", security(func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions.Network = cri.NamespaceMode_NODE })),
		"ipc":     fails(pod, codes.InvalidArgument, "namespace_options.ipc", security(func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions.Ipc = cri.NamespaceMode_NODE })),
		"pid":     fails(pod, codes.InvalidArgument, "namespace_options.pid", security(func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions.Pid = cri.NamespaceMode_NODE })),
		"userns_options.mode": fails(mappedPod, codes.InvalidArgument, "userns_options.mode", security(func(s *cri.LinuxContainerSecurityContext) {
			s.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}
		})),
		"userns_options": func(t *testing.T) {
			mappedPod.Create(testimage.Busybox, kit.Sleep(), security(func(s *cri.LinuxContainerSecurityContext) {
				s.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Uids: idRange(3 << 20), Gids: idRange(3 << 20)}
			}))
		},
		"userns_options_uids_container_id": fails(mappedPod, codes.InvalidArgument, "userns_options.uids", security(func(s *cri.LinuxContainerSecurityContext) {
			s.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Uids: []*cri.IDMapping{{HostId: 3 << 20, ContainerId: 1, Length: 65536}}, Gids: idRange(3 << 20)}
		})),
		"userns_options_gids_container_id": fails(mappedPod, codes.InvalidArgument, "userns_options.gids", security(func(s *cri.LinuxContainerSecurityContext) {
			s.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Uids: idRange(3 << 20), Gids: []*cri.IDMapping{{HostId: 3 << 20, ContainerId: 1, Length: 65536}}}
		})),
		"run_as": func(t *testing.T) {
			got := pod.Output(testimage.Busybox, []string{"sh", "-c", "id -u; id -g; id -G"}, security(func(s *cri.LinuxContainerSecurityContext) {
				s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = &cri.Int64Value{Value: 1000}, &cri.Int64Value{Value: 2000}, []int64{3000}
			}))
			if got != "1000\n2000\n2000 3000\n" {
				t.Errorf("user and groups %q", got)
			}
		},
		"readonly_paths": func(t *testing.T) {
			c := pod.Run(testimage.Busybox, kit.Sleep(), security(func(s *cri.LinuxContainerSecurityContext) { s.ReadonlyPaths = []string{"/tmp"} }))
			if r, err := c.ExecSync(10, "touch", "/tmp/x"); err != nil || r.GetExitCode() == 0 {
				t.Errorf("a read-only path was written: %v, %v", r, err)
			}
		},
		"seccomp": func(t *testing.T) {
			profile := filepath.Join(t.TempDir(), "profile.json")
			if err := os.WriteFile(profile, []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`), 0o644); err != nil {
				t.Fatal(err)
			}
			for _, set := range []func(*cri.LinuxContainerSecurityContext){
				func(s *cri.LinuxContainerSecurityContext) {
					s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: profile}
				},
				func(s *cri.LinuxContainerSecurityContext) { s.SeccompProfilePath = "localhost/" + profile }, //nolint:staticcheck // still sent by old callers
			} {
				c := pod.Run(testimage.Busybox, kit.Sleep(), security(set))
				if r, err := c.ExecSync(10, "mkdir", "/x"); err != nil || r.GetExitCode() == 0 {
					t.Errorf("mkdir succeeds: %v, %v", r, err)
				}
			}
		},
		"apparmor": func(t *testing.T) {
			code, why := codes.InvalidArgument, "no-such-profile"
			if on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || on[0] != 'Y' {
				code, why = codes.FailedPrecondition, "this kernel has no AppArmor"
			}
			fails(pod, code, why, security(func(s *cri.LinuxContainerSecurityContext) {
				s.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "no-such-profile"}
			}))(t)
		},
		"apparmor_profile": fails(pod, codes.InvalidArgument, "apparmor_profile", security(func(s *cri.LinuxContainerSecurityContext) { s.ApparmorProfile = "strange" })), //nolint:staticcheck // refused
		"windows":          fails(pod, codes.InvalidArgument, "windows", func(c *cri.ContainerConfig) { c.Windows = &cri.WindowsContainerConfig{} }),
		"moot": func(t *testing.T) {
			if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
				fails(pod, codes.FailedPrecondition, "selinux_options", security(func(s *cri.LinuxContainerSecurityContext) { s.SelinuxOptions = &cri.SELinuxOption{Level: "s0"} }))(t)
				return
			}
			pod.Run(testimage.Busybox, kit.Sleep(), mount(&cri.Mount{HostPath: t.TempDir(), ContainerPath: "/v", SelinuxRelabel: true}),
				security(func(s *cri.LinuxContainerSecurityContext) { s.SelinuxOptions = &cri.SELinuxOption{Level: "s0"} }))
		},
	} {
		t.Run(name, check)
	}
	for name, metadata := range map[string]*cri.PodSandboxMetadata{
		"sandbox_config.name": {Name: "other"}, "sandbox_config.uid": {Uid: "other"}, "sandbox_config.namespace": {Namespace: "other"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := n.Runtime.CreateContainer(kit.Context(t), &cri.CreateContainerRequest{
				PodSandboxId: pod.ID, Config: kit.ContainerConfig(t, testimage.Busybox, kit.Sleep()), SandboxConfig: &cri.PodSandboxConfig{Metadata: metadata},
			})
			wantCode(t, err, codes.InvalidArgument, "sandbox_config.metadata")
		})
	}
}
