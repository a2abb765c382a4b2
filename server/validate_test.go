// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/container"
)

// resourceFaults are changes of resources, by the field that the error must name.
var resourceFaults = []struct {
	field string
	set   func(*cri.LinuxContainerResources)
}{
	{"cpu_period", func(r *cri.LinuxContainerResources) { r.CpuPeriod = 999 }},
	{"cpu_period", func(r *cri.LinuxContainerResources) { r.CpuPeriod = 1000001 }},
	{"cpu_quota", func(r *cri.LinuxContainerResources) { r.CpuQuota = -2 }},
	{"cpu_quota", func(r *cri.LinuxContainerResources) { r.CpuQuota = 5 }},
	{"cpu_shares", func(r *cri.LinuxContainerResources) { r.CpuShares = -1 }},
	{"memory_limit_in_bytes", func(r *cri.LinuxContainerResources) { r.MemoryLimitInBytes = -2 }},
	{"memory_swap_limit_in_bytes", func(r *cri.LinuxContainerResources) { r.MemorySwapLimitInBytes = -2 }},
	{"memory_swap_limit_in_bytes", func(r *cri.LinuxContainerResources) { r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = 2, 1 }},
	{"oom_score_adj", func(r *cri.LinuxContainerResources) { r.OomScoreAdj = 1001 }},
	{"cpuset_cpus", func(r *cri.LinuxContainerResources) { r.CpusetCpus = "0-" }},
	{"cpuset_cpus", func(r *cri.LinuxContainerResources) { r.CpusetCpus = "0\n1" }},
	{"cpuset_mems", func(r *cri.LinuxContainerResources) { r.CpusetMems = "all" }},
	{"hugepage_limits[0].page_size", func(r *cri.LinuxContainerResources) { r.HugepageLimits = []*cri.HugepageLimit{{PageSize: "../2MB"}} }},
	{"hugepage_limits[1].page_size", func(r *cri.LinuxContainerResources) {
		r.HugepageLimits = []*cri.HugepageLimit{{PageSize: "2MB"}, {PageSize: "2MB"}}
	}},
	{`unified["../cgroup.procs"]`, func(r *cri.LinuxContainerResources) { r.Unified = map[string]string{"../cgroup.procs": "1"} }},
	{`unified["cgroup.freeze"]`, func(r *cri.LinuxContainerResources) { r.Unified = map[string]string{"cgroup.freeze": "1"} }},
	{`unified["memory.max"]`, func(r *cri.LinuxContainerResources) { r.Unified = map[string]string{"memory.max": ""} }},
	{`unified["memory.max"]`, func(r *cri.LinuxContainerResources) { r.Unified = map[string]string{"memory.max": "1\n2"} }},
}

type podFault struct {
	field string
	set   func(*cri.PodSandboxConfig)
}

func podFaults() []podFault {
	sc := func(c *cri.PodSandboxConfig) *cri.LinuxSandboxSecurityContext { return c.Linux.SecurityContext }
	ns := func(c *cri.PodSandboxConfig) *cri.NamespaceOption { return sc(c).NamespaceOptions }
	sysctl := func(name, value string) func(*cri.PodSandboxConfig) {
		return func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{name: value} }
	}
	userns := func(mode cri.NamespaceMode, uids, gids []*cri.IDMapping) func(*cri.PodSandboxConfig) {
		return func(c *cri.PodSandboxConfig) {
			ns(c).UsernsOptions = &cri.UserNamespace{Mode: mode, Uids: uids, Gids: gids}
		}
	}
	port := func(p *cri.PortMapping) func(*cri.PodSandboxConfig) {
		return func(c *cri.PodSandboxConfig) { c.PortMappings = []*cri.PortMapping{p} }
	}
	m, long := &cri.IDMapping{HostId: 1, Length: 1}, strings.Repeat("x", 254)
	faults := []podFault{
		{"metadata", func(c *cri.PodSandboxConfig) { c.Metadata = nil }},
		{"metadata.name", func(c *cri.PodSandboxConfig) { c.Metadata.Name = "" }},
		{"metadata.name", func(c *cri.PodSandboxConfig) { c.Metadata.Name = "a/b" }},
		{"metadata.name", func(c *cri.PodSandboxConfig) { c.Metadata.Name = long }},
		{"metadata.name", func(c *cri.PodSandboxConfig) { c.Metadata.Name = "a\nb" }},
		{"metadata.uid", func(c *cri.PodSandboxConfig) { c.Metadata.Uid = ".." }},
		{"metadata.uid", func(c *cri.PodSandboxConfig) { c.Metadata.Uid = "" }},
		{"metadata.namespace", func(c *cri.PodSandboxConfig) { c.Metadata.Namespace = "" }},
		{"hostname", func(c *cri.PodSandboxConfig) { c.Hostname = long }},
		{"hostname", func(c *cri.PodSandboxConfig) { c.Hostname = "a/b" }},
		{"hostname", func(c *cri.PodSandboxConfig) { c.Hostname = "a\n127.0.0.1 evil" }},
		{"log_directory", func(c *cri.PodSandboxConfig) { c.LogDirectory = "var/log" }},
		{"log_directory", func(c *cri.PodSandboxConfig) { c.LogDirectory = "/var/log/../../etc" }},
		{"dns_config.servers[0]", func(c *cri.PodSandboxConfig) { c.DnsConfig = &cri.DNSConfig{Servers: []string{"dns.example"}} }},
		{"dns_config.searches[0]", func(c *cri.PodSandboxConfig) {
			c.DnsConfig = &cri.DNSConfig{Searches: []string{"a\nnameserver 1.2.3.4"}}
		}},
		{"dns_config.options[0]", func(c *cri.PodSandboxConfig) { c.DnsConfig = &cri.DNSConfig{Options: []string{""}} }},
		{"port_mappings[0].host_port", port(&cri.PortMapping{HostPort: 65536, ContainerPort: 1})},
		{"port_mappings[0].container_port", port(&cri.PortMapping{HostPort: 80})},
		{"port_mappings[0].container_port", port(&cri.PortMapping{ContainerPort: -1})},
		{"port_mappings[0].host_ip", port(&cri.PortMapping{HostIp: "x"})},
		{"port_mappings[1].host_port", func(c *cri.PodSandboxConfig) {
			c.PortMappings = []*cri.PortMapping{{HostPort: 80, ContainerPort: 1}, {HostPort: 80, ContainerPort: 2}}
		}},
		{"port_mappings[0].protocol", port(&cri.PortMapping{Protocol: 9})},
		{"labels", func(c *cri.PodSandboxConfig) { c.Labels = map[string]string{"": "x"} }},
		{"annotations", func(c *cri.PodSandboxConfig) { c.Annotations = map[string]string{"": "x"} }},
		{"windows", func(c *cri.PodSandboxConfig) { c.Windows = &cri.WindowsPodSandboxConfig{} }},
		{"linux.cgroup_parent", func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = "/kubepods/../.." }},
		{"linux.cgroup_parent", func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = "/kube\x00pods" }},
		{`linux.sysctls["net/../kernel/core_pattern"]`, sysctl("net/../kernel/core_pattern", "x")},
		{`linux.sysctls["kernel.core_pattern"]`, sysctl("kernel.core_pattern", "|/x")},
		{`linux.sysctls["kernel.shmmax"]`, sysctl("kernel.shmmax", "1\n2")},
		{`linux.sysctls["net.ipv4.tcp_syncookies"]`, func(c *cri.PodSandboxConfig) {
			ns(c).Network = cri.NamespaceMode_NODE
			sysctl("net.ipv4.tcp_syncookies", "1")(c)
		}},
		{`linux.sysctls["kernel/sem"]`, func(c *cri.PodSandboxConfig) { ns(c).Ipc = cri.NamespaceMode_NODE; sysctl("kernel/sem", "1")(c) }},
		{"namespace_options.network", func(c *cri.PodSandboxConfig) { ns(c).Network = cri.NamespaceMode_CONTAINER }},
		{"namespace_options.ipc", func(c *cri.PodSandboxConfig) { ns(c).Ipc = cri.NamespaceMode_TARGET }},
		{"namespace_options.pid", func(c *cri.PodSandboxConfig) { ns(c).Pid = cri.NamespaceMode_TARGET }},
		{"namespace_options.pid", func(c *cri.PodSandboxConfig) { ns(c).Pid = 17 }},
		{"namespace_options.target_id", func(c *cri.PodSandboxConfig) { ns(c).TargetId = "x" }},
		{"userns_options.mode", userns(cri.NamespaceMode_CONTAINER, nil, nil)},
		{"userns_options.uids", userns(cri.NamespaceMode_POD, nil, []*cri.IDMapping{m})},
		{"userns_options.gids", userns(cri.NamespaceMode_POD, []*cri.IDMapping{m}, []*cri.IDMapping{m, m})},
		{"userns_options.uids", userns(cri.NamespaceMode_NODE, []*cri.IDMapping{m}, nil)},
		{"userns_options.uids[0].length", userns(cri.NamespaceMode_POD, []*cri.IDMapping{{}}, []*cri.IDMapping{m})},
		{"userns_options.gids[0].length", userns(cri.NamespaceMode_POD, []*cri.IDMapping{m}, []*cri.IDMapping{{HostId: 1<<32 - 1, Length: 2}})},
		{"security_context.run_as_user", func(c *cri.PodSandboxConfig) { sc(c).RunAsUser = &cri.Int64Value{Value: -1} }},
		{"security_context.run_as_group", func(c *cri.PodSandboxConfig) { sc(c).RunAsGroup = &cri.Int64Value{Value: 1} }},
		{"security_context.supplemental_groups[0]", func(c *cri.PodSandboxConfig) { sc(c).SupplementalGroups = []int64{1 << 32} }},
		{"security_context.supplemental_groups_policy", func(c *cri.PodSandboxConfig) { sc(c).SupplementalGroupsPolicy = 9 }},
		{"selinux_options.user", func(c *cri.PodSandboxConfig) { sc(c).SelinuxOptions = &cri.SELinuxOption{User: "a:b"} }},
		{"seccomp.localhost_ref", func(c *cri.PodSandboxConfig) { sc(c).Seccomp = &cri.SecurityProfile{LocalhostRef: "/x"} }},
		{"seccomp.localhost_ref", func(c *cri.PodSandboxConfig) {
			sc(c).Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "x"}
		}},
		{"apparmor.localhost_ref", func(c *cri.PodSandboxConfig) {
			sc(c).Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost}
		}},
		{"apparmor.profile_type", func(c *cri.PodSandboxConfig) { sc(c).Apparmor = &cri.SecurityProfile{ProfileType: 7} }},
		{"seccomp_profile_path", func(c *cri.PodSandboxConfig) { sc(c).SeccompProfilePath = "strange" }}, //nolint:staticcheck // refused
	}
	for _, r := range resourceFaults {
		faults = append(faults,
			podFault{"linux.resources." + r.field, func(c *cri.PodSandboxConfig) {
				c.Linux.Resources = &cri.LinuxContainerResources{}
				r.set(c.Linux.Resources)
			}},
			podFault{"linux.overhead." + r.field, func(c *cri.PodSandboxConfig) {
				c.Linux.Overhead = &cri.LinuxContainerResources{}
				r.set(c.Linux.Overhead)
			}})
	}
	return faults
}

func TestRunPodSandboxNamesTheFault(t *testing.T) {
	s := serveFakes(t)
	_, err := s.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{})
	wantCode(t, "no config", err, codes.InvalidArgument, "config: is missing")
	for i, tt := range podFaults() {
		c := podConfig()
		tt.set(c)
		_, err := s.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: c})
		wantCode(t, fmt.Sprintf("%d %s", i, tt.field), err, codes.InvalidArgument, tt.field+": ")
	}
	if got := s.transcript(); got != "" {
		t.Errorf("the manager was called: %s", got)
	}
}

func TestRunPodSandboxAccepts(t *testing.T) {
	s := serveFakes(t)
	c := podConfig()
	c.Hostname = "web-0"
	c.DnsConfig = &cri.DNSConfig{Servers: []string{"10.0.0.10", "fe80::1%eth0"}, Searches: []string{"svc.cluster.local", "."}, Options: []string{"ndots:5"}}
	c.PortMappings = []*cri.PortMapping{{}, {ContainerPort: 80}, {ContainerPort: 80, HostPort: 8080, HostIp: "::1", Protocol: cri.Protocol_SCTP}}
	c.Linux.CgroupParent = "kubepods-burstable-pod_x.slice"
	c.Linux.Sysctls = map[string]string{"net/ipv4/conf/eth0.1/forwarding": "1", "kernel.shm_rmid_forced": "1", "kernel.sem": "1 2 3 4", "fs.mqueue.msg_max": "20"}
	sc := c.Linux.SecurityContext
	sc.RunAsUser, sc.RunAsGroup = &cri.Int64Value{Value: 1000}, &cri.Int64Value{Value: 0}
	sc.SeccompProfilePath = "localhost//etc/seccomp.json" //nolint:staticcheck // still sent by old callers
	sc.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Uids: []*cri.IDMapping{{HostId: 65536, Length: 65536}}, Gids: []*cri.IDMapping{{HostId: 65536, Length: 65536}}}
	c.Linux.Resources = &cri.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: -1, MemoryLimitInBytes: 1 << 30, MemorySwapLimitInBytes: 1 << 30, CpusetCpus: "0,2-3",
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}}, Unified: map[string]string{"memory.high": "max", "hugetlb.2MB.max": "1", "io.weight": "default 100"},
	}
	r, err := s.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: c})
	if err != nil {
		t.Fatal(err)
	}
	pod, err := fakePods{s.node}.Get(r.PodSandboxId)
	if err != nil {
		t.Fatal(err)
	}
	want := proto.Clone(c).(*cri.PodSandboxConfig)
	want.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/etc/seccomp.json"}
	if !proto.Equal(pod.Config, want) {
		t.Errorf("the manager got %v\nwant %v", pod.Config, want)
	}
}

type containerFault struct {
	field string
	set   func(*cri.ContainerConfig)
}

func containerFaults() []containerFault {
	sc := func(c *cri.ContainerConfig) *cri.LinuxContainerSecurityContext { return c.Linux.SecurityContext }
	mount := func(m *cri.Mount) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{m} }
	}
	device := func(d *cri.Device) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) { c.Devices = []*cri.Device{d} }
	}
	env := func(e *cri.KeyValue) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) { c.Envs = []*cri.KeyValue{e} }
	}
	caps := func(c *cri.Capability) func(*cri.ContainerConfig) {
		return func(cfg *cri.ContainerConfig) { sc(cfg).Capabilities = c }
	}
	image := &cri.ImageSpec{Image: "x"}
	faults := []containerFault{
		{"metadata", func(c *cri.ContainerConfig) { c.Metadata = nil }},
		{"metadata.name", func(c *cri.ContainerConfig) { c.Metadata.Name = "../x" }},
		{"image", func(c *cri.ContainerConfig) { c.Image = nil }},
		{"image.image", func(c *cri.ContainerConfig) { c.Image.Image = "" }},
		{"image.image", func(c *cri.ContainerConfig) { c.Image.Image = "a b" }},
		{"command[1]", func(c *cri.ContainerConfig) { c.Command = []string{"sh", "a\x00b"} }},
		{"args[0]", func(c *cri.ContainerConfig) { c.Args = []string{strings.Repeat("x", maxArgument+1)} }},
		{"working_dir", func(c *cri.ContainerConfig) { c.WorkingDir = "tmp" }},
		{"envs[0].key", env(&cri.KeyValue{Value: []byte("x")})},
		{"envs[0].key", env(&cri.KeyValue{Key: "A=B"})},
		{"envs[0].value", env(&cri.KeyValue{Key: "A", Value: []byte("a\x00b")})},
		{"mounts[0].container_path", mount(&cri.Mount{HostPath: "/x"})},
		{"mounts[0].container_path", mount(&cri.Mount{HostPath: "/x", ContainerPath: "x"})},
		{"mounts[0].host_path", mount(&cri.Mount{ContainerPath: "/x"})},
		{"mounts[0].host_path", mount(&cri.Mount{ContainerPath: "/x", HostPath: "/" + strings.Repeat("x", maxPath)})},
		{"mounts[0].host_path", mount(&cri.Mount{ContainerPath: "/x", HostPath: "/x", Image: image})},
		{"mounts[0].image_sub_path", mount(&cri.Mount{ContainerPath: "/x", HostPath: "/x", ImageSubPath: "a"})},
		{"mounts[0].image_sub_path", mount(&cri.Mount{ContainerPath: "/x", Image: image, ImageSubPath: "../a"})},
		{"mounts[0].propagation", mount(&cri.Mount{ContainerPath: "/x", HostPath: "/x", Propagation: 5})},
		{"mounts[0].recursive_read_only", mount(&cri.Mount{ContainerPath: "/x", HostPath: "/x", RecursiveReadOnly: true})},
		{"mounts[0].recursive_read_only", mount(&cri.Mount{
			ContainerPath: "/x", HostPath: "/x", RecursiveReadOnly: true, Readonly: true, Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
		})},
		{"mounts[0].uidMappings[0].length", mount(&cri.Mount{ContainerPath: "/x", HostPath: "/x", UidMappings: []*cri.IDMapping{{}}})},
		{"mounts[0].gidMappings[0].length", mount(&cri.Mount{ContainerPath: "/x", HostPath: "/x", GidMappings: []*cri.IDMapping{{}}})},
		{"mounts[0].mount_options[0]", mount(&cri.Mount{ContainerPath: "/x", HostPath: "/x", MountOptions: []string{"bind"}})},
		{"devices[0].container_path", device(&cri.Device{HostPath: "/dev/x"})},
		{"devices[0].host_path", device(&cri.Device{ContainerPath: "/dev/x"})},
		{"devices[0].permissions", device(&cri.Device{ContainerPath: "/dev/x", HostPath: "/dev/x", Permissions: "rx"})},
		{"devices[1].container_path", func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{ContainerPath: "/dev/x", HostPath: "/dev/a"}, {ContainerPath: "/dev/x", HostPath: "/dev/b"}}
		}},
		{"CDI_devices[0].name", func(c *cri.ContainerConfig) { c.CDIDevices = []*cri.CDIDevice{{}} }},
		{"labels", func(c *cri.ContainerConfig) { c.Labels = map[string]string{"": ""} }},
		{"annotations", func(c *cri.ContainerConfig) { c.Annotations = map[string]string{"": ""} }},
		{"log_path", func(c *cri.ContainerConfig) { c.LogPath = "../../etc/passwd" }},
		{"log_path", func(c *cri.ContainerConfig) { c.LogPath = "/etc/passwd" }},
		{"log_path", func(c *cri.ContainerConfig) { c.LogPath = "." }},
		{"stop_signal", func(c *cri.ContainerConfig) { c.StopSignal = 66 }},
		{"windows", func(c *cri.ContainerConfig) { c.Windows = &cri.WindowsContainerConfig{} }},
		{"capabilities.add_capabilities[0]", caps(&cri.Capability{AddCapabilities: []string{"NET ADMIN"}})},
		{"capabilities.drop_capabilities[0]", caps(&cri.Capability{DropCapabilities: []string{""}})},
		{"capabilities.add_ambient_capabilities[0]", caps(&cri.Capability{AddAmbientCapabilities: []string{"1"}})},
		{"namespace_options.network", func(c *cri.ContainerConfig) { sc(c).NamespaceOptions.Network = cri.NamespaceMode_CONTAINER }},
		{"namespace_options.network", func(c *cri.ContainerConfig) { sc(c).NamespaceOptions.Network = cri.NamespaceMode_NODE }},
		{"namespace_options.ipc", func(c *cri.ContainerConfig) { sc(c).NamespaceOptions.Ipc = cri.NamespaceMode_NODE }},
		{"namespace_options.pid", func(c *cri.ContainerConfig) { sc(c).NamespaceOptions.Pid = -1 }},
		{"namespace_options.target_id", func(c *cri.ContainerConfig) { sc(c).NamespaceOptions.Pid = cri.NamespaceMode_TARGET }},
		{"namespace_options.target_id", func(c *cri.ContainerConfig) {
			sc(c).NamespaceOptions.Pid, sc(c).NamespaceOptions.TargetId = cri.NamespaceMode_TARGET, "unknown"
		}},
		{"namespace_options.target_id", func(c *cri.ContainerConfig) { sc(c).NamespaceOptions.TargetId = "x" }},
		{"selinux_options.type", func(c *cri.ContainerConfig) { sc(c).SelinuxOptions = &cri.SELinuxOption{Type: "a b"} }},
		{"selinux_options.level", func(c *cri.ContainerConfig) { sc(c).SelinuxOptions = &cri.SELinuxOption{Level: "s0\n"} }},
		{"run_as_username", func(c *cri.ContainerConfig) { sc(c).RunAsUser, sc(c).RunAsUsername = &cri.Int64Value{}, "joe" }},
		{"run_as_username", func(c *cri.ContainerConfig) { sc(c).RunAsUsername = "joe:x" }},
		{"run_as_user", func(c *cri.ContainerConfig) { sc(c).RunAsUser = &cri.Int64Value{Value: 1<<32 - 1} }},
		{"run_as_group", func(c *cri.ContainerConfig) { sc(c).RunAsGroup = &cri.Int64Value{Value: 1} }},
		{"supplemental_groups[1]", func(c *cri.ContainerConfig) { sc(c).SupplementalGroups = []int64{1, -1} }},
		{"supplemental_groups_policy", func(c *cri.ContainerConfig) { sc(c).SupplementalGroupsPolicy = 3 }},
		{"masked_paths[0]", func(c *cri.ContainerConfig) { sc(c).MaskedPaths = []string{"proc"} }},
		{"readonly_paths[0]", func(c *cri.ContainerConfig) { sc(c).ReadonlyPaths = []string{""} }},
		{"seccomp.localhost_ref", func(c *cri.ContainerConfig) {
			sc(c).Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "rel.json"}
		}},
		{"apparmor_profile", func(c *cri.ContainerConfig) { sc(c).ApparmorProfile = "strange" }}, //nolint:staticcheck // refused
		{"security_context.privileged", func(c *cri.ContainerConfig) { sc(c).Privileged = true }},
	}
	for _, r := range resourceFaults {
		faults = append(faults, containerFault{"linux.resources." + r.field, func(c *cri.ContainerConfig) { r.set(c.Linux.Resources) }})
	}
	return faults
}

func TestCreateContainerNamesTheFault(t *testing.T) {
	s := serveFakes(t)
	pod, _ := s.run(t)
	create := func(c *cri.ContainerConfig) error {
		_, err := s.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: podConfig()})
		return err
	}
	wantCode(t, "no config", create(nil), codes.InvalidArgument, "config: is missing")
	for i, tt := range containerFaults() {
		c := containerConfig()
		tt.set(c)
		wantCode(t, fmt.Sprintf("%d %s", i, tt.field), create(c), codes.InvalidArgument, tt.field+": ")
	}
	if got := s.transcript(); got != "" {
		t.Errorf("the manager was called: %s", got)
	}
}

func TestCreateContainerAccepts(t *testing.T) {
	s := serveFakes(t)
	pod, ctr := s.run(t)
	c := containerConfig()
	c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte{0xff, 0xfe}}, {Key: "EMPTY"}}
	c.Mounts = append(c.Mounts, &cri.Mount{ContainerPath: "/img", Image: &cri.ImageSpec{Image: "x"}, ImageSubPath: "a/b", Readonly: true},
		&cri.Mount{ContainerPath: "/rro", HostPath: "/x", Readonly: true, RecursiveReadOnly: true, MountOptions: []string{"noexec"}})
	c.Devices = []*cri.Device{{ContainerPath: "/dev/fuse", HostPath: "/dev/fuse", Permissions: "mrw"}}
	c.StopSignal, c.StdinOnce = cri.Signal_SIGNAL_SIGRTMAX, true
	sc := c.Linux.SecurityContext
	sc.Privileged = true
	sc.NamespaceOptions.Pid, sc.NamespaceOptions.TargetId = cri.NamespaceMode_TARGET, ctr
	sc.Capabilities = &cri.Capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"CAP_NET_RAW"}}
	sc.ApparmorProfile = "localhost/mine" //nolint:staticcheck // still sent by old callers
	privileged := podConfig()
	privileged.Linux.SecurityContext.Privileged = true
	r, err := s.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: privileged})
	if err != nil {
		t.Fatal(err)
	}
	got := s.ctrs[container.ID(r.ContainerId)].Config
	want := proto.Clone(c).(*cri.ContainerConfig)
	want.Linux.SecurityContext.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "mine"}
	if !proto.Equal(got, want) {
		t.Errorf("the manager got %v\nwant %v", got, want)
	}
	other, err := s.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: podConfig()})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: other.PodSandboxId, Config: c, SandboxConfig: privileged})
	wantCode(t, "target in another pod", err, codes.InvalidArgument, "target_id", "another pod")
	_, err = s.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: "unknown", Config: containerConfig()})
	wantCode(t, "unknown pod", err, codes.NotFound)
}

// TestOtherRequestsNameTheFault has the requests without a configuration in them.
func TestOtherRequestsNameTheFault(t *testing.T) {
	s := serveFakes(t)
	pod, ctr := s.run(t)
	ctx := t.Context()
	cmd := []string{"true"}
	for i, tt := range []struct {
		field string
		call  func() error
	}{
		{"pod_sandbox_id", func() error { _, err := s.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{}); return err }},
		{"pod_sandbox_id", func() error { _, err := s.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{}); return err }},
		{"pod_sandbox_id", func() error { _, err := s.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{}); return err }},
		{"pod_sandbox_id", func() error { _, err := s.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{}); return err }},
		{"pod_sandbox_id", func() error {
			_, err := s.UpdatePodSandboxResources(ctx, &cri.UpdatePodSandboxResourcesRequest{})
			return err
		}},
		{"resources.cpu_shares", func() error {
			_, err := s.UpdatePodSandboxResources(ctx, &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &cri.LinuxContainerResources{CpuShares: -1}})
			return err
		}},
		{"overhead.oom_score_adj", func() error {
			_, err := s.UpdatePodSandboxResources(ctx, &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Overhead: &cri.LinuxContainerResources{OomScoreAdj: 5}})
			return err
		}},
		{"resources.oom_score_adj", func() error {
			_, err := s.UpdatePodSandboxResources(ctx, &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &cri.LinuxContainerResources{OomScoreAdj: 5}})
			return err
		}},
		{"filter.state", func() error {
			_, err := s.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: 9}}})
			return err
		}},
		{"filter.id", func() error {
			_, err := s.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{Id: strings.Repeat("a", 1000)}})
			return err
		}},
		{"filter.state", func() error {
			_, err := s.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{State: &cri.ContainerStateValue{State: 9}}})
			return err
		}},
		{"filter.label_selector", func() error {
			_, err := s.ListContainerStats(ctx, &cri.ListContainerStatsRequest{Filter: &cri.ContainerStatsFilter{LabelSelector: map[string]string{"": ""}}})
			return err
		}},
		{"filter.label_selector", func() error {
			_, err := s.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{LabelSelector: map[string]string{"": ""}}})
			return err
		}},
		{"container_id", func() error { _, err := s.StartContainer(ctx, &cri.StartContainerRequest{}); return err }},
		{"container_id", func() error { _, err := s.StopContainer(ctx, &cri.StopContainerRequest{}); return err }},
		{"timeout", func() error {
			_, err := s.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: ctr, Timeout: -1})
			return err
		}},
		{"container_id", func() error { _, err := s.RemoveContainer(ctx, &cri.RemoveContainerRequest{}); return err }},
		{"container_id", func() error { _, err := s.ContainerStatus(ctx, &cri.ContainerStatusRequest{}); return err }},
		{"container_id", func() error { _, err := s.ContainerStats(ctx, &cri.ContainerStatsRequest{}); return err }},
		{"container_id", func() error { _, err := s.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{}); return err }},
		{"linux", func() error {
			_, err := s.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: ctr})
			return err
		}},
		{"windows", func() error {
			_, err := s.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: ctr, Linux: &cri.LinuxContainerResources{}, Windows: &cri.WindowsContainerResources{}})
			return err
		}},
		{"linux.cpu_quota", func() error {
			_, err := s.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: ctr, Linux: &cri.LinuxContainerResources{CpuQuota: 1}})
			return err
		}},
		{"container_id", func() error { _, err := s.ExecSync(ctx, &cri.ExecSyncRequest{Cmd: cmd}); return err }},
		{"cmd", func() error { _, err := s.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: ctr}); return err }},
		{"cmd[0]", func() error {
			_, err := s.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: ctr, Cmd: []string{"a\x00"}})
			return err
		}},
		{"timeout", func() error {
			_, err := s.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: ctr, Cmd: cmd, Timeout: -5})
			return err
		}},
		{"cmd", func() error { _, err := s.Exec(ctx, &cri.ExecRequest{ContainerId: ctr, Stdout: true}); return err }},
		{"stdin", func() error { _, err := s.Exec(ctx, &cri.ExecRequest{ContainerId: ctr, Cmd: cmd}); return err }},
		{"stderr", func() error {
			_, err := s.Exec(ctx, &cri.ExecRequest{ContainerId: ctr, Cmd: cmd, Tty: true, Stderr: true})
			return err
		}},
		{"container_id", func() error { _, err := s.Attach(ctx, &cri.AttachRequest{Stdout: true}); return err }},
		{"tty", func() error {
			_, err := s.Attach(ctx, &cri.AttachRequest{ContainerId: ctr, Stdout: true, Tty: true})
			return err
		}},
		{"stdin", func() error { _, err := s.Attach(ctx, &cri.AttachRequest{ContainerId: ctr}); return err }},
		{"pod_sandbox_id", func() error { _, err := s.PortForward(ctx, &cri.PortForwardRequest{}); return err }},
		{"port[1]", func() error {
			_, err := s.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: pod, Port: []int32{80, 65536}})
			return err
		}},
		{"image", func() error { _, err := s.images.PullImage(ctx, &cri.PullImageRequest{}); return err }},
		{"image.image", func() error {
			_, err := s.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{}})
			return err
		}},
		{"image.runtime_handler", func() error {
			_, err := s.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "x", RuntimeHandler: "kata"}})
			return err
		}},
		{"image", func() error { _, err := s.images.ImageStatus(ctx, &cri.ImageStatusRequest{}); return err }},
		{"image.image", func() error {
			_, err := s.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: "a\nb"}})
			return err
		}},
	} {
		wantCode(t, fmt.Sprintf("%d %s", i, tt.field), tt.call(), codes.InvalidArgument, tt.field+": ")
	}
	if got := s.transcript(); got != "" {
		t.Errorf("a manager was called: %s", got)
	}
}

// FuzzValidate: no configuration makes validation panic, and an error always names a field of it.
func FuzzValidate(f *testing.F) {
	for _, m := range []proto.Message{podConfig(), containerConfig()} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var pod cri.PodSandboxConfig
		var ctr cri.ContainerConfig
		if proto.Unmarshal(data, &pod) == nil {
			if err := validatePod("config", &pod); err != nil && !strings.HasPrefix(err.Error(), "config.") {
				t.Errorf("pod: %v", err)
			}
		}
		if proto.Unmarshal(data, &ctr) == nil {
			if err := validateContainer("config", &ctr); err != nil && !strings.HasPrefix(err.Error(), "config.") {
				t.Errorf("container: %v", err)
			}
		}
	})
}

// A profile by the older field counts only where there is none by the newer one.
func TestNewerProfileIsPreferred(t *testing.T) {
	for _, have := range []*cri.SecurityProfile{nil, {ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "new"}} {
		var f fields
		p := have
		f.deprecated("apparmor_profile", "localhost/old", &p)
		want := "new"
		if have == nil {
			want = "old"
		}
		if f.err != nil || p.GetLocalhostRef() != want {
			t.Errorf("profile %v, %v; want %s", p, f.err, want)
		}
	}
}
