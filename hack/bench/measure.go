// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// startToRunning is the row that counts: from RunPodSandbox called to StartContainer returned.
const startToRunning = "start to running"

// record sorts durations into a row.
func (b *bench) record(name string, took []time.Duration) {
	if len(took) == 0 {
		return
	}
	slices.Sort(took)
	at := func(q float64) float64 { return ms(took[int(q*float64(len(took)-1)+0.5)]) }
	b.result.Latency[name] = latency{N: len(took), P50: at(0.5), P90: at(0.9), Max: at(1)}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// sequence runs n pods one after the other, from nothing to running and back, beside one that stays: a node is never empty, and what is
// made for the first pod and goes with the last one is not a pod's.
func (b *bench) sequence(ctx context.Context) error {
	return b.all(ctx, 1, func([]*pod) error { return b.each(ctx) })
}

func (b *bench) each(ctx context.Context) error {
	rows := make(map[string][]time.Duration)
	for range b.pods {
		p := b.newPod()
		up, err := b.start(ctx, p, sleeper()...)
		if err != nil {
			return err
		}
		down, err := b.remove(ctx, p)
		if err != nil {
			return errors.Join(err, os.RemoveAll(p.config.LogDirectory))
		}
		for _, s := range append(up, down...) {
			rows[s.name] = append(rows[s.name], s.took)
		}
		if err := os.RemoveAll(p.config.LogDirectory); err != nil {
			return err
		}
	}
	for name, took := range rows {
		b.record(name, took)
	}
	return nil
}

// all runs n pods and removes them after f.
func (b *bench) all(ctx context.Context, n int, f func(pods []*pod) error) (err error) {
	var pods []*pod
	defer func() {
		for _, p := range pods {
			_, rerr := b.remove(context.WithoutCancel(ctx), p)
			err = errors.Join(err, rerr, os.RemoveAll(p.config.LogDirectory))
		}
	}()
	for range n {
		p := b.newPod()
		if _, err := b.start(ctx, p, sleeper()...); err != nil {
			return err
		}
		pods = append(pods, p)
	}
	return f(pods)
}

// standing measures what n pods that do nothing cost, and how long listing them takes.
func (b *bench) standing(ctx context.Context) error {
	before, err := b.cost(ctx)
	if err != nil {
		return err
	}
	return b.all(ctx, b.pods, func([]*pod) error {
		calls := map[string]func() error{
			"Version":        func() error { _, err := b.runtime.Version(ctx, &cri.VersionRequest{}); return err },
			"ListPodSandbox": func() error { _, err := b.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}); return err },
			"ListContainers": func() error { _, err := b.runtime.ListContainers(ctx, &cri.ListContainersRequest{}); return err },
			"ListPodSandboxStats": func() error {
				_, err := b.runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
				return err
			},
		}
		for name, call := range calls {
			var took []time.Duration
			for range 100 {
				began := time.Now()
				if err := call(); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				took = append(took, time.Since(began))
			}
			b.record(name, took)
		}
		after, err := b.cost(ctx)
		if err != nil {
			return err
		}
		b.result.Empty, b.result.Full = before, after
		b.result.PerPodKB = float64(after.PSSKB+after.TmpfsKB-before.PSSKB-before.TmpfsKB) / float64(b.pods)
		return nil
	})
}

// exec runs true in one container, again and again.
func (b *bench) exec(ctx context.Context) error {
	return b.all(ctx, 1, func(pods []*pod) error {
		var took []time.Duration
		for range b.execs {
			began := time.Now()
			r, err := b.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: pods[0].inner, Cmd: []string{"true"}, Timeout: 10})
			if err != nil {
				return fmt.Errorf("ExecSync: %w", err)
			}
			if r.GetExitCode() != 0 {
				return fmt.Errorf("ExecSync: exit code %d", r.GetExitCode())
			}
			took = append(took, time.Since(began))
		}
		b.record("ExecSync", took)
		return nil
	})
}

// atOnce runs p pods at the same time.
func (b *bench) atOnce(ctx context.Context) error {
	if b.parallel == 0 {
		return nil
	}
	type outcome struct {
		steps []step
		err   error
	}
	pods := make([]*pod, b.parallel)
	for i := range pods {
		pods[i] = b.newPod()
	}
	outcomes := make(chan outcome, b.parallel)
	began := time.Now()
	for _, p := range pods {
		go func() {
			steps, err := b.start(ctx, p, sleeper()...)
			outcomes <- outcome{steps, err}
		}()
	}
	var took []time.Duration
	var err error
	for range pods {
		o := <-outcomes
		err = errors.Join(err, o.err)
		took = append(took, o.steps[len(o.steps)-1].took)
	}
	wall := time.Since(began)
	for _, p := range pods {
		if _, rerr := b.remove(context.WithoutCancel(ctx), p); rerr != nil {
			err = errors.Join(err, rerr)
		}
		err = errors.Join(err, os.RemoveAll(p.config.LogDirectory))
	}
	b.record(fmt.Sprintf("%s, %d at once", startToRunning, b.parallel), took)
	b.result.PodsPerSecond = float64(b.parallel) / wall.Seconds()
	return err
}

// log lets one container write as fast as it can.
func (b *bench) log(ctx context.Context) (err error) {
	if b.logBytes == 0 {
		return nil
	}
	p := b.newPod()
	// A file written once and copied is faster than what makes lines, so that the runtime is what is measured.
	const block = 1000000
	line := strings.Repeat("0123456789", 10)[1:]
	command := fmt.Sprintf("yes %s | head -c %d > /tmp/block; i=0; while [ $i -lt %d ]; do cat /tmp/block; i=$((i+1)); done", line, block, b.logBytes/block)
	defer func() {
		_, rerr := b.remove(context.WithoutCancel(ctx), p)
		err = errors.Join(err, rerr, os.RemoveAll(p.config.LogDirectory))
	}()
	began := time.Now()
	if _, err := b.start(ctx, p, "sh", "-c", command); err != nil {
		return err
	}
	for {
		s, err := b.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: p.inner})
		if err != nil {
			return fmt.Errorf("ContainerStatus: %w", err)
		}
		if s.GetStatus().GetState() == cri.ContainerState_CONTAINER_EXITED {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	took := time.Since(began)
	info, err := os.Stat(filepath.Join(p.config.LogDirectory, "c.log"))
	if err != nil {
		return err
	}
	if info.Size() < b.logBytes/block*block {
		return fmt.Errorf("log has %d bytes of %d", info.Size(), b.logBytes)
	}
	b.result.LogMBPerSecond = float64(b.logBytes) / 1e6 / took.Seconds()
	return nil
}
