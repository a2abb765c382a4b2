// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func statsCommand(f *flags) *cobra.Command {
	var o output
	var interval time.Duration
	c := &cobra.Command{
		Use:   "stats [ID]",
		Short: "Show what pods and containers use",
		Long: "Show what pods and containers use: all, or the pod or container that ID, or a prefix of it, names.\n" +
			"CPU is what was used within --interval, in cores. A pod's numbers include its containers'.\n" +
			"With -o json the second of the two readings is printed as CRI has it.",
		Example:           "  shim stats\n  shim stats --interval 10s 3f1c5e",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: f.completeIDs(pods | containers),
		RunE: f.with(func(c *cobra.Command, args []string, to *client) error {
			before, err := usages(c.Context(), to, args)
			if err != nil {
				return err
			}
			select {
			case <-time.After(interval):
			case <-c.Context().Done():
				return nil
			}
			after, err := usages(c.Context(), to, args)
			if err != nil {
				return err
			}
			return o.print(c.OutOrStdout(), messages(after), "ID\tNAME\tCPU\tMEMORY\tPROCESSES\tRECEIVED\tSENT\tDISK", func(w io.Writer) { printUsages(w, before, after) })
		}),
	}
	o.flag(c)
	c.Flags().DurationVar(&interval, "interval", time.Second, "time between the two readings that CPU is computed from")
	return c
}

// usages asks for the statistics of the pods, and containers in them, that args, at most one prefix of an id, names.
func usages(ctx context.Context, to *client, args []string) ([]*cri.PodSandboxStats, error) {
	resp, err := to.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
	if err != nil {
		return nil, err
	}
	id := strings.Join(args, "")
	out := []*cri.PodSandboxStats{}
	for _, p := range resp.Stats {
		if strings.HasPrefix(p.Attributes.GetId(), id) {
			out = append(out, p)
			continue
		}
		var found []*cri.ContainerStats
		for _, c := range p.GetLinux().GetContainers() {
			if strings.HasPrefix(c.Attributes.GetId(), id) {
				found = append(found, c)
			}
		}
		if len(found) > 0 {
			out = append(out, &cri.PodSandboxStats{Attributes: p.Attributes, Linux: &cri.LinuxPodSandboxStats{Containers: found}})
		}
	}
	if len(out) == 0 && id != "" {
		return nil, fmt.Errorf("find %s: no running pod or container has this id", id)
	}
	return out, nil
}

// printUsages writes a row for each pod that has numbers of its own, and one for each container. Rates need both readings.
func printUsages(w io.Writer, before, after []*cri.PodSandboxStats) {
	earlier := map[string]*cri.CpuUsage{}
	for _, p := range before {
		earlier[p.Attributes.GetId()] = p.GetLinux().GetCpu()
		for _, c := range p.GetLinux().GetContainers() {
			earlier[c.Attributes.GetId()] = c.Cpu
		}
	}
	for _, p := range after {
		l := p.GetLinux()
		if l.GetMemory() != nil {
			net := l.GetNetwork().GetDefaultInterface()
			fmt.Fprintf(w, "%s\t%s/%s\t%s\t%s\t%s\t%s\t%s\t-\n", short(p.Attributes.GetId()), p.Attributes.GetMetadata().GetNamespace(), p.Attributes.GetMetadata().GetName(),
				cores(earlier[p.Attributes.GetId()], l.Cpu), bytesOr(l.Memory.WorkingSetBytes), numberOr(l.GetProcess().GetProcessCount()),
				bytesOr(net.GetRxBytes()), bytesOr(net.GetTxBytes()))
		}
		for _, c := range l.GetContainers() {
			fmt.Fprintf(w, "%s\t└ %s\t%s\t%s\t-\t-\t-\t%s\n", short(c.Attributes.GetId()), c.Attributes.GetMetadata().GetName(),
				cores(earlier[c.Attributes.GetId()], c.Cpu), bytesOr(c.GetMemory().GetWorkingSetBytes()), bytesOr(c.GetWritableLayer().GetUsedBytes()))
		}
	}
}

// cores is the CPU time used between two readings over the time between them.
func cores(before, after *cri.CpuUsage) string {
	used := int64(after.GetUsageCoreNanoSeconds().GetValue()) - int64(before.GetUsageCoreNanoSeconds().GetValue())
	passed := after.GetTimestamp() - before.GetTimestamp()
	if before == nil || after == nil || passed <= 0 || used < 0 {
		return "-"
	}
	return fmt.Sprintf("%.3f", float64(used)/float64(passed))
}

func bytesOr(v *cri.UInt64Value) string {
	if v == nil {
		return "-"
	}
	return size(v.Value)
}

func numberOr(v *cri.UInt64Value) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprint(v.Value)
}
