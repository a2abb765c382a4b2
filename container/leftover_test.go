// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/image"
	"crishim.dev/internal/errs"
	"crishim.dev/sandbox"
	"crishim.dev/snapshot"
	"crishim.dev/store"
)

// stuck is a snapshotter that can't remove anything as long as it has an error.
type stuck struct {
	snapshot.Snapshotter
	err error
}

func (s *stuck) Remove(context.Context, string) error { return s.err }

func recorded(t *testing.T, state State, snaps snapshot.Snapshotter) (*Manager, *record) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s, err := store.Open(store.Options{Dir: t.TempDir(), Boot: "boot", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	m := New(Options{Dir: t.TempDir(), Store: s, Snapshots: snaps, Images: noImages{}, Log: log})
	r := &record{Container: Container{ID: "c", Sandbox: "p", State: state, Config: &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "web"}}}}
	if err := m.put(r); err != nil {
		t.Fatal(err)
	}
	return m, r
}

// TestWhatCannotBeDiscardedIsListed: hidden it would hold its name, and nobody could remove it.
func TestWhatCannotBeDiscardedIsListed(t *testing.T) {
	busy := &stuck{err: os.ErrDeadlineExceeded}
	m, r := recorded(t, Creating, busy)
	cause := errors.New("no space")
	if err := m.discardOrKeep(t.Context(), r, cause); !errors.Is(err, cause) || !errors.Is(err, busy.err) {
		t.Errorf("error %v lacks a cause", err)
	}
	c, err := m.Get("c")
	if err != nil || c.State != Exited || c.ExitCode != 255 || c.FinishedAt.IsZero() {
		t.Fatalf("container %+v, %v", c, err)
	}
	busy.err = nil
	if err := m.discardOrKeep(t.Context(), m.current("c"), nil); err != nil || m.current("c") != nil {
		t.Errorf("second attempt: %v", err)
	}
}

// TestLeftoverKeepsItsEnd: a container that ran tells how it ended, also when its removal failed.
func TestLeftoverKeepsItsEnd(t *testing.T) {
	m, r := recorded(t, Exited, &stuck{})
	ended := r.with(func(r *record) { r.ExitCode, r.Reason, r.FinishedAt = 3, "Error", time.Unix(1, 0) })
	if l := m.leftover(ended, errors.New("busy")); l.ExitCode != 3 || l.Reason != "Error" || !l.FinishedAt.Equal(time.Unix(1, 0)) {
		t.Errorf("leftover %+v", l.Container)
	}
}

// TestStopWaitsForTheRecord: right after a restart an end may be known to the keeper and not yet be on record.
func TestStopWaitsForTheRecord(t *testing.T) {
	m, r := recorded(t, Running, &stuck{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.recorded(ctx, r.ID); !errors.Is(err, context.Canceled) {
		t.Errorf("stop of a container whose end is not on record: %v", err)
	}
	if err := m.put(r.with(func(r *record) { r.State = Exited })); err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(t.Context(), r.ID, time.Hour); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// closing is pods that are asked to close.
type closing struct {
	Sandboxes
	asked []sandbox.ID
}

func (c *closing) Close(_ context.Context, id sandbox.ID) error {
	c.asked = append(c.asked, id)
	return nil
}

func TestStopPodClosesItFirst(t *testing.T) {
	m, _ := recorded(t, Created, &stuck{})
	pods := &closing{}
	m.o.Sandboxes = pods
	if err := m.StopPod(t.Context(), "p"); err != nil || len(pods.asked) != 1 || pods.asked[0] != "p" {
		t.Errorf("asked %v, %v", pods.asked, err)
	}
}

// noImages has no images and so no layers that are left over.
type noImages struct{}

func (noImages) Resolve(ref string) (image.Image, error) {
	return image.Image{}, errs.Newf(errs.NotFound, "find image %s", ref)
}

func (noImages) Release(context.Context, []snapshot.Key) error { return nil }
