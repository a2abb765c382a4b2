// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim.dev/cgroup"
	"crishim.dev/cni"
	"crishim.dev/internal/flight"
	"crishim.dev/internal/ids"
	"crishim.dev/internal/keylock"
	"crishim.dev/internal/progress"
	"crishim.dev/keeper/client"
	"crishim.dev/launch"
	"crishim.dev/proto"
	"crishim.dev/store"
)

// Keeper runs programs; *client.Client is one.
type Keeper interface {
	Spawn(ctx context.Context, s client.Spawn) (*client.Process, error)
	Release(ctx context.Context, id, name string, p *proto.Program) (*client.Process, error)
	Forget(ctx context.Context, id string) error
}

// Network attaches pods; *cni.Network is one.
type Network interface {
	Attach(ctx context.Context, p cni.Pod) (cni.Result, error)
	Detach(ctx context.Context, p cni.Pod) error
	GC(ctx context.Context, live []string) error
}

// Options are what a Manager needs from its neighbours.
type Options struct {
	Layout Layout
	// NetNSLinks is the directory of `ip netns`, usually /run/netns; empty makes no links.
	NetNSLinks string
	// HostEtc is where the host's hosts and resolv.conf are, usually /etc.
	HostEtc string
	Store   *store.Store
	Keeper  Keeper
	Network Network
	Cgroups *cgroup.Manager
	Facts   launch.Facts
	// NoUserNS says why pods can't have user namespaces on this host (ProbeUserNS); nil when they can.
	NoUserNS error
	// Changed is called, without locks held, after every change of a sandbox that kubelet may want to know of.
	Changed func(ID, Change)
	Log     *slog.Logger
}

// Change is what happened to a sandbox.
type Change int

// The changes.
const (
	ChangeCreated Change = iota
	ChangeStopped
	ChangeDeleted
)

// Manager holds all sandboxes. Safe for concurrent use.
//
// Lock order: the sandbox's key in locks, then mu. Nothing does I/O with mu held.
type Manager struct {
	o     Options
	locks keylock.Locks
	runs  flight.Group[string, ID]
	// underWay is what Activities tells.
	underWay progress.Table

	mu sync.Mutex
	// boxes has the newest version of each record; the records themselves are never written after they got here. Guarded by mu.
	boxes map[ID]*record
	// names has the id of each record by its pod's name key. Guarded by mu.
	names map[string]ID
}

// New makes a Manager without sandboxes; Recover brings back those of before.
func New(o Options) *Manager {
	return &Manager{o: o, boxes: map[ID]*record{}, names: map[string]ID{}}
}

// nameKey is what makes a pod unique for kubelet.
func nameKey(m *cri.PodSandboxMetadata) string {
	return fmt.Sprintf("%s_%s_%s_%d", m.GetName(), m.GetNamespace(), m.GetUid(), m.GetAttempt())
}

// Get finds a sandbox by its id or by a prefix of it that no other has. NotFound or, for an ambiguous prefix, Invalid.
func (m *Manager) Get(id string) (Sandbox, error) {
	r, err := m.find(id)
	if err != nil {
		return Sandbox{}, err
	}
	return r.public(), nil
}

func (m *Manager) find(id string) (*record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return ids.Find(m.boxes, id, "pod sandbox", func(r *record) bool { return r.State != Creating })
}

// List gives all sandboxes, newest first. It takes no lock that is held over I/O.
func (m *Manager) List() []Sandbox {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.boxes))
	m.mu.Unlock()
	out := make([]Sandbox, 0, len(all))
	for _, r := range all {
		if r.State != Creating {
			out = append(out, r.public())
		}
	}
	slices.SortFunc(out, func(a, b Sandbox) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return out
}

// Activities are the operations on pods under way. It waits for nothing.
func (m *Manager) Activities() []progress.Operation { return m.underWay.List() }

// put makes r the sandbox's newest version, on tmpfs first, then for readers.
func (m *Manager) put(r *record) error {
	b, err := r.encode()
	if err != nil {
		return err
	}
	if err := m.o.Store.Put(string(r.ID), b); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.boxes[r.ID] = r
	m.names[nameKey(r.Config.GetMetadata())] = r.ID
	return nil
}

// forget drops the record and the pod's files.
func (m *Manager) forget(r *record) error {
	err := errors.Join(os.RemoveAll(m.o.Layout.Dir(r.ID)), m.o.Store.Delete(string(r.ID)))
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.boxes, r.ID)
	if key := nameKey(r.Config.GetMetadata()); m.names[key] == r.ID {
		delete(m.names, key)
	}
	return nil
}

func (m *Manager) changed(id ID, c Change) {
	if m.o.Changed != nil {
		m.o.Changed(id, c)
	}
}

// detached gives a context for teardown: it outlives the caller's cancellation and has a time limit of its own.
func detached(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), limit)
}
