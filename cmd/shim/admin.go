// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"crishim.dev/proto/admin"
)

func versionCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program and of the daemon, if one answers",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, args []string) error {
			fmt.Fprintln(c.OutOrStdout(), "shim", semver(version))
			return f.with(func(c *cobra.Command, _ []string, to *client) error {
				v, err := to.admin.Version(c.Context(), &admin.VersionRequest{})
				if code := status.Code(err); code == codes.Unavailable || code == codes.PermissionDenied {
					return nil
				}
				if err != nil {
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "daemon %s, process %d, up %s\n", v.Version, v.Pid, age(v.StartedAt, time.Now()))
				return nil
			})(c, args)
		},
	}
}

// semver is a version as semantic versioning and kubelet have it: without the v that git tags have.
func semver(v string) string { return strings.TrimPrefix(v, "v") }

func planCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "plan CONTAINER",
		Short: "Print a container's launch program: the system calls between clone and execve",
		Args:  cobra.ExactArgs(1),
		RunE: f.with(func(c *cobra.Command, args []string, to *client) error {
			resp, err := to.admin.Plan(c.Context(), &admin.PlanRequest{ContainerId: args[0]})
			if err != nil {
				return err
			}
			_, err = io.WriteString(c.OutOrStdout(), resp.Text)
			return err
		}),
	}
}

func whyCommand(f *flags) *cobra.Command {
	var o output
	c := &cobra.Command{
		Use:   "why [POD]",
		Short: "Show what operations on a pod, or on all, are under way, and since when",
		Args:  cobra.MaximumNArgs(1),
		RunE: f.with(func(c *cobra.Command, args []string, to *client) error {
			resp, err := to.admin.Why(c.Context(), &admin.WhyRequest{PodSandboxId: strings.Join(args, "")})
			if err != nil {
				return err
			}
			now := time.Now()
			return o.print(c.OutOrStdout(), resp.Activities, "POD\tCONTAINER\tOPERATION\tSTAGE\tSINCE", func(w io.Writer) {
				for _, a := range resp.Activities {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", short(a.PodSandboxId), short(a.ContainerId), a.Operation, a.Stage, age(a.Since, now))
				}
			})
		}),
	}
	o.flag(c)
	return c
}

func checkCommand(f *flags) *cobra.Command {
	var o output
	c := &cobra.Command{
		Use:   "check",
		Short: "Compare the host with what is needed, and the store with the kernel; exit 1 when something is off",
		Args:  cobra.NoArgs,
		RunE: f.with(func(c *cobra.Command, _ []string, to *client) error {
			resp, err := to.admin.Check(c.Context(), &admin.CheckRequest{})
			if err != nil {
				return err
			}
			bad := 0
			for _, finding := range resp.Findings {
				if finding.Level == admin.Finding_BAD {
					bad++
				}
			}
			err = o.print(c.OutOrStdout(), resp.Findings, "\tSUBJECT\tDETAIL", func(w io.Writer) {
				for _, finding := range resp.Findings {
					fmt.Fprintf(w, "%s\t%s\t%s\n", strings.ToLower(finding.Level.String()), finding.Subject, finding.Detail)
				}
			})
			if err == nil && bad > 0 {
				err = errors.New("something is off")
			}
			return err
		}),
	}
	o.flag(c)
	return c
}
