// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"

	"crishim.dev/image"
	"crishim.dev/internal/errs"
	"crishim.dev/proto/admin"
	"crishim.dev/server"
)

func criImages(list []image.Image) []server.Image {
	out := make([]server.Image, 0, len(list))
	for _, img := range list {
		out = append(out, criImage(img))
	}
	return out
}

// Import implements server.Archives.
func (a imageAdapter) Import(ctx context.Context, path, name string) ([]server.Image, error) {
	list, err := a.store.Import(ctx, path, image.ImportOptions{Name: name})
	return criImages(list), err
}

// Adopt implements server.Archives.
func (a imageAdapter) Adopt(ctx context.Context, runtime, path, namespace string) ([]server.Image, []error, error) {
	var list []image.Image
	var failed []error
	var err error
	switch runtime {
	case "containerd":
		list, failed, err = a.store.ImportContainerd(ctx, path, namespace)
	case "cri-o":
		list, failed, err = a.store.ImportCRIO(ctx, path)
	default:
		err = errs.Newf(errs.Invalid, "adopt images: the runtime is containerd or cri-o, not %q", runtime)
	}
	return criImages(list), failed, err
}

// Export implements server.Archives.
func (a imageAdapter) Export(ctx context.Context, ref string, w io.Writer) error {
	return a.store.Export(ctx, ref, w)
}

// Verify implements server.Archives.
func (a imageAdapter) Verify(ctx context.Context, ref string) ([]*admin.VerifiedLayer, error) {
	checks, err := a.store.Verify(ctx, ref)
	var out []*admin.VerifiedLayer
	for _, c := range checks {
		l := &admin.VerifiedLayer{DiffId: c.DiffID}
		if c.Err != nil {
			l.Result, l.Detail = admin.VerifiedLayer_BAD, c.Err.Error()
		}
		if errors.Is(c.Err, errs.Unsupported) {
			l.Result = admin.VerifiedLayer_UNKNOWN
		}
		out = append(out, l)
	}
	return out, err
}
