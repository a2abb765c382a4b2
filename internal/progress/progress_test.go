// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"context"
	"testing"
)

func TestStagesOfOperations(t *testing.T) {
	var table Table
	a, endA := table.Begin(t.Context(), Operation{Sandbox: "p", Name: "run"})
	b, endB := table.Begin(t.Context(), Operation{Sandbox: "p", Container: "c", Name: "start"})
	Stage(a, "attach to the network")
	Stage(context.WithoutCancel(b), "launch")
	Stage(t.Context(), "nobody's")
	list := table.List()
	if len(list) != 2 || list[0].Stage != "attach to the network" || list[1].Stage != "launch" || list[1].Container != "c" || list[1].Since.IsZero() {
		t.Fatalf("operations %+v", list)
	}
	endA()
	Stage(a, "too late") // a straggler changes nothing
	endB()
	if list := table.List(); len(list) != 0 {
		t.Fatalf("operations %+v after their ends", list)
	}
}
