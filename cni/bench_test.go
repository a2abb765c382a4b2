// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/cni/builtin/testpod"
)

// BenchmarkAttach reports the medians of Attach and Detach as the caller waits for them, in sequence.
func BenchmarkAttach(b *testing.B) { benchmark(b, 0, nil) }

// BenchmarkAttachPorts is the same with two host ports.
func BenchmarkAttachPorts(b *testing.B) {
	benchmark(b, 0, []PortMapping{{HostPort: 8080, ContainerPort: 80}, {HostPort: 8443, ContainerPort: 443}})
}

// BenchmarkAttachBeside500 is with two host ports and 500 pods present.
func BenchmarkAttachBeside500(b *testing.B) {
	benchmark(b, 500, []PortMapping{{HostPort: 8080, ContainerPort: 80}, {HostPort: 8443, ContainerPort: 443}})
}

func benchmark(b *testing.B, present int, ports []PortMapping) {
	n := open(b, nil)
	ctx := context.Background()
	for i := range present {
		pod := podOf(testpod.New(b, 1e6+i))
		pod.PortMappings = []PortMapping{{HostPort: int32(10000 + 2*i), ContainerPort: 80}, {HostPort: int32(10001 + 2*i), ContainerPort: 443}}
		attach(b, n, pod)
	}
	var add, del []time.Duration
	var cpu time.Duration
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		p := testpod.New(b, i)
		pod := podOf(p)
		pod.PortMappings = ports
		b.StartTimer()
		used, t := processorTime(b), time.Now()
		if _, err := n.Attach(ctx, pod); err != nil {
			b.Fatal(err)
		}
		add = append(add, time.Since(t))
		cpu += processorTime(b) - used
		t = time.Now()
		if err := n.Detach(ctx, pod); err != nil {
			b.Fatal(err)
		}
		del = append(del, time.Since(t))
		b.StopTimer()
		p.Kill()
		if err := n.Wait(ctx); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(cpu.Seconds()*1e3/float64(len(add)), "attach-cpu-ms")
	for _, r := range []struct {
		name string
		all  []time.Duration
	}{{"attach", add}, {"detach", del}} {
		slices.Sort(r.all)
		b.ReportMetric(float64(r.all[0].Nanoseconds())/1e6, r.name+"-min-ms")
		b.ReportMetric(float64(r.all[len(r.all)/2].Nanoseconds())/1e6, r.name+"-p50-ms")
		b.ReportMetric(float64(r.all[len(r.all)*9/10].Nanoseconds())/1e6, r.name+"-p90-ms")
	}
}

// processorTime is what the process has used, in user and kernel mode: unlike time it does not depend on who else is busy.
func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
