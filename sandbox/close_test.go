// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"log/slog"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/internal/errs"
	"crishim.dev/store"
)

// recorded is a manager with one record, which no kernel object stands behind.
func recorded(t *testing.T, state State) (*Manager, ID) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s, err := store.Open(store.Options{Dir: t.TempDir(), Boot: "boot", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	m := New(Options{Layout: Layout{Run: t.TempDir()}, Store: s, Log: log})
	r := &record{Sandbox: Sandbox{ID: "p", State: state, Config: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "p"}}}}
	if err := m.put(r); err != nil {
		t.Fatal(err)
	}
	return m, r.ID
}

// TestCloseIsOnRecord: also the next daemon knows that nothing may start in the pod.
func TestCloseIsOnRecord(t *testing.T) {
	m, id := recorded(t, Ready)
	if err := errors.Join(m.Close(t.Context(), id), m.Close(t.Context(), id), m.Close(t.Context(), "unknown")); err != nil {
		t.Fatal(err)
	}
	entries, err := m.o.Store.Load()
	if err != nil || len(entries) != 1 {
		t.Fatalf("records %v, %v", entries, err)
	}
	if r, err := decodeRecord(entries[0].Data); err != nil || r.State != Stopping {
		t.Fatalf("record %+v, %v", r, err)
	}
}

func TestEndOfInit(t *testing.T) {
	for _, c := range []struct {
		before, after State
		kind          error
	}{{Ready, Stopping, nil}, {Stopping, Stopping, nil}, {Stopped, Stopped, nil}, {Creating, Creating, errs.Precondition}} {
		m, id := recorded(t, c.before)
		err := m.InitEnded(t.Context(), id)
		if got := m.current(id).State; got != c.after || !errors.Is(err, c.kind) {
			t.Errorf("the end of its init makes a pod that was %s %s, %v", c.before, got, err)
		}
	}
	m, _ := recorded(t, Ready)
	if err := m.InitEnded(t.Context(), "unknown"); !errors.Is(err, errs.NotFound) {
		t.Errorf("end of an unknown pod's init: %v", err)
	}
}

// TestHalfMadePodOfAnotherBoot: nobody was told of it, so nobody would remove it.
func TestHalfMadePodOfAnotherBoot(t *testing.T) {
	m, id := recorded(t, Creating)
	if r, err := m.recoverOne(t.Context(), m.current(id), true); r != nil || err != nil || m.current(id) != nil {
		t.Errorf("recovered %+v, %v", r, err)
	}
}
