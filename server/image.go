// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// images is the ImageService.
type images struct {
	cri.UnimplementedImageServiceServer
	o *Options
}

// PullImage fetches an image and returns its id, the same that ListImages has. The request's sandbox_config says for which pod
// it is; nothing here depends on that, and critest sends an empty one.
func (s *images) PullImage(ctx context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	ref, err := s.reference(r.GetImage())
	if err != nil {
		return nil, err
	}
	id, err := s.o.Images.Pull(ctx, ref, r.GetAuth())
	return &cri.PullImageResponse{ImageRef: id}, err
}

// ListImages lists the images, or the one that the filter names.
func (s *images) ListImages(_ context.Context, r *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	items, err := s.list(r.GetFilter())
	return &cri.ListImagesResponse{Images: items}, err
}

// StreamImages is ListImages in pieces.
func (s *images) StreamImages(r *cri.StreamImagesRequest, to grpc.ServerStreamingServer[cri.StreamImagesResponse]) error {
	items, err := s.list(r.GetFilter())
	if err != nil {
		return err
	}
	return inPieces(items, func(piece []*cri.Image) error {
		return to.Send(&cri.StreamImagesResponse{Images: piece})
	})
}

func (s *images) list(f *cri.ImageFilter) ([]*cri.Image, error) {
	if err := s.o.validateHandler("filter.image.runtime_handler", f.GetImage().GetRuntimeHandler()); err != nil {
		return nil, err
	}
	if ref := f.GetImage().GetImage(); ref != "" {
		image, err := s.o.Images.Resolve(ref)
		if err != nil {
			return nil, ignoreNotFound(err)
		}
		return []*cri.Image{image.CRI}, nil
	}
	var items []*cri.Image
	for _, image := range s.o.Images.List() {
		items = append(items, image.CRI)
	}
	return items, nil
}

// ImageStatus describes an image. For an unknown one the answer is empty, which is no error.
func (s *images) ImageStatus(_ context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	ref, err := s.reference(r.GetImage())
	if err != nil {
		return nil, err
	}
	image, err := s.o.Images.Resolve(ref)
	if err != nil {
		return &cri.ImageStatusResponse{}, ignoreNotFound(err)
	}
	resp := &cri.ImageStatusResponse{Image: image.CRI}
	if r.GetVerbose() && image.Info != nil {
		resp.Info = image.Info()
	}
	return resp, nil
}

// RemoveImage removes an image with all its tags. An unknown one succeeds.
func (s *images) RemoveImage(ctx context.Context, r *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	ref, err := s.reference(r.GetImage())
	if err != nil {
		return nil, err
	}
	return &cri.RemoveImageResponse{}, ignoreNotFound(s.o.Images.Remove(ctx, ref))
}

// ImageFsInfo says what images and writable layers take, and of which file system.
func (s *images) ImageFsInfo(ctx context.Context, _ *cri.ImageFsInfoRequest) (*cri.ImageFsInfoResponse, error) {
	image, writable, err := s.o.Images.Usage(ctx)
	if err != nil {
		return nil, err
	}
	return &cri.ImageFsInfoResponse{
		ImageFilesystems:     []*cri.FilesystemUsage{image},
		ContainerFilesystems: []*cri.FilesystemUsage{writable},
	}, nil
}

// reference is the image that spec names.
func (s *images) reference(spec *cri.ImageSpec) (string, error) {
	var f fields
	f.image("image", spec)
	if f.err != nil {
		return "", f.err
	}
	return spec.GetImage(), s.o.validateHandler("image.runtime_handler", spec.GetRuntimeHandler())
}
