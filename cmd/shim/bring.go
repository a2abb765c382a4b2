// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"crishim.dev/proto/admin"
)

func importCommand(f *flags) *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:     "import PATH",
		Short:   "Unpack images from a tar archive or an OCI layout",
		Example: "  shim image import --name example.org/web:1 web.tar",
		Args:    cobra.ExactArgs(1),
		RunE: f.with(func(c *cobra.Command, args []string, to *client) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			resp, err := to.admin.Import(c.Context(), &admin.ImportRequest{Path: path, Name: name})
			if err != nil {
				return err
			}
			printImported(c.OutOrStdout(), resp.Images)
			return nil
		}),
	}
	c.Flags().StringVar(&name, "name", "", "name for the image in the archive that has none")
	return c
}

func printImported(w io.Writer, images []*admin.ImportedImage) {
	for _, i := range images {
		fmt.Fprintln(w, i.Id, strings.Join(i.Names, " "))
	}
}

func adoptCommand(f *flags) *cobra.Command {
	var path, namespace string
	c := &cobra.Command{
		Use:       "adopt containerd|cri-o",
		Short:     "Take over the images of another runtime on this machine, without a download",
		Long:      "Take over the images of another runtime on this machine, without a download. The other runtime may be running; nothing of it is changed.",
		Example:   "  shim image adopt containerd",
		Args:      cobra.ExactArgs(1),
		ValidArgs: []string{"containerd", "cri-o"},
		RunE: f.with(func(c *cobra.Command, args []string, to *client) error {
			if path == "" {
				path = map[string]string{"containerd": "/var/lib/containerd", "cri-o": "/var/lib/containers/storage"}[args[0]]
			}
			root, err := filepath.Abs(path)
			if err != nil {
				return err
			}
			resp, err := to.admin.Adopt(c.Context(), &admin.AdoptRequest{Runtime: args[0], Path: root, Namespace: namespace})
			if err != nil {
				return err
			}
			printImported(c.OutOrStdout(), resp.Images)
			var failed []error
			for _, text := range resp.Failed {
				failed = append(failed, errors.New(text))
			}
			return errors.Join(failed...)
		}),
	}
	c.Flags().StringVar(&path, "path", "", "where its store is (default /var/lib/containerd or /var/lib/containers/storage)")
	c.Flags().StringVar(&namespace, "namespace", "k8s.io", "containerd's namespace")
	return c
}

func exportCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:     "export IMAGE FILE",
		Short:   "Write an image to an OCI archive, which docker load takes too; - is standard output",
		Example: "  shim image export example.org/web:1 web.tar",
		Args:    cobra.ExactArgs(2),
		RunE: f.with(func(c *cobra.Command, args []string, to *client) (err error) {
			stream, err := to.admin.Export(c.Context(), &admin.ExportRequest{Image: args[0]})
			if err != nil {
				return err
			}
			w := c.OutOrStdout()
			if args[1] != "-" {
				file, err := os.CreateTemp(filepath.Dir(args[1]), ".export-")
				if err != nil {
					return err
				}
				defer os.Remove(file.Name()) // gone when all went well
				defer file.Close()
				if err := receive(stream.Recv, file); err != nil {
					return err
				}
				return errors.Join(file.Chmod(0o644), file.Close(), os.Rename(file.Name(), args[1]))
			}
			return receive(stream.Recv, w)
		}),
	}
}

func receive(next func() (*admin.ExportResponse, error), w io.Writer) error {
	for {
		part, err := next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			_, err = w.Write(part.Data)
		}
		if err != nil {
			return err
		}
	}
}

func verifyCommand(f *flags) *cobra.Command {
	var o output
	c := &cobra.Command{
		Use:     "verify IMAGE",
		Short:   "Compare an image's layers on disk with their digests; exit 1 when one differs",
		Example: "  shim image verify example.org/web:1",
		Args:    cobra.ExactArgs(1),
		RunE: f.with(func(c *cobra.Command, args []string, to *client) error {
			resp, err := to.admin.Verify(c.Context(), &admin.VerifyRequest{Image: args[0]})
			if err != nil {
				return err
			}
			bad := 0
			for _, l := range resp.Layers {
				if l.Result == admin.VerifiedLayer_BAD {
					bad++
				}
			}
			err = o.print(c.OutOrStdout(), messages(resp.Layers), "\tLAYER\tDETAIL", func(w io.Writer) {
				for _, l := range resp.Layers {
					fmt.Fprintf(w, "%s\t%s\t%s\n", strings.ToLower(l.Result.String()), short(strings.TrimPrefix(l.DiffId, "sha256:")), l.Detail)
				}
			})
			if err == nil && bad > 0 {
				err = fmt.Errorf("%d of %d layers differ; remove the image and pull it again", bad, len(resp.Layers))
			}
			return err
		}),
	}
	o.flag(c)
	return c
}
