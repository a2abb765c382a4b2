// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/e2e/kit"
	"crishim.dev/internal/testnode"
	"crishim.dev/internal/testnode/testimage"
)

// podCgroup is the pod's control group in a hierarchy, as a verbose status tells.
func podCgroup(t *testing.T, pod *kit.Pod, controller string) string {
	t.Helper()
	r, err := pod.Node.Runtime.PodSandboxStatus(kit.Context(t), &cri.PodSandboxStatusRequest{PodSandboxId: pod.ID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ CgroupPath string }
	if err := json.Unmarshal([]byte(r.GetInfo()["info"]), &info); err != nil {
		t.Fatal(err)
	}
	if unified() {
		return filepath.Join("/sys/fs/cgroup", info.CgroupPath)
	}
	return filepath.Join("/sys/fs/cgroup", controller, info.CgroupPath)
}

// unified says whether the host has version 2 of control groups.
func unified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// wantFile fails unless the file has the text, white space around it aside.
func wantFile(t *testing.T, want string, path ...string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(path...))
	if err != nil || strings.TrimSpace(string(got)) != want {
		t.Errorf("%s is %q, %v; want %s", filepath.Join(path...), got, err, want)
	}
}

// limit is one kind of limit: how a request sets it, and where the kernel has it.
type limit struct {
	set func(*cri.LinuxContainerResources)
	setting
}

// limits are those that every kernel of ours has, by field. Those in need of another are there with it.
func limits() map[string]limit {
	return map[string]limit{
		"cpu_shares": {func(r *cri.LinuxContainerResources) { r.CpuShares = 512 }, setting{"cpu", "cpu.shares", "512", "cpu.weight", "59"}},
		"cpu_quota": {func(r *cri.LinuxContainerResources) { r.CpuQuota, r.CpuPeriod = 50000, 100000 },
			setting{"cpu", "cpu.cfs_quota_us", "50000", "cpu.max", "50000 100000"}},
		"cpu_period": {func(r *cri.LinuxContainerResources) { r.CpuQuota, r.CpuPeriod = 20000, 50000 },
			setting{"cpu", "cpu.cfs_period_us", "50000", "cpu.max", "20000 50000"}},
		"memory_limit_in_bytes": {func(r *cri.LinuxContainerResources) { r.MemoryLimitInBytes = 64 << 20 },
			setting{"memory", "memory.limit_in_bytes", fmt.Sprint(64 << 20), "memory.max", fmt.Sprint(64 << 20)}},
		"memory_swap_limit_in_bytes": {func(r *cri.LinuxContainerResources) { r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = 64<<20, 96<<20 },
			setting{"memory", "memory.memsw.limit_in_bytes", fmt.Sprint(96 << 20), "memory.swap.max", fmt.Sprint(32 << 20)}},
		"cpuset_cpus": {func(r *cri.LinuxContainerResources) { r.CpusetCpus = "0" }, setting{"cpuset", "cpuset.cpus", "0", "cpuset.cpus", "0"}},
	}
}

// check looks where a limit must be, in the control group that dir gives for a controller.
func (l limit) check(t *testing.T, dir func(controller string) string) {
	t.Helper()
	file, want := l.v1, l.want1
	if unified() {
		file, want = l.v2, l.want2
	}
	wantFile(t, want, dir(l.controller), file)
}

// missingLimits are what hosts of one kind can't give: hugetlb without its controller, unified before version 2. A request must
// say so. apply makes it, and dir is as in check.
func missingLimits(t *testing.T, apply func(*cri.LinuxContainerResources) error, dir func(controller string) string) {
	t.Run("cpuset_mems", func(t *testing.T) { // with one node of memory all groups have the same
		if err := apply(&cri.LinuxContainerResources{CpusetMems: "63"}); err == nil || !strings.Contains(err.Error(), "cpuset_mems") {
			t.Errorf("a node of memory that is not there: %v; want an error naming cpuset_mems", err)
		}
	})
	t.Run("hugepage_limits", func(t *testing.T) {
		err := apply(&cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}})
		name := map[bool]string{true: "hugetlb.2MB.max", false: "hugetlb.2MB.limit_in_bytes"}[unified()]
		if _, missing := os.Stat(filepath.Join(dir("hugetlb"), name)); missing != nil {
			wantCode(t, err, codes.FailedPrecondition, "hugepage_limits", "2MB", "hugetlb")
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		wantFile(t, fmt.Sprint(4<<20), dir("hugetlb"), name)
	})
	t.Run("unified", func(t *testing.T) {
		err := apply(&cri.LinuxContainerResources{Unified: map[string]string{"memory.high": fmt.Sprint(32 << 20)}})
		if !unified() {
			wantCode(t, err, codes.InvalidArgument, "memory.high", "v2")
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		wantFile(t, fmt.Sprint(32<<20), dir("memory"), "memory.high")
	})
}

// Limits of a pod: each part of linux.resources and linux.overhead is in the pod's own control group.
func TestPodFieldLimits(t *testing.T) {
	n := node(t)
	for part, choose := range map[string]func(*cri.LinuxPodSandboxConfig) **cri.LinuxContainerResources{
		"resources": func(l *cri.LinuxPodSandboxConfig) **cri.LinuxContainerResources { return &l.Resources },
		"overhead":  func(l *cri.LinuxPodSandboxConfig) **cri.LinuxContainerResources { return &l.Overhead },
	} {
		t.Run(part, func(t *testing.T) {
			for field, l := range limits() {
				t.Run(field, func(t *testing.T) {
					pod := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) {
						r := &cri.LinuxContainerResources{}
						l.set(r)
						*choose(c.Linux) = r
					})
					l.check(t, func(controller string) string { return podCgroup(t, pod, controller) })
				})
			}
			var pod *kit.Pod
			missingLimits(t, func(r *cri.LinuxContainerResources) error {
				cfg := kit.PodConfig(t, n, func(c *cri.PodSandboxConfig) { *choose(c.Linux) = r })
				made, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: cfg})
				if err == nil {
					pod = &kit.Pod{Node: n, ID: made.GetPodSandboxId(), Config: cfg}
					removePod(t, n, pod.ID)
				}
				return err
			}, func(controller string) string {
				if pod == nil {
					return "/sys/fs/cgroup/" + controller
				}
				return podCgroup(t, pod, controller)
			})
		})
	}
}

// removePod removes a pod that kit did not make at the end of the test.
func removePod(t *testing.T, n *testnode.Node, id string) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), kit.Timeout)
		defer cancel()
		_, errStop := n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
		_, errRemove := n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
		if err := errors.Join(errStop, errRemove); err != nil {
			t.Error(err)
		}
	})
}

// The pod's limits can be changed, each by itself, and what was not named stays.
func TestPodUpdateFieldLimits(t *testing.T) {
	n := node(t)
	pod := kit.RunPod(t, n)
	dir := func(controller string) string { return podCgroup(t, pod, controller) }
	for part, request := range map[string]func(*cri.LinuxContainerResources) *cri.UpdatePodSandboxResourcesRequest{
		"resources": func(r *cri.LinuxContainerResources) *cri.UpdatePodSandboxResourcesRequest {
			return &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: pod.ID, Overhead: &cri.LinuxContainerResources{}, Resources: r}
		},
		"overhead": func(r *cri.LinuxContainerResources) *cri.UpdatePodSandboxResourcesRequest {
			return &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: pod.ID, Overhead: r}
		},
	} {
		t.Run(part, func(t *testing.T) {
			for field, l := range limits() {
				t.Run(field, func(t *testing.T) {
					pod = kit.RunPod(t, n)
					r := &cri.LinuxContainerResources{}
					l.set(r)
					if _, err := n.Runtime.UpdatePodSandboxResources(kit.Context(t), request(r)); err != nil {
						t.Fatal(err)
					}
					l.check(t, dir)
				})
			}
			pod = kit.RunPod(t, n)
			missingLimits(t, func(r *cri.LinuxContainerResources) error {
				_, err := n.Runtime.UpdatePodSandboxResources(kit.Context(t), request(r))
				return err
			}, dir)
		})
	}
	t.Run("both", func(t *testing.T) {
		pod = kit.RunPod(t, n)
		for _, r := range []*cri.UpdatePodSandboxResourcesRequest{
			{PodSandboxId: pod.ID, Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}},
			{PodSandboxId: pod.ID, Overhead: &cri.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}},
		} {
			if _, err := n.Runtime.UpdatePodSandboxResources(kit.Context(t), r); err != nil {
				t.Fatal(err)
			}
		}
		sum := limit{setting: setting{"memory", "memory.limit_in_bytes", fmt.Sprint(80 << 20), "memory.max", fmt.Sprint(80 << 20)}}
		sum.check(t, dir)
	})
}

func TestPodField(t *testing.T) {
	n := node(t)
	fails := func(want codes.Code, part string, change func(*cri.PodSandboxConfig)) func(*testing.T) {
		return func(t *testing.T) {
			made, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: kit.PodConfig(t, n, change)})
			if err == nil {
				removePod(t, n, made.GetPodSandboxId())
			}
			wantCode(t, err, want, part)
		}
	}
	// beside runs a pod with one port mapping and, beside it, one with another.
	beside := func(a, b *cri.PortMapping) func(*testing.T) {
		return func(t *testing.T) {
			for _, p := range []*cri.PortMapping{a, b} {
				kit.RunPod(t, n, func(c *cri.PodSandboxConfig) { c.PortMappings = []*cri.PortMapping{p} })
			}
		}
	}
	for name, check := range map[string]func(*testing.T){
		"metadata": func(t *testing.T) {
			pod := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) { c.Metadata.Attempt = 7 })
			got, want := pod.Status().GetStatus().GetMetadata(), pod.Config.GetMetadata()
			if got.GetName() != want.GetName() || got.GetUid() != want.GetUid() || got.GetNamespace() != want.GetNamespace() || got.GetAttempt() != 7 {
				t.Errorf("metadata %v; want %v", got, want)
			}
		},
		"hostname": func(t *testing.T) {
			pod := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) { c.Hostname = "some-host" })
			if got := pod.Output(testimage.Busybox, []string{"sh", "-c", "hostname; cat /etc/hostname"}); got != "some-host\nsome-host\n" {
				t.Errorf("host name %q", got)
			}
		},
		"log_directory": func(t *testing.T) {
			pod := kit.RunPod(t, n)
			c := pod.Run(testimage.Busybox, []string{"echo", "text"})
			if s := c.Exited(); s.GetLogPath() != c.LogPath() || c.Text("stdout") != "text\n" {
				t.Errorf("log_path %q with %q", s.GetLogPath(), c.Text("stdout"))
			}
		},
		"dns_config": func(t *testing.T) {
			pod := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) {
				c.DnsConfig = &cri.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"a.example"}, Options: []string{"ndots:3"}}
			})
			got := pod.Output(testimage.Busybox, []string{"cat", "/etc/resolv.conf"})
			for _, want := range []string{"nameserver 192.0.2.53", "search a.example", "options ndots:3"} {
				if !strings.Contains(got, want) {
					t.Errorf("resolv.conf %q; want %s", got, want)
				}
			}
		},
		"protocol": beside(&cri.PortMapping{Protocol: cri.Protocol_UDP, ContainerPort: 53, HostPort: 18201}, &cri.PortMapping{Protocol: cri.Protocol_TCP, ContainerPort: 53, HostPort: 18201}),
		"host_ip":  beside(&cri.PortMapping{HostIp: "127.0.0.1", ContainerPort: 53, HostPort: 18202}, &cri.PortMapping{HostIp: testnode.NodeIP, ContainerPort: 53, HostPort: 18202}),
		"host_port": func(t *testing.T) {
			use := func(c *cri.PodSandboxConfig) {
				c.PortMappings = []*cri.PortMapping{{ContainerPort: 80, HostPort: 18203}}
			}
			kit.RunPod(t, n, use)
			made, err := n.Runtime.RunPodSandbox(kit.Context(t), &cri.RunPodSandboxRequest{Config: kit.PodConfig(t, n, use)})
			if err == nil {
				removePod(t, n, made.GetPodSandboxId())
				t.Error("two pods have one host port")
			}
		},
		"labels": func(t *testing.T) {
			s := kit.RunPod(t, n, func(c *cri.PodSandboxConfig) {
				c.Labels, c.Annotations = map[string]string{"a": "b"}, map[string]string{"c": "d"}
			}).Status().GetStatus()
			if s.GetLabels()["a"] != "b" || s.GetAnnotations()["c"] != "d" {
				t.Errorf("labels %v, annotations %v", s.GetLabels(), s.GetAnnotations())
			}
		},
		"network": func(t *testing.T) {
			pod := kit.RunPod(t, n, podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Network = cri.NamespaceMode_NODE }))
			if ip := pod.Status().GetStatus().GetNetwork().GetIp(); ip != "" {
				t.Errorf("a pod with the node's network has the address %s", ip)
			}
		},
		"privileged": func(t *testing.T) {
			pod := kit.RunPod(t, n, podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.Privileged = true }))
			_, err := n.Runtime.CreateContainer(kit.Context(t), &cri.CreateContainerRequest{PodSandboxId: pod.ID, Config: kit.ContainerConfig(t, testimage.Busybox, kit.Sleep(),
				security(func(s *cri.LinuxContainerSecurityContext) { s.Privileged = true }))})
			if err != nil {
				t.Error(err)
			}
		},
		"target_id": fails(codes.InvalidArgument, "target_id", podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.TargetId = "x" })),
		"userns_options.mode": func(t *testing.T) {
			kit.RunPod(t, n, podSecurity(func(s *cri.LinuxSandboxSecurityContext) {
				s.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}
			}))
		},
		"container_id": fails(codes.InvalidArgument, "container_id", podSecurity(func(s *cri.LinuxSandboxSecurityContext) {
			uids := idRange(1 << 20)
			uids[0].ContainerId = 1
			s.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Uids: uids, Gids: idRange(1 << 20)}
		})),
		"container_id_of_groups": fails(codes.InvalidArgument, "container_id", podSecurity(func(s *cri.LinuxSandboxSecurityContext) {
			gids := idRange(1 << 20)
			gids[0].ContainerId = 1
			s.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Uids: idRange(1 << 20), Gids: gids}
		})),
		"resources.oom_score_adj": fails(codes.InvalidArgument, "linux.resources.oom_score_adj", func(c *cri.PodSandboxConfig) {
			c.Linux.Resources = &cri.LinuxContainerResources{OomScoreAdj: 5}
		}),
		"overhead.oom_score_adj": fails(codes.InvalidArgument, "linux.overhead.oom_score_adj", func(c *cri.PodSandboxConfig) {
			c.Linux.Overhead = &cri.LinuxContainerResources{OomScoreAdj: 5}
		}),
		"windows": fails(codes.InvalidArgument, "windows", func(c *cri.PodSandboxConfig) { c.Windows = &cri.WindowsPodSandboxConfig{} }),
		"moot": func(t *testing.T) {
			kit.RunPod(t, n, podSecurity(func(s *cri.LinuxSandboxSecurityContext) {
				s.RunAsUser, s.RunAsGroup = &cri.Int64Value{Value: 1000}, &cri.Int64Value{Value: 1000}
				s.ReadonlyRootfs, s.SupplementalGroups, s.SupplementalGroupsPolicy = true, []int64{5}, cri.SupplementalGroupsPolicy_Strict
				s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
				s.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
				s.SelinuxOptions = &cri.SELinuxOption{Level: "s0"}
			}))
		},
	} {
		t.Run(name, check)
	}
}
