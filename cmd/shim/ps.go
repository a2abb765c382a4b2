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
)

// podRow is a pod with its containers, as `ps -o json` prints it.
type podRow struct {
	Pod        *cri.PodSandbox
	Containers []*cri.Container
}

// MarshalJSON implements json.Marshaler.
func (r podRow) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{"pod": message{r.Pod}, "containers": messages(r.Containers)})
}

func psCommand(f *flags) *cobra.Command {
	var o output
	var all bool
	c := &cobra.Command{
		Use:     "ps",
		Short:   "List pods and their containers",
		Long:    "List the pods that are ready with their containers that run; with --all also the others. A pod's containers stand below it.",
		Example: "  shim ps\n  shim ps -a -o json",
		Args:    cobra.NoArgs,
		RunE: f.with(func(c *cobra.Command, _ []string, to *client) error {
			pods, err := to.ListPodSandbox(c.Context(), &cri.ListPodSandboxRequest{})
			if err != nil {
				return err
			}
			containers, err := to.ListContainers(c.Context(), &cri.ListContainersRequest{})
			if err != nil {
				return err
			}
			rows := group(pods.Items, containers.Containers, all)
			return o.print(c.OutOrStdout(), rows, "ID\tSTATE\tAGE\tNAME\tIMAGE", func(w io.Writer) { printPods(w, rows, time.Now()) })
		}),
	}
	o.flag(c)
	c.Flags().BoolVarP(&all, "all", "a", false, "also pods that are stopped and containers that do not run")
	return c
}

// group puts containers below their pods, and leaves out what has ended unless all is set.
func group(pods []*cri.PodSandbox, containers []*cri.Container, all bool) []podRow {
	rows := []podRow{}
	for _, p := range pods {
		if !all && p.State != cri.PodSandboxState_SANDBOX_READY {
			continue
		}
		row := podRow{Pod: p}
		for _, c := range containers {
			if c.PodSandboxId == p.Id && (all || c.State == cri.ContainerState_CONTAINER_RUNNING) {
				row.Containers = append(row.Containers, c)
			}
		}
		rows = append(rows, row)
	}
	return rows
}

func printPods(w io.Writer, rows []podRow, now time.Time) {
	for _, r := range rows {
		m := r.Pod.Metadata
		fmt.Fprintf(w, "%s\t%s\t%s\t%s/%s\t\n", short(r.Pod.Id), lower(r.Pod.State.String(), "SANDBOX_"), age(r.Pod.CreatedAt, now), m.GetNamespace(), m.GetName())
		for _, c := range r.Containers {
			fmt.Fprintf(w, "%s\t%s\t%s\t└ %s\t%s\n", short(c.Id), lower(c.State.String(), "CONTAINER_"), age(c.CreatedAt, now), c.Metadata.GetName(), imageName(c))
		}
	}
}

func imageName(c *cri.Container) string {
	if n := c.Image.GetUserSpecifiedImage(); n != "" {
		return n
	}
	if strings.HasPrefix(c.Image.GetImage(), "sha256:") {
		return short(c.Image.GetImage())
	}
	return c.Image.GetImage()
}

func lower(v, prefix string) string { return strings.ToLower(strings.TrimPrefix(v, prefix)) }

func inspectCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:               "inspect ID",
		Short:             "Show everything about a container, a pod or an image, as JSON",
		Long:              "Show everything about what ID, or a prefix of it, names, as JSON: looked for among containers, then pods, then images.",
		Example:           "  shim inspect 9d02aa\n  shim inspect 3f1c5e | jq .status.network",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: f.completeIDs(pods | containers),
		RunE: f.with(func(c *cobra.Command, args []string, to *client) error {
			v, err := inspect(c, args[0], to)
			if err != nil {
				return err
			}
			return printJSON(c.OutOrStdout(), v)
		}),
	}
}

// inspected is a verbose status whose info is unfolded.
type inspected struct {
	Status     message                    `json:"status"`
	Info       map[string]json.RawMessage `json:"info,omitempty"`
	Containers []message                  `json:"containers,omitempty"`
}

// inspect asks for a container, a pod and an image of that id, in this order.
func inspect(c *cobra.Command, id string, to *client) (*inspected, error) {
	ctr, err := to.ContainerStatus(c.Context(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err == nil {
		return &inspected{Status: message{ctr.Status}, Info: unfold(ctr.Info)}, nil
	}
	if status.Code(err) != codes.NotFound {
		return nil, err
	}
	pod, err := to.PodSandboxStatus(c.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err == nil {
		return &inspected{Status: message{pod.Status}, Info: unfold(pod.Info), Containers: messages(pod.ContainersStatuses)}, nil
	}
	if status.Code(err) != codes.NotFound {
		return nil, err
	}
	img, err := to.images.ImageStatus(c.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: id}, Verbose: true})
	if err != nil {
		return nil, err
	}
	if img.Image == nil {
		return nil, fmt.Errorf("find %s: neither a container nor a pod nor an image", id)
	}
	return &inspected{Status: message{img.Image}, Info: unfold(img.Info)}, nil
}

// unfold takes the values that are JSON as such and the others as strings.
func unfold(info map[string]string) map[string]json.RawMessage {
	out := map[string]json.RawMessage{}
	for k, v := range info {
		if json.Valid([]byte(v)) {
			out[k] = json.RawMessage(v)
			continue
		}
		quoted, err := json.Marshal(v)
		if err == nil {
			out[k] = quoted
		}
	}
	return out
}
