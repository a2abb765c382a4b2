// SPDX-License-Identifier: Apache-2.0

package main

import (
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
		Use:     "version",
		Short:   "Print the version of this program and of the daemon, if one answers",
		Example: "  shim version",
		Args:    cobra.NoArgs,
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
		Long: "Print the launch program of the container that CONTAINER, or a prefix of its id, names: the system calls that were, or would be,\n" +
			"made between clone and execve, grouped by stage. A stage is what an error of a start names. Values of variables are left out;\n" +
			"descriptors are numbered in the order in which they were passed.",
		Example:           "  shim plan 9d02aa",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: f.completeIDs(containers),
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

func checkCommand(f *flags) *cobra.Command {
	var o output
	c := &cobra.Command{
		Use:   "check",
		Short: "Compare the host with what is needed, and the store with the kernel; exit 1 when something is off",
		Long: "Look at the kernel's features, the cgroup controllers, the network and at whether all that is recorded as alive is.\n" +
			"\"ok\" is fine, \"note\" says what works less without something optional, \"bad\" is what pods can't run without or where\n" +
			"records and kernel disagree. Exit status 1 when anything is bad, or when no daemon answers.",
		Example: "  shim check\n  shim check -o json | jq '.[] | select(.level == \"BAD\")'",
		Args:    cobra.NoArgs,
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
			err = o.print(c.OutOrStdout(), messages(resp.Findings), "\tSUBJECT\tDETAIL", func(w io.Writer) {
				for _, finding := range resp.Findings {
					fmt.Fprintf(w, "%s\t%s\t%s\n", strings.ToLower(finding.Level.String()), finding.Subject, finding.Detail)
				}
			})
			if err == nil && bad > 0 {
				err = fmt.Errorf("%d of %d are bad", bad, len(resp.Findings))
			}
			return err
		}),
	}
	o.flag(c)
	return c
}
