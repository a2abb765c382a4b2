// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
	"crishim.dev/sandbox"
)

// Update changes limits: of a running container at once, of a created one for its start. Fields that are zero stay as they are.
func (m *Manager) Update(ctx context.Context, id ID, change *cri.LinuxContainerResources) error {
	unlock, err := m.locks.Lock(ctx, string(id))
	if err != nil {
		return err
	}
	defer unlock()
	r := m.current(id)
	switch {
	case r == nil:
		return errs.Newf(errs.NotFound, "update container %s: no such container", id)
	case r.State != Created && r.State != Running:
		return errs.Newf(errs.Precondition, "update container %s: it is %s", r.name(), r.State)
	case change == nil:
		return errs.Newf(errs.Invalid, "update container %s: linux: no resources", r.name())
	}
	merged := merge(r.Resources, change)
	if r.State == Running {
		if err := m.apply(ctx, r, change, merged); err != nil {
			return fmt.Errorf("update container %s: %w", r.name(), err)
		}
	}
	return m.put(r.with(func(r *record) { r.Resources = merged }))
}

func merge(old, change *cri.LinuxContainerResources) *cri.LinuxContainerResources {
	out := proto.CloneOf(old)
	hugepages := map[string]uint64{}
	for _, h := range slices.Concat(old.GetHugepageLimits(), change.GetHugepageLimits()) {
		hugepages[h.GetPageSize()] = h.GetLimit()
	}
	unified := maps.Clone(old.GetUnified())
	proto.Merge(out, change)
	out.HugepageLimits = nil
	for size, limit := range hugepages {
		out.HugepageLimits = append(out.HugepageLimits, &cri.HugepageLimit{PageSize: size, Limit: limit})
	}
	if unified != nil {
		maps.Copy(unified, change.GetUnified())
		out.Unified = unified
	}
	return out
}

func (m *Manager) apply(ctx context.Context, r *record, change, merged *cri.LinuxContainerResources) error {
	g, err := m.o.Cgroups.Open(r.Cgroup)
	if err != nil {
		return err
	}
	if err := g.Update(ctx, sandbox.Resources(change)); err != nil {
		return err
	}
	if change.GetOomScoreAdj() == 0 || merged.GetOomScoreAdj() == r.Resources.GetOomScoreAdj() {
		return nil
	}
	pids, err := g.PIDs()
	if err != nil {
		return err
	}
	adj := max(int(merged.GetOomScoreAdj()), m.o.Facts.OOMScoreAdjMin)
	for _, pid := range pids {
		err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(adj)), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set oom_score_adj: %w", err)
		}
	}
	return nil
}
