// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Container is a container of a test's pod.
type Container struct {
	Pod    *Pod
	ID     string
	Config *cri.ContainerConfig
	t      testing.TB
}

// ContainerConfig is a plain container's configuration, changed by mods.
func ContainerConfig(t testing.TB, image string, command []string, mods ...func(*cri.ContainerConfig)) *cri.ContainerConfig {
	name := Unique(t)
	c := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: image}, Command: command, LogPath: name + ".log",
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
			},
		},
	}
	for _, m := range mods {
		m(c)
	}
	return c
}

// Create makes a container, its image pulled when it is missing.
func (p *Pod) Create(image string, command []string, mods ...func(*cri.ContainerConfig)) *Container {
	p.t.Helper()
	Pull(p.t, p.Node, image)
	c := &Container{Pod: p, Config: ContainerConfig(p.t, image, command, mods...), t: p.t}
	made, err := p.Node.Runtime.CreateContainer(Context(p.t), &cri.CreateContainerRequest{PodSandboxId: p.ID, Config: c.Config, SandboxConfig: p.Config})
	if err != nil {
		p.t.Fatalf("create container: %v", err)
	}
	c.ID = made.GetContainerId()
	return c
}

// TryCreate is CreateContainer as it is.
func (p *Pod) TryCreate(config *cri.ContainerConfig) (*cri.CreateContainerResponse, error) {
	return p.Node.Runtime.CreateContainer(Context(p.t), &cri.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
}

// Run makes and starts a container.
func (p *Pod) Run(image string, command []string, mods ...func(*cri.ContainerConfig)) *Container {
	p.t.Helper()
	c := p.Create(image, command, mods...)
	c.Start()
	return c
}

// Sleep is a command that sleeps for ever and ends at SIGTERM.
func Sleep() []string { return []string{"sh", "-c", "trap 'exit 0' TERM; sleep infinity & wait"} }

// Start starts the container.
func (c *Container) Start() {
	c.t.Helper()
	if err := c.TryStart(); err != nil {
		c.t.Fatalf("start container: %v", err)
	}
}

// TryStart is StartContainer as it is.
func (c *Container) TryStart() error { return c.Pod.TryStart(c.ID) }

// TryStart is StartContainer as it is, of any container.
func (p *Pod) TryStart(id string) error {
	_, err := p.Node.Runtime.StartContainer(Context(p.t), &cri.StartContainerRequest{ContainerId: id})
	return err
}

// Stop stops the container; timeout in seconds.
func (c *Container) Stop(timeout int64) {
	c.t.Helper()
	if _, err := c.Pod.Node.Runtime.StopContainer(Context(c.t), &cri.StopContainerRequest{ContainerId: c.ID, Timeout: timeout}); err != nil {
		c.t.Fatalf("stop container: %v", err)
	}
}

// Remove removes the container.
func (c *Container) Remove() {
	c.t.Helper()
	if _, err := c.Pod.Node.Runtime.RemoveContainer(Context(c.t), &cri.RemoveContainerRequest{ContainerId: c.ID}); err != nil {
		c.t.Fatalf("remove container: %v", err)
	}
}

// Status is the container's status.
func (c *Container) Status() *cri.ContainerStatus {
	c.t.Helper()
	s, err := c.Pod.Node.Runtime.ContainerStatus(Context(c.t), &cri.ContainerStatusRequest{ContainerId: c.ID})
	if err != nil {
		c.t.Fatalf("status of container: %v", err)
	}
	return s.GetStatus()
}

// Exited waits until the container has ended.
func (c *Container) Exited() *cri.ContainerStatus {
	c.t.Helper()
	var s *cri.ContainerStatus
	Until(c.t, func() error {
		if s = c.Status(); s.GetState() != cri.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("container is %v", s.GetState())
		}
		return nil
	})
	return s
}

// ExecSync is ExecSync as it is; timeout in seconds, 0 for none.
func (c *Container) ExecSync(timeout int64, command ...string) (*cri.ExecSyncResponse, error) {
	return c.Pod.Node.Runtime.ExecSync(Context(c.t), &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: command, Timeout: timeout})
}

// Exec runs a command in the container and gives its standard output; anything but exit code 0 fails the test.
func (c *Container) Exec(command ...string) string {
	c.t.Helper()
	r, err := c.ExecSync(20, command...)
	if err != nil {
		c.t.Fatalf("exec %q: %v", command, err)
	}
	if r.GetExitCode() != 0 {
		c.t.Fatalf("exec %q: exit code %d\nstdout: %s\nstderr: %s", command, r.GetExitCode(), r.GetStdout(), r.GetStderr())
	}
	return string(r.GetStdout())
}

// Output runs a container's command to its end and gives what it wrote to stdout; anything but exit code 0 fails the test.
func (p *Pod) Output(image string, command []string, mods ...func(*cri.ContainerConfig)) string {
	p.t.Helper()
	c := p.Run(image, command, mods...)
	s := c.Exited()
	if s.GetExitCode() != 0 {
		p.t.Fatalf("%q: exit code %d (%s %s)\n%s", command, s.GetExitCode(), s.GetReason(), s.GetMessage(), c.Text("stderr"))
	}
	return c.Text("stdout")
}

// Line is one line of a container's log.
type Line struct {
	Time   time.Time
	Stream string
	Full   bool
	Text   string
}

// LogPath is the log file.
func (c *Container) LogPath() string {
	return filepath.Join(c.Pod.Config.GetLogDirectory(), c.Config.GetLogPath())
}

// Log reads the container's log; a malformed line fails the test.
func (c *Container) Log() []Line {
	c.t.Helper()
	text, err := os.ReadFile(c.LogPath())
	if err != nil {
		c.t.Fatalf("read log: %v", err)
	}
	var out []Line
	for l := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSuffix(l, "\n"), " ", 4)
		if len(f) != 4 || f[2] != "F" && f[2] != "P" || f[1] != "stdout" && f[1] != "stderr" {
			c.t.Fatalf("log line %q", l)
		}
		at, err := time.Parse(time.RFC3339Nano, f[0])
		if err != nil {
			c.t.Fatalf("log line %q: %v", l, err)
		}
		out = append(out, Line{Time: at, Stream: f[1], Full: f[2] == "F", Text: f[3]})
	}
	return out
}

// Text joins what the container wrote to one stream.
func (c *Container) Text(stream string) string {
	c.t.Helper()
	var b strings.Builder
	for _, l := range c.Log() {
		if l.Stream == stream {
			b.WriteString(l.Text)
			if l.Full {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

// WaitLog waits until a line of the log holds text.
func (c *Container) WaitLog(text string) {
	c.t.Helper()
	Until(c.t, func() error {
		raw, err := os.ReadFile(c.LogPath())
		if err != nil {
			return err
		}
		if !strings.Contains(string(raw), text) {
			return fmt.Errorf("log has no %q; it is %q", text, raw)
		}
		return nil
	})
}

// Cgroup is the container's directory in a hierarchy ("memory", "pids", …), or in the one hierarchy of version 2.
func (c *Container) Cgroup(controller string) string {
	c.t.Helper()
	for _, base := range []string{"/sys/fs/cgroup/" + controller, "/sys/fs/cgroup"} {
		var found string
		top := base + "/" + strings.Trim(c.Pod.Node.CgroupParent, "/")
		if parent := c.Pod.Config.GetLinux().GetCgroupParent(); parent != "" {
			top = base + "/" + strings.Trim(parent, "/")
		}
		_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() && d.Name() == c.ID {
				found = path
			}
			return nil
		})
		if found != "" {
			return found
		}
	}
	c.t.Fatalf("no control group %s in hierarchy %s", c.ID, controller)
	return ""
}

// PIDs are the container's processes as the test sees them.
func (c *Container) PIDs() []int {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join(c.Cgroup("pids"), "cgroup.procs"))
	if err != nil {
		c.t.Fatalf("read processes: %v", err)
	}
	var out []int
	for f := range strings.FieldsSeq(string(text)) {
		if pid, err := strconv.Atoi(f); err == nil {
			out = append(out, pid)
		}
	}
	return out
}
