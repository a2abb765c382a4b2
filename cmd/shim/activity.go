// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"

	"crishim.dev/container"
	"crishim.dev/internal/progress"
	"crishim.dev/sandbox"
	"crishim.dev/server"
)

// watcher shows what the managers are doing in the admin service's terms.
type watcher []interface{ Activities() []progress.Operation }

// Activities implements server.Watcher.
func (w watcher) Activities() []server.Activity {
	var all []progress.Operation
	for _, m := range w {
		all = append(all, m.Activities()...)
	}
	slices.SortFunc(all, func(a, b progress.Operation) int { return a.Since.Compare(b.Since) })
	out := make([]server.Activity, 0, len(all))
	for _, op := range all {
		out = append(out, server.Activity{
			Sandbox: sandbox.ID(op.Sandbox), Container: container.ID(op.Container), Operation: op.Name, Stage: op.Stage, Since: op.Since,
		})
	}
	return out
}
