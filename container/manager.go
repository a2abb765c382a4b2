// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"crishim.dev/cgroup"
	"crishim.dev/container/process"
	"crishim.dev/image"
	"crishim.dev/internal/flight"
	"crishim.dev/internal/ids"
	"crishim.dev/internal/keylock"
	"crishim.dev/internal/progress"
	"crishim.dev/keeper/client"
	"crishim.dev/launch"
	"crishim.dev/launch/seccomp"
	"crishim.dev/proto"
	"crishim.dev/sandbox"
	"crishim.dev/snapshot"
	"crishim.dev/store"
)

// Keeper runs programs and reports their ends; *client.Client is one.
type Keeper interface {
	Spawn(ctx context.Context, s client.Spawn) (*client.Process, error)
	Release(ctx context.Context, id, name string, p *proto.Program) (*client.Process, error)
	Processes(ctx context.Context) ([]proto.Process, []*os.File, error)
	Exits() <-chan proto.Exited
	Connections() <-chan struct{}
	Reopen(ctx context.Context, id string, log *os.File) error
	Attach(ctx context.Context, id string, stdin bool, stdout, stderr *os.File) (*os.File, error)
	TTY(ctx context.Context, id string) (*os.File, error)
	Forget(ctx context.Context, id string) error
}

// Sandboxes finds pods; *sandbox.Manager is one.
type Sandboxes interface {
	Get(id string) (sandbox.Sandbox, error)
	// Close lets no new containers into the pod.
	Close(ctx context.Context, id sandbox.ID) error
	// InitEnded is told of the end of the first process of a shared pid namespace.
	InitEnded(ctx context.Context, id sandbox.ID) error
}

// Images finds images; *image.Store is one.
type Images interface {
	Resolve(ref string) (image.Image, error)
	// Release removes those of the layers that nothing needs any more.
	Release(ctx context.Context, layers []snapshot.Key) error
}

// Options are what a Manager needs from its neighbours.
type Options struct {
	// Layout says where a pod's files and pins are.
	Layout sandbox.Layout
	// Dir is the directory on disk for what a container has besides its writable layer: its volumes.
	Dir       string
	Store     *store.Store
	Keeper    Keeper
	Sandboxes Sandboxes
	Images    Images
	Snapshots snapshot.Snapshotter
	Cgroups   *cgroup.Manager
	Facts     launch.Facts
	// Rlimits are those of every container; Tasks is pids.max of one whose request sets none, 0 for no limit.
	Rlimits []launch.Rlimit
	// CDIDirs are the directories of CDI specifications; a later one overrides.
	CDIDirs []string
	Tasks   int64
	// Filters compiles seccomp profiles.
	Filters *seccomp.Cache
	// AppArmorDefault is the profile for containers that ask for the default one; empty: none.
	AppArmorDefault string
	// Changed is called, without locks held, after every change of a container that kubelet may want to know of.
	Changed func(ID, sandbox.ID, Change)
	Log     *slog.Logger
}

// Change is what happened to a container.
type Change int

// The changes.
const (
	ChangeCreated Change = iota
	ChangeStarted
	ChangeStopped
	ChangeDeleted
)

// Manager holds all containers. Safe for concurrent use.
//
// Lock order: the container's key in locks, then mu. Nothing does I/O with mu held.
type Manager struct {
	o        Options
	locks    keylock.Locks
	creates  flight.Group[string, ID]
	starts   flight.Group[ID, struct{}]
	accounts process.AccountsCache
	// handler makes processes; all RuntimeClasses that can be configured are shim's own.
	handler Handler
	// underWay is what Activities tells.
	underWay progress.Table
	warned   warnings
	// defaultProfile is that of RuntimeDefault.
	defaultProfile *seccomp.Profile
	// exits counts the goroutines that handle ends of processes; Close waits for them.
	exits sync.WaitGroup

	mu sync.Mutex
	// all has the newest version of each container. Guarded by mu.
	all map[ID]*entry
	// names has the id of each container by its name key. Guarded by mu.
	names map[string]ID
	// execs has a channel for the end of each exec process in flight. Guarded by mu.
	execs map[string]chan proto.Exited
}

// entry is a container in the manager's map; its fields are guarded by Manager.mu, what they point to is immutable or safe.
type entry struct {
	rec *record
	// pidfd is the first process while the container runs.
	pidfd *os.File
	// done is closed when the container has exited (or could not start).
	done chan struct{}
	// signalled says that StopContainer has sent the stop signal.
	signalled bool
}

// New makes a Manager without containers; Recover brings back those of before.
func New(o Options) *Manager {
	return &Manager{
		o: o, handler: programs{o.Keeper, o.Facts}, all: map[ID]*entry{}, names: map[string]ID{}, execs: map[string]chan proto.Exited{},
		warned: warnings{log: o.Log}, defaultProfile: seccomp.Default(),
	}
}

// Get finds a container by its id or by a prefix of it that no other has. NotFound or, for an ambiguous prefix, Invalid.
func (m *Manager) Get(id string) (Container, error) {
	r, err := m.find(id)
	if err != nil {
		return Container{}, err
	}
	return r.Container, nil
}

func listed(r *record) bool { return r.State != Creating && r.State != Removing }

func (m *Manager) find(id string) (*record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, err := ids.Find(m.all, id, "container", func(e *entry) bool { return listed(e.rec) })
	if err != nil {
		return nil, err
	}
	return e.rec, nil
}

// List gives all containers, newest first. It takes no lock that is held over I/O.
func (m *Manager) List() []Container {
	m.mu.Lock()
	out := make([]Container, 0, len(m.all))
	for _, e := range m.all {
		if listed(e.rec) {
			out = append(out, e.rec.Container)
		}
	}
	m.mu.Unlock()
	slices.SortFunc(out, func(a, b Container) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return out
}

// Activities are the operations on containers under way. It waits for nothing.
func (m *Manager) Activities() []progress.Operation { return m.underWay.List() }

// begin enters an operation on a container; its steps get the context.
func (m *Manager) begin(ctx context.Context, r *record, name string) (_ context.Context, end func()) {
	return m.underWay.Begin(ctx, progress.Operation{Sandbox: string(r.Sandbox), Container: string(r.ID), Name: name})
}

func (m *Manager) inPod(pod sandbox.ID) []ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []ID
	for id, e := range m.all {
		if e.rec.Sandbox == pod {
			out = append(out, id)
		}
	}
	return out
}

// current gives the newest version of a container, nil if there is none.
func (m *Manager) current(id ID) *record {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.all[id]; e != nil {
		return e.rec
	}
	return nil
}

// put makes r the container's newest version, on tmpfs first, then for readers.
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
	e := m.all[r.ID]
	if e == nil {
		e = &entry{done: make(chan struct{})}
		m.all[r.ID] = e
		m.names[nameKey(r.Sandbox, r.Config.GetMetadata())] = r.ID
	}
	e.rec = r
	if r.State == Exited {
		e.finishLocked()
	}
	return nil
}

// finishLocked lets those go who wait for the container's end.
func (e *entry) finishLocked() {
	select {
	case <-e.done:
	default:
		close(e.done)
	}
	if e.pidfd != nil {
		_ = e.pidfd.Close()
		e.pidfd = nil
	}
}

// forget drops the record and the container's directory.
func (m *Manager) forget(r *record) error {
	if err := errors.Join(os.RemoveAll(m.dir(r.ID)), m.o.Store.Delete(string(r.ID))); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.all[r.ID]; e != nil {
		e.finishLocked()
	}
	delete(m.all, r.ID)
	if key := nameKey(r.Sandbox, r.Config.GetMetadata()); m.names[key] == r.ID {
		delete(m.names, key)
	}
	return nil
}

// dir holds what a container has on disk besides its writable layer.
func (m *Manager) dir(id ID) string { return filepath.Join(m.o.Dir, string(id)) }

func (m *Manager) changed(r *record, c Change) {
	if m.o.Changed != nil {
		m.o.Changed(r.ID, r.Sandbox, c)
	}
}
