// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/proto/admin"
)

// situation is what `why` prints: what is under way, and how a pod stands that was asked for.
type situation struct {
	Operations []*admin.Activity
	Pod        *cri.PodSandboxStatus
	Containers []*cri.ContainerStatus
}

// MarshalJSON implements json.Marshaler.
func (e *situation) MarshalJSON() ([]byte, error) {
	out := map[string]any{"operations": messages(e.Operations)}
	if e.Pod != nil {
		out["pod"], out["containers"] = message{e.Pod}, messages(e.Containers)
	}
	return json.Marshal(out)
}

func whyCommand(f *flags) *cobra.Command {
	var o output
	c := &cobra.Command{
		Use:   "why [POD]",
		Short: "Show what a pod, or any, waits for: the operations under way, their stages, since when",
		Long: "Show the operations under way on the pod that POD, or a prefix of its id, names, or on all pods: what each is doing or\n" +
			"waiting for, and for how long. Of a named pod its state follows, and that of its containers, with the reason where one has ended.",
		Example:           "  shim why\n  shim why 3f1c5e",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: f.completeIDs(pods),
		RunE: f.with(func(c *cobra.Command, args []string, to *client) error {
			e, err := situationOf(c, strings.Join(args, ""), to)
			if err != nil {
				return err
			}
			if o.format == "table" && len(e.Operations) == 0 {
				fmt.Fprintln(c.OutOrStdout(), "Nothing is under way.")
			} else if err := o.print(c.OutOrStdout(), e, "POD\tCONTAINER\tOPERATION\tSTAGE\tSINCE", func(w io.Writer) { printOperations(w, e.Operations, time.Now()) }); err != nil {
				return err
			}
			if o.format == "table" && e.Pod != nil {
				printStates(c.OutOrStdout(), e)
			}
			return nil
		}),
	}
	o.flag(c)
	return c
}

// situationOf asks for the operations first: a pod that is still being made has them, but no status.
func situationOf(c *cobra.Command, pod string, to *client) (*situation, error) {
	resp, err := to.admin.Why(c.Context(), &admin.WhyRequest{PodSandboxId: pod})
	if err != nil {
		return nil, err
	}
	e := &situation{Operations: resp.Activities}
	if pod == "" {
		return e, nil
	}
	s, err := to.PodSandboxStatus(c.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: pod})
	if err == nil {
		e.Pod, e.Containers = s.Status, s.ContainersStatuses
	} else if status.Code(err) != codes.NotFound || len(e.Operations) == 0 {
		return nil, err
	}
	return e, nil
}

func printOperations(w io.Writer, list []*admin.Activity, now time.Time) {
	for _, a := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", short(a.PodSandboxId), short(a.ContainerId), a.Operation, a.Stage, age(a.Since, now))
	}
}

func printStates(w io.Writer, e *situation) {
	fmt.Fprintf(w, "\npod %s/%s: %s\n", e.Pod.Metadata.GetNamespace(), e.Pod.Metadata.GetName(), lower(e.Pod.State.String(), "SANDBOX_"))
	for _, c := range e.Containers {
		state := lower(c.State.String(), "CONTAINER_")
		if c.State == cri.ContainerState_CONTAINER_EXITED {
			state = ended(c)
		}
		fmt.Fprintf(w, "container %s: %s\n", c.Metadata.GetName(), state)
	}
}

// ended is how a container ended: "exited 128 (StartError): message".
func ended(c *cri.ContainerStatus) string {
	s := fmt.Sprintf("exited %d (%s)", c.ExitCode, c.Reason)
	if c.Message != "" {
		s += ": " + c.Message
	}
	return s
}
