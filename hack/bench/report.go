// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
)

// latency is one row: milliseconds.
type latency struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50_ms"`
	P90 float64 `json:"p90_ms"`
	Max float64 `json:"max_ms"`
}

// result is one run, as the JSON has it.
type result struct {
	Runtime        string             `json:"runtime"`
	Pods           int                `json:"pods"`
	Latency        map[string]latency `json:"latency"`
	PodsPerSecond  float64            `json:"pods_per_second"`
	LogMBPerSecond float64            `json:"log_mb_per_second"`
	// Empty and Full are the cost with no pods and with all; PerPodKB the difference in memory per pod.
	Empty    cost    `json:"cost_empty"`
	Full     cost    `json:"cost_full"`
	PerPodKB float64 `json:"memory_per_pod_kb"`
}

// order puts the rows as a pod lives; what is not named follows by name.
func order(rows map[string]latency) []string {
	life := []string{
		"RunPodSandbox", "CreateContainer", "StartContainer", startToRunning, "ExecSync", "StopContainer", "RemoveContainer",
		"StopPodSandbox", "RemovePodSandbox", "Version", "ListPodSandbox", "ListContainers", "ListPodSandboxStats",
	}
	names := slices.Sorted(maps.Keys(rows))
	slices.SortStableFunc(names, func(a, b string) int { return place(life, a) - place(life, b) })
	return names
}

func place(list []string, name string) int {
	if i := slices.Index(list, name); i >= 0 {
		return i
	}
	return len(list)
}

func (r result) print(w io.Writer) {
	fmt.Fprintf(w, "%s, %d pods\n\n", r.Runtime, r.Pods)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "ms\tn\tp50\tp90\tmax\t")
	for _, name := range order(r.Latency) {
		l := r.Latency[name]
		fmt.Fprintf(t, "%s\t%d\t%.2f\t%.2f\t%.2f\t\n", name, l.N, l.P50, l.P90, l.Max)
	}
	t.Flush()
	fmt.Fprintln(w)
	if r.PodsPerSecond > 0 {
		fmt.Fprintf(w, "pods per second, all at once: %.1f\n", r.PodsPerSecond)
	}
	if r.LogMBPerSecond > 0 {
		fmt.Fprintf(w, "log: %.0f MB/s\n", r.LogMBPerSecond)
	}
	for _, c := range []struct {
		name string
		cost
	}{{"no pods", r.Empty}, {fmt.Sprintf("%d pods", r.Pods), r.Full}} {
		fmt.Fprintf(w, "%s: %d processes, PSS %d KB, tmpfs %d KB, idle CPU %.1f ms/s\n", c.name, c.Processes, c.PSSKB, c.TmpfsKB, c.CPU)
	}
	fmt.Fprintf(w, "memory per pod: %.0f KB\n", r.PerPodKB)
}
