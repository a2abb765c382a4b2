// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/proto/admin"
)

func imageCommand(f *flags) *cobra.Command {
	c := &cobra.Command{Use: "image", Short: "Manage images"}
	c.AddCommand(importCommand(f), adoptCommand(f), exportCommand(f), verifyCommand(f), pullCommand(f), pullsCommand(f), imageListCommand(f), imageRemoveCommand(f), imageInspectCommand(f), pruneCommand(f))
	return c
}

func imageListCommand(f *flags) *cobra.Command {
	var o output
	c := &cobra.Command{
		Use:     "list",
		Short:   "List images, the disk space of each, and how much of that it shares with others",
		Example: "  shim image list -o json",
		Args:    cobra.NoArgs,
		RunE: f.with(func(c *cobra.Command, _ []string, to *client) error {
			resp, err := to.admin.Images(c.Context(), &admin.ImagesRequest{})
			if err != nil {
				return err
			}
			return o.print(c.OutOrStdout(), messages(resp.Images), "ID\tSIZE\tSHARED\tNAME", func(w io.Writer) {
				for _, i := range resp.Images {
					printImage(w, i)
				}
			})
		}),
	}
	o.flag(c)
	return c
}

func printImage(w io.Writer, i *admin.StoredImage) {
	names := i.RepoTags
	if len(names) == 0 {
		names = i.RepoDigests
	}
	if len(names) == 0 {
		names = []string{"-"}
	}
	for _, n := range names {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", short(i.Id), size(i.Size), size(i.Shared), n)
	}
}

func imageRemoveCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:     "remove IMAGE...",
		Short:   "Remove images with all their names",
		Example: "  shim image remove docker.io/library/busybox:1.36",
		Args:    cobra.MinimumNArgs(1),
		RunE: f.with(func(c *cobra.Command, args []string, to *client) error {
			for _, a := range args {
				if _, err := to.images.RemoveImage(c.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: a}}); err != nil {
					return err
				}
			}
			return nil
		}),
	}
}

func imageInspectCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:     "inspect IMAGE",
		Short:   "Show everything about an image, as JSON",
		Example: "  shim image inspect docker.io/library/busybox:1.36",
		Args:    cobra.ExactArgs(1),
		RunE: f.with(func(c *cobra.Command, args []string, to *client) error {
			resp, err := to.images.ImageStatus(c.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: args[0]}, Verbose: true})
			if err != nil {
				return err
			}
			if resp.Image == nil {
				return fmt.Errorf("find image %s: no such image", args[0])
			}
			return printJSON(c.OutOrStdout(), &inspected{Status: message{resp.Image}, Info: unfold(resp.Info)})
		}),
	}
}

func pruneCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:     "prune",
		Short:   "Remove the images that no container uses; pinned ones stay",
		Example: "  shim image prune",
		Args:    cobra.NoArgs,
		RunE: f.with(func(c *cobra.Command, _ []string, to *client) error {
			images, err := to.images.ListImages(c.Context(), &cri.ListImagesRequest{})
			if err != nil {
				return err
			}
			// Asked after the images: a container made meanwhile counts.
			containers, err := to.ListContainers(c.Context(), &cri.ListContainersRequest{})
			if err != nil {
				return err
			}
			var failed []error
			for _, i := range unused(images.Images, containers.Containers) {
				if _, err := to.images.RemoveImage(c.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: i.Id}}); err != nil {
					failed = append(failed, plain(err))
					continue
				}
				fmt.Fprintln(c.OutOrStdout(), i.Id, strings.Join(i.RepoTags, " "))
			}
			return errors.Join(failed...)
		}),
	}
}

func unused(images []*cri.Image, containers []*cri.Container) []*cri.Image {
	used := map[string]bool{}
	for _, c := range containers {
		used[c.ImageId] = true
	}
	var out []*cri.Image
	for _, i := range images {
		if !used[i.Id] && !i.Pinned {
			out = append(out, i)
		}
	}
	return out
}
