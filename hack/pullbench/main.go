// SPDX-License-Identifier: Apache-2.0

// Command pullbench times how long shim and containerd take to pull the same image from the same registry, in turns, on a
// throw-away node; hack/pullbench/run starts it there. It also says what disk space and memory a pull takes at its peak.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

type options struct {
	trees      string
	megabytes  int64
	files      int
	layers     int
	rounds     int
	formats    string
	containerd string // directory with its programs
	scratch    string
	out        string
}

func main() {
	var o options
	flag.StringVar(&o.trees, "trees", "/usr/local/go,/usr/lib,/usr/share,/usr/bin", "where the image's files come from")
	flag.Int64Var(&o.megabytes, "mb", 941, "size of the image's files, in millions of bytes")
	flag.IntVar(&o.files, "files", 18000, "number of files")
	flag.IntVar(&o.layers, "layers", 10, "number of layers")
	flag.IntVar(&o.rounds, "rounds", 3, "how many times each runtime pulls")
	flag.StringVar(&o.formats, "formats", "gzip,zstd", "how the layers are packed")
	flag.StringVar(&o.containerd, "containerd", "", "directory with containerd (hack/tool containerd); empty: shim alone")
	flag.StringVar(&o.scratch, "scratch", os.TempDir(), "where containerd's root and the image lie; shim's root is the node's")
	flag.StringVar(&o.out, "json", "", "file for the result")
	flag.Parse()
	if err := run(context.Background(), o); err != nil {
		fmt.Fprintln(os.Stderr, "pullbench:", err)
		os.Exit(1)
	}
}

// figures are what one runtime showed with one packing.
type figures struct {
	Runtime, Format string
	// Seconds is the time of each pull, Synced the same until everything is on the disk as well.
	Seconds, Synced []float64
	// CPU is what the daemon used of the processors in each pull.
	CPU []float64
	// PeakMemory is how far the daemon's resident memory rose above what it was before the first pull.
	PeakMemory int64
	// PeakDisk is the most that the runtime's directory took during a pull, Disk what it took after; both above before.
	PeakDisk, Disk int64
}

func run(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp(o.scratch, "pullbench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	reg, err := serve()
	if err != nil {
		return err
	}
	var all []*figures
	formats := strings.Split(o.formats, ",")
	files, err := choose(strings.Split(o.trees, ","), o.megabytes*1_000_000, o.files)
	if err != nil {
		return err
	}
	for _, format := range formats {
		size, err := build(filepath.Join(dir, format), format, files, o.layers, reg)
		if err != nil {
			return fmt.Errorf("make image: %w", err)
		}
		fmt.Printf("%s: %d files, %.0f MB, %d layers, %.0f MB packed\n", format, len(files), float64(total(files))/1e6, o.layers, float64(size)/1e6)
		got, err := compare(ctx, o, dir, reg.ref(format), format)
		if err != nil {
			return err
		}
		all = append(all, got...)
	}
	report(all)
	if o.out != "" {
		b, err := json.MarshalIndent(all, "", "\t")
		if err == nil {
			err = os.WriteFile(o.out, b, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return judge(all)
}

// What a pull by shim may take at most, in bytes: memory over idle, and disk over what stays.
const (
	mostMemory = 150 << 20
	mostDisk   = 64 << 20
)

// judge fails when shim took more than it may. Times are not judged: they are the machine's as much.
func judge(all []*figures) (err error) {
	for _, f := range all {
		if !strings.HasPrefix(f.Runtime, "shim") {
			continue
		}
		if f.PeakMemory > mostMemory {
			err = errors.Join(err, fmt.Errorf("%s: the daemon rose by %.0f MB; at most %.0f are allowed", f.Format, float64(f.PeakMemory)/1e6, float64(mostMemory)/1e6))
		}
		if over := f.PeakDisk - f.Disk; over > mostDisk {
			err = errors.Join(err, fmt.Errorf("%s: %.0f MB of disk more than what stays; at most %.0f are allowed", f.Format, float64(over)/1e6, float64(mostDisk)/1e6))
		}
	}
	return err
}

// compare lets the runtimes pull in turns. Each is started afresh, so that its memory before the first pull is what idling takes.
func compare(ctx context.Context, o options, dir, ref, format string) ([]*figures, error) {
	pid, err := strconv.Atoi(os.Getenv("SHIM_NODE_DAEMON"))
	if err != nil {
		return nil, fmt.Errorf("run it on a node, by hack/pullbench/run: SHIM_NODE_DAEMON: %w", err)
	}
	shim, err := attach(ctx, "shim", os.Getenv("SHIM_SOCKET"), pid, os.Getenv("SHIM_NODE_ROOT"))
	if err != nil {
		return nil, err
	}
	runtimes := []*contender{shim}
	if o.containerd != "" {
		other, stop, err := startContainerd(ctx, o.containerd, filepath.Join(dir, "containerd-"+format))
		if err != nil {
			return nil, fmt.Errorf("start containerd: %w", err)
		}
		defer stop()
		runtimes = append(runtimes, other)
	}
	var out []*figures
	for _, r := range runtimes {
		out = append(out, &figures{Runtime: r.name, Format: format})
	}
	for round := range o.rounds + 1 {
		for i, r := range runtimes {
			// The last round is for the disk: watching it takes time.
			if err := r.round(ctx, ref, out[i], round == o.rounds); err != nil {
				return nil, fmt.Errorf("%s: %w", r.name, err)
			}
		}
	}
	return out, nil
}

func report(all []*figures) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "runtime\tformat\tpull, s\tuntil on disk, s\tCPU, s\tpeak memory, MB\tdisk after, MB\tpeak disk, MB\t")
	for _, f := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%.0f\t%.0f\t+%.0f\t\n", f.Runtime, f.Format, seconds(f.Seconds), seconds(f.Synced), seconds(f.CPU),
			float64(f.PeakMemory)/1e6, float64(f.Disk)/1e6, float64(f.PeakDisk-f.Disk)/1e6)
	}
	_ = w.Flush()
	for i, f := range all {
		for _, g := range all[i+1:] {
			if f.Format == g.Format {
				fmt.Printf("%s: %s takes %.2f times as long as %s (medians; %.2f by the best of each), %.2f times until on disk\n", f.Format, g.Runtime,
					median(g.Seconds)/median(f.Seconds), f.Runtime, slices.Min(g.Seconds)/slices.Min(f.Seconds), median(g.Synced)/median(f.Synced))
			}
		}
	}
	fmt.Println(time.Now().UTC().Format(time.DateOnly))
}

// seconds prints the median and all values.
func seconds(v []float64) string {
	parts := make([]string, 0, len(v))
	for _, s := range v {
		parts = append(parts, strconv.FormatFloat(s, 'f', 2, 64))
	}
	return fmt.Sprintf("%.2f (%s)", median(v), strings.Join(parts, " "))
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if len(s) == 0 {
		return 0
	}
	return s[len(s)/2]
}
