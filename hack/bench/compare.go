// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// compare prints the results of two runtimes side by side. which are their JSON files, "A1 A2 / B1 B2"; of several runs of one the median
// counts (the lower one of two).
func compare(which string, w io.Writer) error {
	first, second, ok := strings.Cut(which, " / ")
	if !ok {
		return fmt.Errorf("compare %q: want FILES / FILES", which)
	}
	a, err := median(strings.Fields(first))
	if err != nil {
		return err
	}
	b, err := median(strings.Fields(second))
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "\t%s\t%s\tratio\t\n", a.Runtime, b.Runtime)
	for _, name := range order(a.Latency) {
		if y, both := b.Latency[name]; both {
			row(t, name+", p50 ms", a.Latency[name].P50, y.P50)
		}
	}
	row(t, "memory per pod, KB", a.PerPodKB, b.PerPodKB)
	row(t, "memory without pods, KB", float64(a.Empty.PSSKB+a.Empty.TmpfsKB), float64(b.Empty.PSSKB+b.Empty.TmpfsKB))
	row(t, fmt.Sprintf("processes with %d pods", a.Pods), float64(a.Full.Processes), float64(b.Full.Processes))
	row(t, "idle CPU with pods, ms/s", a.Full.CPU, b.Full.CPU)
	row(t, "pods per second, all at once", a.PodsPerSecond, b.PodsPerSecond)
	row(t, "log, MB/s", a.LogMBPerSecond, b.LogMBPerSecond)
	return t.Flush()
}

func row(w io.Writer, name string, a, b float64) {
	ratio := "-"
	if a > 0 {
		ratio = fmt.Sprintf("%.1f", b/a)
	}
	fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%s\t\n", name, a, b, ratio)
}

// median reads runs and takes the middle of each figure.
func median(files []string) (result, error) {
	if len(files) == 0 {
		return result{}, fmt.Errorf("compare: no files")
	}
	runs := make([]result, len(files))
	for i, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return result{}, err
		}
		if err := json.Unmarshal(text, &runs[i]); err != nil {
			return result{}, fmt.Errorf("read %s: %w", name, err)
		}
	}
	middle := func(figure func(result) float64) float64 {
		all := make([]float64, len(runs))
		for i, r := range runs {
			all[i] = figure(r)
		}
		slices.Sort(all)
		return all[(len(all)-1)/2]
	}
	out := runs[0]
	out.Latency = make(map[string]latency, len(runs[0].Latency))
	for name, l := range runs[0].Latency {
		l.P50 = middle(func(r result) float64 { return r.Latency[name].P50 })
		l.P90 = middle(func(r result) float64 { return r.Latency[name].P90 })
		out.Latency[name] = l
	}
	out.PerPodKB = middle(func(r result) float64 { return r.PerPodKB })
	out.PodsPerSecond = middle(func(r result) float64 { return r.PodsPerSecond })
	out.LogMBPerSecond = middle(func(r result) float64 { return r.LogMBPerSecond })
	out.Full.CPU = middle(func(r result) float64 { return r.Full.CPU })
	return out, nil
}
