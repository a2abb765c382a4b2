// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"io"
	"log/slog"
	"os"
	"time"

	"crishim.dev/container"
	"crishim.dev/proto/admin"
	"crishim.dev/sandbox"
)

// Archives brings images from local files and stores, and into files.
type Archives interface {
	// Import reads a tar archive or an OCI layout. name, if any, is for the one image in it that has no name of its own.
	Import(ctx context.Context, path, name string) ([]Image, error)
	// Adopt takes over the images of another runtime's store. failed are those that it can't.
	Adopt(ctx context.Context, runtime, path, namespace string) (images []Image, failed []error, err error)
	// Export writes an image as an OCI archive.
	Export(ctx context.Context, ref string, w io.Writer) error
	// Verify compares an image's layers, bottom first, with their digests.
	Verify(ctx context.Context, ref string) ([]*admin.VerifiedLayer, error)
}

// Planner knows the launch program of a container.
type Planner interface {
	// Plan prints it, as executed or as it would be, with the values of variables redacted.
	Plan(ctx context.Context, id container.ID) (string, error)
}

// Activity is an operation under way.
type Activity struct {
	Sandbox sandbox.ID
	// Container is empty for an operation on the pod itself.
	Container        container.ID
	Operation, Stage string
	Since            time.Time
}

// Watcher knows what is under way. It waits for nothing.
type Watcher interface{ Activities() []Activity }

// Level is how bad a Finding is.
type Level int

// The levels.
const (
	OK   Level = iota
	Note       // something optional is missing
	Bad        // something needed is missing, or store and kernel disagree
)

// Finding is one thing that Check looked at.
type Finding struct {
	Level           Level
	Subject, Detail string
}

// Checker compares the host with what is needed, and the store with the kernel.
type Checker interface {
	Check(ctx context.Context) []Finding
}

// AdminOptions are what an Admin serves; all of them are needed.
type AdminOptions struct {
	Version    string
	Sandboxes  Sandboxes
	Containers Containers
	Archives   Archives
	Planner    Planner
	Watcher    Watcher
	Checker    Checker
	// Images lists the images with the disk space that each takes.
	Images func() []*admin.StoredImage
	// Pulls lists the pulls under way.
	Pulls func() []*admin.Pull
	Log   *slog.Logger
}

// Admin answers the admin service. Safe for concurrent use.
type Admin struct{ listener }

// NewAdmin makes an Admin.
func NewAdmin(o AdminOptions) *Admin {
	a := &Admin{newListener(o.Log)}
	admin.RegisterAdminServer(a.grpc, &adminService{o: &o, find: &Options{Sandboxes: o.Sandboxes, Containers: o.Containers}, started: time.Now()})
	return a
}

type adminService struct {
	admin.UnimplementedAdminServer
	o *AdminOptions
	// find has the managers by which requests' objects are found.
	find    *Options
	started time.Time
}

// Version implements admin.AdminServer.
func (s *adminService) Version(context.Context, *admin.VersionRequest) (*admin.VersionResponse, error) {
	return &admin.VersionResponse{Version: s.o.Version, Pid: int64(os.Getpid()), StartedAt: s.started.UnixNano()}, nil
}

// Plan implements admin.AdminServer.
func (s *adminService) Plan(ctx context.Context, r *admin.PlanRequest) (*admin.PlanResponse, error) {
	c, err := s.find.container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	text, err := s.o.Planner.Plan(ctx, c.ID)
	return &admin.PlanResponse{Text: text}, err
}

// Why implements admin.AdminServer.
func (s *adminService) Why(_ context.Context, r *admin.WhyRequest) (*admin.WhyResponse, error) {
	resp := &admin.WhyResponse{}
	for _, a := range s.o.Watcher.Activities() {
		// By id and not through Get: a pod that is being made can't be found yet, but asked why.
		if matchesID(string(a.Sandbox), r.GetPodSandboxId()) {
			resp.Activities = append(resp.Activities, &admin.Activity{
				PodSandboxId: string(a.Sandbox), ContainerId: string(a.Container), Operation: a.Operation, Stage: a.Stage, Since: a.Since.UnixNano(),
			})
		}
	}
	return resp, nil
}

// Images implements admin.AdminServer.
func (s *adminService) Images(context.Context, *admin.ImagesRequest) (*admin.ImagesResponse, error) {
	return &admin.ImagesResponse{Images: s.o.Images()}, nil
}

// Pulls implements admin.AdminServer.
func (s *adminService) Pulls(context.Context, *admin.PullsRequest) (*admin.PullsResponse, error) {
	return &admin.PullsResponse{Pulls: s.o.Pulls()}, nil
}

// Check implements admin.AdminServer.
func (s *adminService) Check(ctx context.Context, _ *admin.CheckRequest) (*admin.CheckResponse, error) {
	resp := &admin.CheckResponse{}
	for _, f := range s.o.Checker.Check(ctx) {
		resp.Findings = append(resp.Findings, &admin.Finding{Level: admin.Finding_Level(f.Level), Subject: f.Subject, Detail: f.Detail})
	}
	return resp, nil
}
