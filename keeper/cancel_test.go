// SPDX-License-Identifier: Apache-2.0

package keeper_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crishim.dev/keeper/client"
)

// TestCancelledCallsLeaveNoDescriptor: calls that are given up at any moment, also between the keeper's answer and its being
// taken, leave neither a pidfd nor anything else open in the client, also when the younger keeper is killed meanwhile.
func TestCancelledCallsLeaveNoDescriptor(t *testing.T) {
	p := newPair(t)
	lasting := p.spawn(p.container("lasting", "", "cat"))
	defer lasting.Close()
	const workers, each = 4, 250
	specs := make([]client.Spawn, workers)
	for w := range specs {
		specs[w] = p.container("", "", "print", "x")
	}
	before := descriptors(t)
	var wg sync.WaitGroup
	for w, s := range specs {
		rng := rand.New(rand.NewPCG(7, uint64(w)))
		wg.Go(func() {
			for i := range each {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rng.IntN(3000))*time.Microsecond)
				s.ID = fmt.Sprintf("p-%d-%d", w, i)
				giveUp(ctx, p.c, s, i)
				cancel()
			}
		})
	}
	wg.Go(func() {
		for range 3 {
			<-time.After(100 * time.Millisecond)
			p.killYounger()
		}
	})
	wg.Wait()
	p.settled(0, 0)
	defer func() {
		if t.Failed() {
			t.Logf("before: %q, now: %q", before, descriptors(t))
		}
	}()
	waitFor(t, "return to the descriptors of before", func() bool { return len(descriptors(t)) <= len(before) })
}

// TestClosedClientLeavesNoDescriptor: a client that is closed while a list of several packets comes in keeps none of its pidfds.
func TestClosedClientLeavesNoDescriptor(t *testing.T) {
	p := newPair(t)
	s := p.container("", "", "cat")
	for i := range 300 {
		s.ID = fmt.Sprintf("p-%d", i)
		pr, err := p.c.Spawn(timeout(t), s)
		if err != nil {
			t.Fatal(err)
		}
		pr.Close()
	}
	before := descriptors(t)
	for range 100 {
		if err := p.connect().Close(); err != nil {
			t.Fatal(err)
		}
	}
	if now := descriptors(t); len(now) > len(before) {
		t.Errorf("%d descriptors before, %d now: %q", len(before), len(now), now)
	}
}

// giveUp makes a call of one kind or another; what comes of it in time is closed.
func giveUp(ctx context.Context, c *client.Client, s client.Spawn, i int) {
	switch i % 5 {
	case 0:
		if _, files, err := c.Processes(ctx); err == nil {
			for _, f := range files {
				if f != nil {
					_ = f.Close()
				}
			}
		}
	case 1:
		if in, err := c.Attach(ctx, "lasting", true, nil, nil); err == nil {
			_ = in.Close()
		}
	default:
		s.Run = i%2 == 0
		if pr, err := c.Spawn(ctx, s); err == nil {
			pr.Close()
		}
	}
}

// descriptors are this process's, without what the Go runtime opens for itself.
func descriptors(t *testing.T) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range links {
		to, err := os.Readlink(l)
		if err == nil && !strings.HasPrefix(to, "anon_inode:[event") && to != "/proc/"+fmt.Sprint(unix.Getpid())+"/fd" {
			out = append(out, to)
		}
	}
	return out
}
