// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kinds of objects whose ids the shell completes.
type kinds int

const (
	pods kinds = 1 << iota
	containers
)

// completeWithin bounds what pressing the tab key may take.
const completeWithin = time.Second

// completeIDs offers the ids of a running daemon's objects, with their names, for a command's first argument.
func (f *flags) completeIDs(what kinds) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		to, err := f.dial()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer to.Close()
		ctx, cancel := context.WithTimeout(c.Context(), completeWithin)
		defer cancel()
		var out []cobra.Completion
		if what&pods != 0 {
			list, err := to.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			for _, p := range list.Items {
				out = append(out, cobra.CompletionWithDesc(short(p.Id), p.Metadata.GetNamespace()+"/"+p.Metadata.GetName()))
			}
		}
		if what&containers != 0 {
			list, err := to.ListContainers(ctx, &cri.ListContainersRequest{})
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			for _, c := range list.Containers {
				out = append(out, cobra.CompletionWithDesc(short(c.Id), c.Metadata.GetName()))
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
