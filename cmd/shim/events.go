// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func eventsCommand(f *flags) *cobra.Command {
	var o output
	c := &cobra.Command{
		Use:   "events",
		Short: "Print what happens to pods and containers, until interrupted",
		Long: "Print what happens to pods and containers from now on, in order, until interrupted. A container's event has its name and,\n" +
			"once it has ended, its exit code. With -o json each event is one line, as CRI has it, with the statuses of then.",
		Example: "  shim events\n  shim events -o json | jq -r .container_event_type",
		Args:    cobra.NoArgs,
		RunE: f.with(func(c *cobra.Command, _ []string, to *client) error {
			stream, err := to.GetContainerEvents(c.Context(), &cri.GetEventsRequest{})
			if err != nil {
				return err
			}
			for {
				e, err := stream.Recv()
				switch {
				case errors.Is(err, io.EOF), status.Code(err) == codes.Canceled && c.Context().Err() != nil:
					return nil
				case err != nil:
					return err
				}
				if err := o.event(c.OutOrStdout(), e); err != nil {
					return err
				}
			}
		}),
	}
	o.flag(c)
	return c
}

// event prints one event: a line either way, for they come one by one.
func (o *output) event(w io.Writer, e *cri.ContainerEventResponse) error {
	switch o.format {
	case "json":
		return json.NewEncoder(w).Encode(message{e})
	case "table":
		kind := strings.TrimSuffix(lower(e.ContainerEventType.String(), "CONTAINER_"), "_event")
		_, err := fmt.Fprintf(w, "%s  %-7s  %s  %s\n", time.Unix(0, e.CreatedAt).Format("2006-01-02T15:04:05.000Z07:00"), kind, short(e.ContainerId), subject(e))
		return err
	default:
		return o.unknown()
	}
}

// subject names what an event is about: NAMESPACE/POD, or NAMESPACE/POD/CONTAINER, and how it ended if it did.
func subject(e *cri.ContainerEventResponse) string {
	pod := e.PodSandboxStatus.GetMetadata().GetNamespace() + "/" + e.PodSandboxStatus.GetMetadata().GetName()
	i := slices.IndexFunc(e.ContainersStatuses, func(c *cri.ContainerStatus) bool { return c.Id == e.ContainerId })
	if i < 0 {
		return pod
	}
	c := e.ContainersStatuses[i]
	if e.ContainerEventType != cri.ContainerEventType_CONTAINER_STOPPED_EVENT {
		return pod + "/" + c.GetMetadata().GetName()
	}
	return pod + "/" + c.GetMetadata().GetName() + "  " + ended(c)
}
