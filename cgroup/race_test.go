// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
)

// TestPodsComeAndGoTogether makes and prunes pods below one parent that none of them found: each may take away, at its end, what
// another has just found there.
func TestPodsComeAndGoTogether(t *testing.T) {
	for host, m := range hosts(t) {
		t.Run(host, func(t *testing.T) {
			top := name(t, m)
			var all sync.WaitGroup
			for i := range 8 {
				all.Go(func() {
					for range 20 {
						if err := life(t.Context(), m, fmt.Sprintf("%s/a/b/pod%d", top, i)); err != nil {
							t.Errorf("pod %d: %v", i, err)
							return
						}
					}
				})
			}
			all.Wait()
		})
	}
}

func life(ctx context.Context, m *Manager, path string) error {
	pod, made, err := m.CreatePod(ctx, path, &Resources{})
	if err != nil || !made {
		return fmt.Errorf("made %v: %w", made, err)
	}
	c, err := m.Create(ctx, m.Container(path, "c"), nil)
	if err != nil {
		return err
	}
	procs, dir, err := c.Files()
	for _, f := range append(procs, dir) {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if _, e := c.Stats(); e != nil {
		err = errors.Join(err, e)
	}
	return errors.Join(err, c.Kill(ctx), c.Remove(ctx), pod.Prune(ctx))
}
