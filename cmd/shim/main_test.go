// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/config"
	"crishim.dev/proto/admin"
)

// daemon answers as a daemon with two pods would; each field is one RPC's answer.
type daemon struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer
	pods       []*cri.PodSandbox
	containers []*cri.Container
	images     []*cri.Image
	removed    []string
	auth       *cri.AuthConfig
	admin      adminDaemon
	// asked counts the calls for statistics.
	asked     int
	events    []*cri.ContainerEventResponse
	eventsEnd error
}

// adminDaemon answers the admin service.
type adminDaemon struct {
	admin.UnimplementedAdminServer
	findings   []*admin.Finding
	activities []*admin.Activity
	imported   *admin.ImportRequest
	pulls      []*admin.Pull
	stored     []*admin.StoredImage
}

func (d *daemon) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	return &cri.ListPodSandboxResponse{Items: d.pods}, nil
}

func (d *daemon) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	return &cri.ListContainersResponse{Containers: d.containers}, nil
}

func (d *daemon) ContainerStatus(_ context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	for _, c := range d.containers {
		if c.Id == r.ContainerId {
			return &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{Id: c.Id}, Info: map[string]string{"info": `{"pid":7}`, "text": "plain"}}, nil
		}
	}
	return nil, status.Error(codes.NotFound, "no such container")
}

func (d *daemon) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	for _, p := range d.pods {
		if strings.HasPrefix(p.Id, r.PodSandboxId) {
			return &cri.PodSandboxStatusResponse{
				Status: &cri.PodSandboxStatus{Id: p.Id, Metadata: p.Metadata, State: p.State}, ContainersStatuses: d.statuses(p.Id),
			}, nil
		}
	}
	return nil, status.Error(codes.NotFound, "no such pod")
}

// statuses are those of a pod's containers; what has ended has never started.
func (d *daemon) statuses(pod string) []*cri.ContainerStatus {
	var out []*cri.ContainerStatus
	for _, c := range d.containers {
		if c.PodSandboxId != pod {
			continue
		}
		s := &cri.ContainerStatus{Id: c.Id, Metadata: c.Metadata, State: c.State}
		if c.State == cri.ContainerState_CONTAINER_EXITED {
			s.ExitCode, s.Reason, s.Message = 128, "StartError", "no such file"
		}
		out = append(out, s)
	}
	return out
}

func (d *daemon) ListImages(context.Context, *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	return &cri.ListImagesResponse{Images: d.images}, nil
}

func (d *daemon) ImageStatus(_ context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	for _, i := range d.images {
		if i.Id == r.Image.Image {
			return &cri.ImageStatusResponse{Image: i}, nil
		}
	}
	return &cri.ImageStatusResponse{}, nil
}

func (d *daemon) RemoveImage(_ context.Context, r *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	d.removed = append(d.removed, r.Image.Image)
	return &cri.RemoveImageResponse{}, nil
}

func (d *daemon) PullImage(_ context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	d.auth = r.Auth
	if r.Image.Image == "bad" {
		return nil, status.Error(codes.NotFound, "pull image bad: no such image")
	}
	if r.Image.Image == "far" {
		return nil, status.Error(codes.Unavailable, "pull image far: registry is away")
	}
	return &cri.PullImageResponse{ImageRef: "sha256:new"}, nil
}

func (d *adminDaemon) Import(_ context.Context, r *admin.ImportRequest) (*admin.ImportResponse, error) {
	d.imported = r
	return &admin.ImportResponse{Images: []*admin.ImportedImage{{Id: "sha256:imp", Names: []string{r.Name}}}}, nil
}

func (d *adminDaemon) Adopt(_ context.Context, r *admin.AdoptRequest) (*admin.AdoptResponse, error) {
	return &admin.AdoptResponse{Images: []*admin.ImportedImage{{Id: r.Runtime, Names: []string{r.Path, r.Namespace}}}}, nil
}

func (d *adminDaemon) Export(r *admin.ExportRequest, to grpc.ServerStreamingServer[admin.ExportResponse]) error {
	return errors.Join(to.Send(&admin.ExportResponse{Data: []byte("archive of ")}), to.Send(&admin.ExportResponse{Data: []byte(r.Image)}))
}

func (d *adminDaemon) Verify(context.Context, *admin.VerifyRequest) (*admin.VerifyResponse, error) {
	return &admin.VerifyResponse{Layers: []*admin.VerifiedLayer{{DiffId: "sha256:abc"}, {DiffId: "sha256:def", Result: admin.VerifiedLayer_UNKNOWN, Detail: "why"}}}, nil
}

func (d *adminDaemon) Plan(_ context.Context, r *admin.PlanRequest) (*admin.PlanResponse, error) {
	return &admin.PlanResponse{Text: "plan of " + r.ContainerId + "\n"}, nil
}

func (d *adminDaemon) Images(context.Context, *admin.ImagesRequest) (*admin.ImagesResponse, error) {
	return &admin.ImagesResponse{Images: d.stored}, nil
}

func (d *adminDaemon) Pulls(context.Context, *admin.PullsRequest) (*admin.PullsResponse, error) {
	return &admin.PullsResponse{Pulls: d.pulls}, nil
}

func (d *adminDaemon) Check(context.Context, *admin.CheckRequest) (*admin.CheckResponse, error) {
	return &admin.CheckResponse{Findings: d.findings}, nil
}

const day = 24 * time.Hour

func newDaemon() *daemon {
	old := time.Now().Add(-3 * day).UnixNano()
	return &daemon{
		pods: []*cri.PodSandbox{
			{Id: "aaaaaaaaaaaaaaaaaaaa", Metadata: &cri.PodSandboxMetadata{Name: "web", Namespace: "default"}, CreatedAt: old},
			{Id: "bbbbbbbbbbbbbbbbbbbb", Metadata: &cri.PodSandboxMetadata{Name: "gone", Namespace: "default"}, State: cri.PodSandboxState_SANDBOX_NOTREADY, CreatedAt: old},
		},
		containers: []*cri.Container{
			{
				Id: "cccccccccccccccccccc", PodSandboxId: "aaaaaaaaaaaaaaaaaaaa", Metadata: &cri.ContainerMetadata{Name: "nginx"}, CreatedAt: old,
				State: cri.ContainerState_CONTAINER_RUNNING, Image: &cri.ImageSpec{Image: "sha256:i1", UserSpecifiedImage: "nginx:1"}, ImageId: "sha256:i1",
			},
			{
				Id: "dddddddddddddddddddd", PodSandboxId: "aaaaaaaaaaaaaaaaaaaa", Metadata: &cri.ContainerMetadata{Name: "init"}, CreatedAt: old,
				State: cri.ContainerState_CONTAINER_EXITED, Image: &cri.ImageSpec{Image: "busybox"}, ImageId: "sha256:i2",
			},
		},
		images: []*cri.Image{
			{Id: "sha256:i1", RepoTags: []string{"nginx:1", "nginx:latest"}, Size: 5 << 20},
			{Id: "sha256:i2", RepoTags: []string{"busybox"}},
			{Id: "sha256:i3", RepoDigests: []string{"x@sha256:d"}},
			{Id: "sha256:i4", Pinned: true},
		},
		admin: adminDaemon{stored: []*admin.StoredImage{
			{Id: "sha256:i1", RepoTags: []string{"nginx:1", "nginx:latest"}, Size: 5 << 20, Shared: 2 << 20},
			{Id: "sha256:i3", RepoDigests: []string{"x@sha256:d"}, Size: 1},
			{Id: "sha256:i4", Size: 1},
		}},
	}
}

// start serves d and returns the flags that find it.
func start(t *testing.T, d *daemon) []string {
	t.Helper()
	dir := t.TempDir()
	g := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(g, d)
	cri.RegisterImageServiceServer(g, d)
	admin.RegisterAdminServer(g, &d.admin)
	for _, name := range []string{"shim.sock", "admin.sock"} {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = g.Serve(l) }()
	}
	t.Cleanup(g.Stop)
	return []string{"--config", write(t, dir, "config.toml", ""), "--socket", filepath.Join(dir, "shim.sock")}
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs a command and returns what it printed.
func run(t *testing.T, in string, args ...string) (string, error) {
	t.Helper()
	c := command()
	var out bytes.Buffer
	c.SetArgs(args)
	c.SetIn(strings.NewReader(in))
	c.SetOut(&out)
	c.SetErr(&out)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

func TestCommands(t *testing.T) {
	d := newDaemon()
	flags := start(t, d)
	for _, tt := range []struct {
		args string
		want string
	}{
		{"ps", "ID            STATE    AGE  NAME         IMAGE\naaaaaaaaaaaa  ready    3d   default/web  \ncccccccccccc  running  3d   └ nginx      nginx:1\n"},
		{"ps -a", "ID            STATE     AGE  NAME          IMAGE\naaaaaaaaaaaa  ready     3d   default/web   \ncccccccccccc  running   3d   └ nginx       nginx:1\n" +
			"dddddddddddd  exited    3d   └ init        busybox\nbbbbbbbbbbbb  notready  3d   default/gone  \n"},
		{"image list", "ID  SIZE     SHARED   NAME\ni1  5.0 MiB  2.0 MiB  nginx:1\ni1  5.0 MiB  2.0 MiB  nginx:latest\ni3  1 B      0 B      x@sha256:d\ni4  1 B      0 B      -\n"},
		{"image prune", "sha256:i3 \n"},
		{"image pull busybox", "sha256:new\n"},
		{"image import --name a:1 /tmp/x.tar", "sha256:imp a:1\n"},
		{"image adopt containerd", "containerd /var/lib/containerd k8s.io\n"},
		{"image adopt cri-o --path /x", "cri-o /x k8s.io\n"},
		{"image export web:1 -", "archive of web:1"},
		{"image verify web:1", "         LAYER  DETAIL\nok       abc    \nunknown  def    why\n"},
		{"plan abc", "plan of abc\n"},
		{"check", "SUBJECT  DETAIL\n"},
	} {
		got, err := run(t, "", append(strings.Fields(tt.args), flags...)...)
		if tt.args == "check" {
			got = strings.TrimLeft(got, " ")
		}
		if err != nil || got != tt.want {
			t.Errorf("%s: %v\n%q\nwant\n%q", tt.args, err, got, tt.want)
		}
	}
	if len(d.removed) != 1 || d.admin.imported.Path != "/tmp/x.tar" {
		t.Errorf("removed %v, imported %v", d.removed, d.admin.imported)
	}
}

func TestInspectFindsAnyKind(t *testing.T) {
	flags := start(t, newDaemon())
	for id, want := range map[string]string{"cccccccccccccccccccc": `"pid": 7`, "aaaaaaaaaaaaaaaaaaaa": `"id": "aaaa`, "sha256:i1": "nginx:latest"} {
		if got, err := run(t, "", append([]string{"inspect", id}, flags...)...); err != nil || !strings.Contains(got, want) {
			t.Errorf("inspect %s: %v\n%s\nwant %s in it", id, err, got, want)
		}
	}
	if _, err := run(t, "", append([]string{"inspect", "nothing"}, flags...)...); err == nil || !strings.Contains(err.Error(), "nothing") {
		t.Errorf("inspect of an unknown id: %v", err)
	}
}

func TestPullReadsThePassword(t *testing.T) {
	d := newDaemon()
	flags := start(t, d)
	if _, err := run(t, "secret\n", append([]string{"image", "pull", "--user", "joe", "busybox"}, flags...)...); err != nil {
		t.Fatal(err)
	}
	if d.auth.GetUsername() != "joe" || d.auth.GetPassword() != "secret" {
		t.Errorf("credentials %v", d.auth)
	}
	if _, err := run(t, "", append([]string{"image", "pull", "bad"}, flags...)...); err == nil || err.Error() != "pull image bad: no such image" {
		t.Errorf("an error has the protocol's words: %v", err)
	}
}

func TestCheckFailsWhenSomethingIsOff(t *testing.T) {
	d := newDaemon()
	flags := start(t, d)
	d.admin.findings = []*admin.Finding{{Level: admin.Finding_OK, Subject: "kernel: overlayfs"}, {Level: admin.Finding_BAD, Subject: "store: pod x", Detail: "no network namespace"}}
	got, err := run(t, "", append([]string{"check"}, flags...)...)
	if err == nil || !strings.Contains(got, "no network namespace") {
		t.Errorf("%v\n%s", err, got)
	}
}

func TestConfigCommands(t *testing.T) {
	var want strings.Builder
	if err := config.Print(&want, config.Default()); err != nil {
		t.Fatal(err)
	}
	if got, err := run(t, "", "config", "default"); err != nil || got != want.String() {
		t.Errorf("default: %v\n%s", err, got)
	}
	path := write(t, t.TempDir(), "config.toml", "root = \"/from/file\"\nstate = \"/from/file2\"\n")
	got, err := run(t, "", "config", "show", "--config", path, "--state", "/from/flag", "--keeper", "/k")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{`root = "/from/file"`, `state = "/from/flag"`, `keeper = "/k"`, `socket = "/run/shim/shim.sock"`} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("no %s in\n%s", line, got)
		}
	}
	if _, err := run(t, "", "config", "show", "--config", path, "--root", "relative"); err == nil || !strings.Contains(err.Error(), "root") {
		t.Errorf("a bad flag: %v", err)
	}
	if _, err := run(t, "", "config", "show", "--config", "/nonexistent/x.toml"); err == nil {
		t.Error("a configuration file that was asked for is missing, and nothing was said")
	}
}

func TestWithoutDaemon(t *testing.T) {
	dir := t.TempDir()
	flags := []string{"--config", write(t, dir, "config.toml", ""), "--socket", filepath.Join(dir, "none.sock")}
	if _, err := run(t, "", append([]string{"ps"}, flags...)...); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("ps: %v", err)
	}
	if got, err := run(t, "", append([]string{"version"}, flags...)...); err != nil || got != "shim 0.0.0-dev\n" {
		t.Errorf("version: %q, %v", got, err)
	}
}

func TestServeNeedsAKeeper(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	_, err := run(t, "", "serve", "--config", write(t, dir, "config.toml", ""), "--socket", filepath.Join(dir, "s.sock"))
	if err == nil || !strings.Contains(err.Error(), "shim-keeper") {
		t.Errorf("got %v", err)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 30: "1.0 GiB", 3 << 50: "3.0 PiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s; want %s", n, got, want)
		}
	}
}
