// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bufio"
	"context"
	"slices"

	"google.golang.org/grpc"

	"crishim.dev/proto/admin"
)

// Import implements admin.AdminServer.
func (s *adminService) Import(ctx context.Context, r *admin.ImportRequest) (*admin.ImportResponse, error) {
	var f fields
	f.path("path", r.GetPath())
	if r.GetName() != "" {
		f.word("name", r.GetName())
	}
	if f.err != nil {
		return nil, f.err
	}
	images, err := s.o.Archives.Import(ctx, r.GetPath(), r.GetName())
	return &admin.ImportResponse{Images: imported(images)}, err
}

func imported(images []Image) []*admin.ImportedImage {
	var out []*admin.ImportedImage
	for _, i := range images {
		out = append(out, &admin.ImportedImage{Id: i.CRI.GetId(), Names: slices.Concat(i.CRI.GetRepoTags(), i.CRI.GetRepoDigests())})
	}
	return out
}

// Adopt implements admin.AdminServer.
func (s *adminService) Adopt(ctx context.Context, r *admin.AdoptRequest) (*admin.AdoptResponse, error) {
	var f fields
	f.path("path", r.GetPath())
	if f.err != nil {
		return nil, f.err
	}
	images, failed, err := s.o.Archives.Adopt(ctx, r.GetRuntime(), r.GetPath(), r.GetNamespace())
	resp := &admin.AdoptResponse{Images: imported(images)}
	for _, e := range failed {
		resp.Failed = append(resp.Failed, e.Error())
	}
	return resp, err
}

// exportPart is how much of an archive one message carries.
const exportPart = 256 << 10

// Export implements admin.AdminServer.
func (s *adminService) Export(r *admin.ExportRequest, to grpc.ServerStreamingServer[admin.ExportResponse]) error {
	w := bufio.NewWriterSize(exporter{to}, exportPart)
	if err := s.o.Archives.Export(to.Context(), r.GetImage(), w); err != nil {
		return err
	}
	return w.Flush()
}

// exporter sends what is written to it.
type exporter struct {
	to grpc.ServerStreamingServer[admin.ExportResponse]
}

// Write sends p in messages that are small enough.
func (e exporter) Write(p []byte) (int, error) {
	for part := range slices.Chunk(p, exportPart) {
		if err := e.to.Send(&admin.ExportResponse{Data: part}); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// Verify implements admin.AdminServer.
func (s *adminService) Verify(ctx context.Context, r *admin.VerifyRequest) (*admin.VerifyResponse, error) {
	layers, err := s.o.Archives.Verify(ctx, r.GetImage())
	return &admin.VerifyResponse{Layers: layers}, err
}
